"""Which fields of config.json each family has, what an absent one means, and which of them compute nothing.

The sets and the defaults are those of the configuration classes of `transformers`, family by family: a field that one
family reads and another ignores is refused where it is ignored, because whoever wrote it meant it to do something.
"""

from collections.abc import Mapping
from typing import Any

from jaxrl_llm.spec import nearest

GEMMA = ("gemma2", "gemma3_text")
COMMON = {
    *("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "rms_norm_eps"),
    *("model_type", "vocab_size", "num_key_value_heads", "head_dim", "tie_word_embeddings", "max_position_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters", "bos_token_id", "eos_token_id", "pad_token_id"),
}
QWEN = {"hidden_act", "layer_types", "sliding_window", "use_sliding_window", "max_window_layers"}
OF_GEMMA = {"hidden_activation", "layer_types", "sliding_window", "query_pre_attn_scalar", "final_logit_softcapping"}
# Read into `DecoderConfig`.
READ = {
    "llama": COMMON | {"hidden_act"},
    "qwen2": COMMON | QWEN,
    "qwen3": COMMON | QWEN,
    "gemma2": COMMON | OF_GEMMA | {"attn_logit_softcapping"},
    "gemma3_text": COMMON | OF_GEMMA | {"rope_local_base_freq", "sliding_window_pattern", "_sliding_window_pattern"},
}
FAMILIES = tuple(READ)
# What an absent field means, where this depends on the family. Fields that are the size of a model have no default.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    "qwen2": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096},
    "qwen3": {"max_position_embeddings": 32768, "num_key_value_heads": 32, "sliding_window": 4096, "head_dim": 128},
    **{
        family: {"max_position_embeddings": length, "num_key_value_heads": 4, "sliding_window": 4096, "head_dim": 256}
        | {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True}
        for family, length in zip(GEMMA, (8192, 131072), strict=True)
    },
}
DEFAULTS["gemma2"] |= {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
# Of training, of generation or of the file: they change no logit.
IDLE = {
    *("architectures", "attention_dropout", "initializer_range", "use_cache", "torch_dtype", "dtype", "_name_or_path"),
    *("transformers_version", "pretraining_tp", "cache_implementation", "is_llama_config", "transformers.js_config"),
    *("id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict"),
    *("chunk_size_feed_forward", "_attn_implementation", "attn_implementation", "torchscript", "use_bfloat16"),
    *("tokenizer_class", "prefix", "finetuning_task", "_attn_implementation_autoset", "task_specific_params"),
}
# Stand in published files of one family beside the field that is read: hidden_activation, sliding_window.
IDLE_OF = {"gemma2": {"hidden_act", "sliding_window_size"}, "gemma3_text": {"hidden_act"}}
# Must have this value, null or absent: anything else computes something that the decoder does not.
FIXED: dict[str, dict[str, Any]] = {
    "attention_bias": {"qwen2": True},
    "mlp_bias": {},
    "use_bidirectional_attention": {},
    "rope_interleaved": {},
    "partial_rotary_factor": dict.fromkeys(FAMILIES, 1.0),
    "is_encoder_decoder": {},
    "add_cross_attention": {},
    "is_decoder": {},
    "cross_attention_hidden_size": {},
    "tie_encoder_decoder": {},
    "quantization_config": {},
    "pruned_heads": {},
}


def refuse_unknown(fields: Mapping[str, Any], family: str) -> None:
    """Raise ValueError for the first field that the family does not have and that is neither null nor false."""
    known = READ[family] | IDLE | IDLE_OF.get(family, set())
    for name, value in fields.items():
        if value is None or name in known:
            continue
        if name in FIXED:
            wanted = FIXED[name].get(family, False)
            if value != wanted and (wanted or value):
                raise ValueError(f"{name} is {value!r}: the decoder computes {family} only with {wanted!r}")
        elif value is not False:
            others = [other for other in FAMILIES if name in READ[other]]
            told = f"; it is one of {' and '.join(others)}" if others else nearest(name, sorted(known | set(FIXED)))
            raise ValueError(
                f"{name} is not a known field of {family} and may change what it computes (value {value!r}){told}"
            )


def with_defaults(fields: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The fields, and of those that are absent what the family takes instead. Null is no absence."""
    return DEFAULTS[family] | dict(fields)
