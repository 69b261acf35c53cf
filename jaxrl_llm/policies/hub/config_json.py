"""`config.json` of a Hugging Face folder, read and written field by field."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub.fields import flag, number, text, token, tokens
from jaxrl_llm.policies.hub.known_fields import DEFAULTS, FAMILIES, GEMMA, refuse_unknown, with_defaults
from jaxrl_llm.policies.hub.rope_json import local_base, read_rope, write_rope
from jaxrl_llm.spec import nearest

# Read into `DecoderConfig`.
SHAPE = {
    "num_hidden_layers": "layers",
    "hidden_size": "width",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "rms_norm_eps": "norm_eps",
}
ACTIVATIONS = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
MOST_LAYERS = 10_000
SLIDING, FULL = KINDS = ("sliding_attention", "full_attention")


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
    refuse_unknown(fields, family)
    fields = with_defaults(fields, family)
    shape = {ours: number(fields, theirs) for theirs, ours in SHAPE.items() if ours != "norm_eps"}
    layers, heads = shape["layers"], shape["heads"]
    if layers > MOST_LAYERS:  # a list of them would fill the memory before the tensors are looked for
        raise ValueError(f"num_hidden_layers is {layers}, and no model has more than {MOST_LAYERS}")
    config = DecoderConfig(
        **shape,
        norm_eps=float(number(fields, "rms_norm_eps", 1e-6, kind=float)),
        kv_heads=_heads_of_keys(fields, family, heads),
        head_size=number(
            fields, "head_dim", None if "head_dim" in DEFAULTS[family] else max(shape["width"] // heads, 1)
        ),
        rope=read_rope(fields, family),
        tied=flag(fields, "tie_word_embeddings", family in GEMMA),
        activation=_activation(fields, family),
        qkv_bias=family == "qwen2",
        qk_norm=family in ("qwen3", "gemma3_text"),
        norm_offset=family in GEMMA,
        post_norms=family in GEMMA,
        scaled_embedding=family in GEMMA,
        query_scale=float(number(fields, "query_pre_attn_scalar", 256, kind=float)) if family in GEMMA else 0.0,
        attention_cap=_cap(fields, "attn_logit_softcapping"),
        logit_cap=_cap(fields, "final_logit_softcapping"),
        **_windows(fields, family, layers),
        local_rope_base=local_base(fields) if family == "gemma3_text" else 0.0,
    )
    return Hub(
        config=config,
        family=family,
        vocab_size=number(fields, "vocab_size"),
        max_length=number(fields, "max_position_embeddings"),
        bos=token(fields, "bos_token_id"),
        eos=tokens(fields, "eos_token_id"),
        pad=token(fields, "pad_token_id"),
    )


def _heads_of_keys(fields: Mapping[str, Any], family: str, heads: int) -> int:
    """As many as there are heads, where the field is null, or absent from a family without a number of its own."""
    return number(fields, "num_key_value_heads", None if family in GEMMA else heads)


def _cap(fields: Mapping[str, Any], name: str) -> float:
    return 0.0 if fields.get(name) is None else float(number(fields, name, kind=float))


def _activation(fields: Mapping[str, Any], family: str) -> str:
    # Early Gemma files say "gelu" in hidden_act and mean the one by tanh, which hidden_activation names.
    field, usual = ("hidden_activation", "gelu_pytorch_tanh") if family in GEMMA else ("hidden_act", "silu")
    name = text(fields, field, usual)
    if name not in ACTIVATIONS:
        raise ValueError(
            f"{field} is {name!r}: the decoder has {', '.join(ACTIVATIONS)}{nearest(str(name), list(ACTIVATIONS))}"
        )
    return ACTIVATIONS[name]


def _windows(fields: Mapping[str, Any], family: str, layers: int) -> dict[str, Any]:
    """Which layers have a window, by their list or by the habit of the family."""
    window, names = fields.get("sliding_window"), fields.get("layer_types")
    if family == "llama":
        return {}
    if family not in GEMMA and not flag(fields, "use_sliding_window", False):
        window = None
    if names is None:
        flags = _habit(fields, family, layers, window)
    elif not isinstance(names, list) or len(names) != layers or not all(name in KINDS for name in names):
        raise ValueError(f"layer_types must name {layers} layers as {' or '.join(KINDS)}, not {names!r}")
    else:
        flags = [name == SLIDING for name in names]
    if not any(flags):
        return {}
    if window is None:
        off = "use_sliding_window is off" if family not in GEMMA else "sliding_window is null"
        raise ValueError(f"{off}, and layer_types, or the habit of {family}, has layers with {SLIDING}")
    return {"window": number(fields, "sliding_window"), "windowed": tuple(flags)}


def _habit(fields: Mapping[str, Any], family: str, layers: int, window: Any) -> list[bool]:
    """Which layers of a family have a window where no list says so."""
    if family == "gemma2":
        return [i % 2 == 0 for i in range(layers)]
    if family == "gemma3_text":
        every = number(fields, "sliding_window_pattern", 6)
        if fields.get("_sliding_window_pattern") not in (None, every):
            raise ValueError(
                f"_sliding_window_pattern is {fields['_sliding_window_pattern']!r} and sliding_window_pattern {every}: "
                f"which layers have a window must stand in layer_types"
            )
        return [(i + 1) % every != 0 for i in range(layers)]
    first = 0 if fields.get("max_window_layers") == 0 else number(fields, "max_window_layers", 28)
    return [window is not None and i >= first for i in range(layers)]


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
        kinds = [SLIDING if local else FULL for local in c.windowed]
        fields |= {"sliding_window": c.window, "layer_types": kinds}
        fields |= {"use_sliding_window": True} if family in ("qwen2", "qwen3") else {}
    if family in GEMMA:
        fields |= {"query_pre_attn_scalar": int(c.query_scale) if c.query_scale.is_integer() else c.query_scale}
        fields |= {"attn_logit_softcapping": c.attention_cap or None} if family == "gemma2" else {}
        fields["final_logit_softcapping"] = c.logit_cap or None
        if not c.windowed:  # these families have windows unless every layer is said to have none
            fields |= {"sliding_window": hub.max_length, "layer_types": [FULL] * c.layers}
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
