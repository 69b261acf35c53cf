"""`config.json` of a Hugging Face folder, read and written field by field."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub.fields import flag, number, text, token, tokens
from jaxrl_llm.policies.hub.rope_json import local_base, read_rope, write_rope
from jaxrl_llm.spec import nearest

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gemma3_text")
GEMMA = ("gemma2", "gemma3_text")
# Read into `DecoderConfig`.
SHAPE = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "rms_norm_eps": "norm_eps",
}
READ = {
    *SHAPE,
    *("model_type", "vocab_size", "num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings"),
    *("hidden_act", "hidden_activation", "rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq"),
    *("layer_types", "sliding_window", "sliding_window_pattern", "_sliding_window_pattern", "use_sliding_window"),
    *("max_window_layers", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
}
# Of training, of generation or of the file: they change no logit.
IDLE = {
    *("architectures", "attention_dropout", "initializer_range", "use_cache", "torch_dtype", "dtype", "_name_or_path"),
    *("transformers_version", "pretraining_tp", "cache_implementation", "is_llama_config", "transformers.js_config"),
    *(
        "id2label",
        "label2id",
        "problem_type",
        "output_attentions",
        "output_hidden_states",
        "return_dict",
        "task_specific_params",
    ),
    *("chunk_size_feed_forward", "_attn_implementation", "attn_implementation", "torchscript", "use_bfloat16"),
    *("tokenizer_class", "prefix", "finetuning_task", "_attn_implementation_autoset"),
}
# Must have this value, null or absent: anything else computes something that the decoder does not.
FIXED = {
    "attention_bias": {"qwen2": True},
    "mlp_bias": {},
    "use_bidirectional_attention": {},
    "rope_interleaved": {},
    "partial_rotary_factor": {name: 1.0 for name in FAMILIES},
    "is_encoder_decoder": {},
    "add_cross_attention": {},
    "is_decoder": {},
    "cross_attention_hidden_size": {},
    "tie_encoder_decoder": {},
    "quantization_config": {},
    "pruned_heads": {},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hub:
    """A model as its folder describes it: the shape of the decoder, and what belongs to its vocabulary."""

    config: DecoderConfig
    family: str  # one of FAMILIES
    vocab_size: int
    max_length: int  # positions that it was made for
    bos: int | None = None
    eos: tuple[int, ...] = ()  # any of them ends an answer
    pad: int | None = None


def read_config(fields: Mapping[str, Any]) -> Hub:
    """The model that a config.json describes.

    Raises ValueError, which names the field: for another family, for a field that is missing or of a wrong kind, for a
    value that the decoder cannot compute, and for a field that it does not know and that is neither null nor false.
    """
    family = text(fields, "model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"model_type {family!r} is not a family that the decoder knows{nearest(str(family), list(FAMILIES))}"
        )
    _refuse_unknown(fields, family)
    shape = {ours: number(fields, theirs) for theirs, ours in SHAPE.items() if ours != "norm_eps"}
    layers, heads = shape["layers"], shape["heads"]
    config = DecoderConfig(
        **shape,
        norm_eps=float(number(fields, "rms_norm_eps", 1e-6, kind=float)),
        kv_heads=number(fields, "num_key_value_heads", heads),
        head_size=number(fields, "head_dim", 256 if family in GEMMA else shape["width"] // max(heads, 1)),
        rope=read_rope(fields, family),
        tied=flag(fields, "tie_word_embeddings", family in GEMMA),
        activation=_activation(fields, family),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3_text"),
        norm_offset=family in GEMMA,
        post_norms=family in GEMMA,
        scaled_embedding=family in GEMMA,
        query_scale=float(number(fields, "query_pre_attn_scalar", 256, kind=float)) if family in GEMMA else 0.0,
        attention_cap=_cap(fields, "attn_logit_softcapping", 50.0 if family == "gemma2" else 0.0),
        logit_cap=_cap(fields, "final_logit_softcapping", 30.0 if family == "gemma2" else 0.0),
        **_windows(fields, family, layers),
        local_rope_base=local_base(fields) if family == "gemma3_text" else 0.0,
    )
    return Hub(
        config=config,
        family=family,
        vocab_size=number(fields, "vocab_size"),
        max_length=number(fields, "max_position_embeddings", 2048),
        bos=token(fields, "bos_token_id"),
        eos=tokens(fields, "eos_token_id"),
        pad=token(fields, "pad_token_id"),
    )


def _refuse_unknown(fields: Mapping[str, Any], family: str) -> None:
    for name, value in fields.items():
        if name in FIXED:
            wanted = FIXED[name].get(family, False)
            if value not in (wanted, None, False, {}, []) or (value is False and wanted):
                raise ValueError(f"{name} is {value!r}: the decoder computes {family} only with {wanted!r}")
        elif name not in READ and name not in IDLE and value not in (None, False):
            raise ValueError(
                f"{name} is not a known field of {family} and may change what it computes "
                f"(value {value!r}){nearest(name, sorted(READ | IDLE))}"
            )


def _cap(fields: Mapping[str, Any], name: str, default: float) -> float:
    if name not in fields:
        return default
    return 0.0 if fields[name] is None else float(number(fields, name, kind=float))


def _activation(fields: Mapping[str, Any], family: str) -> str:
    names = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
    usual = "gelu_pytorch_tanh" if family in GEMMA else "silu"
    # Early Gemma files say "gelu" in hidden_act and mean the one by tanh, which hidden_activation names.
    name = text(fields, "hidden_activation") or (usual if family in GEMMA else text(fields, "hidden_act", usual))
    if name not in names:
        raise ValueError(f"hidden_act is {name!r}: the decoder has {', '.join(names)}{nearest(str(name), list(names))}")
    return names[name]


def _windows(fields: Mapping[str, Any], family: str, layers: int) -> dict[str, Any]:
    """Which layers have a window, by their list or by the habit of the family."""
    window = fields.get("sliding_window")
    off = family in ("qwen2", "qwen3") and not flag(fields, "use_sliding_window", False)
    if window is None or off or family == "llama":
        if family == "llama" and window is not None:
            raise ValueError(f"sliding_window is {window!r}: llama has none")
        return {}
    window, names = number(fields, "sliding_window"), fields.get("layer_types")
    kinds = ("sliding_attention", "full_attention")
    if names is None:
        if family == "gemma2":
            flags = [i % 2 == 0 for i in range(layers)]
        elif family == "gemma3_text":
            named = fields.get("sliding_window_pattern") or fields.get("_sliding_window_pattern")
            every = number({"sliding_window_pattern": named}, "sliding_window_pattern", 6)
            flags = [(i + 1) % every != 0 for i in range(layers)]
        else:
            first = number(fields, "max_window_layers", 28)
            flags = [i >= first for i in range(layers)]
    elif not isinstance(names, list) or len(names) != layers or not all(name in kinds for name in names):
        raise ValueError(f"layer_types must name {layers} layers as {' or '.join(kinds)}, not {names!r}")
    else:
        flags = [name == kinds[0] for name in names]
    return {"window": window, "windowed": tuple(flags)} if any(flags) else {}


def write_config(hub: Hub) -> dict[str, Any]:
    """The fields of config.json, in the form that `transformers` reads from version 4.51 on.

    Raises ValueError for a decoder that no family can express: what is read back must be what was written.
    """
    c, family = hub.config, hub.family
    names = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2", "gemma3_text": "Gemma3"}
    fields = {theirs: getattr(c, ours) for theirs, ours in SHAPE.items()} | {
        "architectures": [f"{names.get(family)}ForCausalLM"],
        "model_type": family,
        "vocab_size": hub.vocab_size,
        "num_key_value_heads": c.kv_heads,
        "head_dim": c.head_size,
        "tie_word_embeddings": c.tied,
        "max_position_embeddings": hub.max_length,
        "hidden_activation" if family in GEMMA else "hidden_act": {"silu": "silu", "gelu": "gelu_pytorch_tanh"}[
            c.activation
        ],
        **write_rope(c.rope),
        "bos_token_id": hub.bos,
        "eos_token_id": hub.eos[0] if len(hub.eos) == 1 else list(hub.eos) or None,
        "pad_token_id": hub.pad,
        "torch_dtype": "float32",
    }
    if c.windowed:
        kinds = ["sliding_attention" if local else "full_attention" for local in c.windowed]
        fields |= {"sliding_window": c.window, "layer_types": kinds}
        fields |= {"use_sliding_window": True} if family in ("qwen2", "qwen3") else {}
    if family in GEMMA:
        fields |= {"query_pre_attn_scalar": int(c.query_scale) if c.query_scale.is_integer() else c.query_scale}
        fields |= {"attn_logit_softcapping": c.attention_cap or None, "final_logit_softcapping": c.logit_cap or None}
        fields |= {} if c.windowed else {"sliding_window": None}
    if family == "gemma3_text":
        fields["rope_local_base_freq"] = c.local_rope_base
    again = read_config(fields).config.computed_as(c)
    if again != c:
        lost = [f.name for f in dataclasses.fields(c) if getattr(c, f.name) != getattr(again, f.name)]
        raise ValueError(f"a model of family {family} cannot have this {', '.join(lost)}")
    return fields


def family_of(config: DecoderConfig) -> str:
    """The family that a decoder belongs to by what it computes."""
    if config.norm_offset:
        return "gemma3_text" if config.qk_norm else "gemma2"
    return "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
