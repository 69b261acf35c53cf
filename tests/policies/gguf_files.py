"""Writes a decoder as a GGUF file by the habits of llama.cpp: its names of tensors, its order of rows, its norms."""

import gguf
import numpy as np

from jaxrl_llm.policies.config import DecoderConfig, Rope

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
}


def permuted(tensor, heads):
    """Rows of Llama's queries and keys, the two halves of a head turned into pairs."""
    return tensor.reshape(heads, 2, len(tensor) // heads // 2, -1).swapaxes(1, 2).reshape(tensor.shape)


def stretched_llama3(size, rope: Rope):
    """The table of divisors that Llama 3 files carry."""
    plain = rope.base ** -(np.arange(0, size, 2, dtype=np.float64) / size)
    out = []
    for wave in 2 * np.pi / plain:
        if wave < rope.original_length / rope.high:
            out.append(1.0)
        elif wave > rope.original_length / rope.low:
            out.append(rope.factor)
        else:
            smooth = (rope.original_length / wave - rope.low) / (rope.high - rope.low)
            out.append(1 / ((1 - smooth) / rope.factor + smooth))
    return np.asarray(out, np.float32)


def bare_vocabulary(write, hub):
    """Names of tokens alone: no text can be spelled with it."""
    write.add_tokenizer_model("gpt2")
    write.add_token_list([f"<{i}>" for i in range(hub.vocab_size)])
    write.add_bos_token_id(hub.bos)
    write.add_eos_token_id(hub.eos[0])
    write.add_pad_token_id(hub.pad)


def write_gguf(path, hub, tensors, kind=gguf.GGMLQuantizationType.F32, fields=(), vocabulary=bare_vocabulary):
    """Write tensors, by their names in Hugging Face's files, matrices in `kind`; further integer `fields`.

    tensors     float32, or (bytes, kind) as they shall stand in the file
    vocabulary  adds the fields of a tokenizer
    """
    c, arch = hub.config, ARCHITECTURES[hub.family]
    write = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    _describe(write, hub)
    vocabulary(write, hub)
    for name, value in fields:
        write.add_uint32(name, value) if isinstance(value, int) else write.add_float32(name, value)
    names = gguf.get_tensor_name_map(arch, c.layers)
    if c.rope.kind == "llama3":
        write.add_tensor("rope_freqs.weight", stretched_llama3(c.head_size, c.rope))
    for name, given in tensors.items():
        theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if isinstance(given, tuple):
            write.add_tensor(theirs, given[0], raw_dtype=given[1])
            continue
        tensor = np.asarray(given, np.float32)
        if hub.family == "llama" and "q_proj" in name:
            tensor = permuted(tensor, c.heads)
        if hub.family == "llama" and "k_proj" in name:
            tensor = permuted(tensor, c.kv_heads)
        if c.norm_offset and name.endswith("norm.weight"):
            tensor = tensor + 1
        used = kind if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        write.add_tensor(theirs, gguf.quantize(tensor, used), raw_dtype=used)
    write.write_header_to_file()
    write.write_kv_data_to_file()
    write.write_tensors_to_file()
    write.close()


def _describe(write, hub):
    c: DecoderConfig = hub.config
    write.add_block_count(c.layers)
    write.add_context_length(hub.max_length)
    write.add_embedding_length(c.width)
    write.add_feed_forward_length(c.mlp_width)
    write.add_head_count(c.heads)
    write.add_head_count_kv(c.kv_heads)
    write.add_layer_norm_rms_eps(c.norm_eps)
    write.add_key_length(c.head_size)
    write.add_value_length(c.head_size)
    write.add_rope_freq_base(c.rope.base)
    if c.rope.kind in ("linear", "yarn"):
        write.add_rope_scaling_type(gguf.RopeScalingType(c.rope.kind))
        write.add_rope_scaling_factor(c.rope.factor)
    if c.rope.kind == "yarn":
        write.add_rope_scaling_orig_ctx_len(c.rope.original_length)
    if c.window:
        write.add_sliding_window(c.window)
    if c.attention_cap:
        write.add_attn_logit_softcapping(c.attention_cap)
    if c.logit_cap:
        write.add_final_logit_softcapping(c.logit_cap)
