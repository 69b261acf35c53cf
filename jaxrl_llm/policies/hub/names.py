"""Where each parameter stands in a published checkpoint: the name of its tensor, and how the axes correspond.

A published weight is [out, in]; ours has heads as an axis of their own and layers stacked in front.
"""

import dataclasses
import math

import numpy as np

from jaxrl_llm.policies.config import DecoderConfig

Span = tuple[int, int]  # start and end along an axis


@dataclasses.dataclass(frozen=True)
class Place:
    """One parameter of one layer, or of the whole.

    tensor  name in Hugging Face's files, with {} for the layer
    gguf    name in GGUF files, likewise
    axes    of each axis of the tensor: the axes of our parameter (without layers) that it holds, outermost first
    """

    tensor: str
    gguf: str
    axes: tuple[tuple[int, ...], ...]

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Of the tensor, from that of the parameter without layers."""
        return tuple(math.prod(ours[a] for a in group) for group in self.axes)

    def spans(self, ours: tuple[int, ...], wanted: tuple[Span, ...]) -> tuple[Span, ...]:
        """Which part of the tensor holds a part of the parameter. Inner axes of a group are wanted whole."""
        found = []
        for group in self.axes:
            inner = math.prod(ours[a] for a in group[1:])
            if any(wanted[a] != (0, ours[a]) for a in group[1:]):
                raise ValueError(f"{self.tensor}: the inner axes of heads cannot be cut")
            start, end = wanted[group[0]]
            found.append((start * inner, end * inner))
        return tuple(found)

    def ours(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The parameter of `shape` that a tensor holds."""
        order = [a for group in self.axes for a in group]
        return np.transpose(tensor.reshape([shape[a] for a in order]), np.argsort(order))

    def theirs(self, parameter: np.ndarray) -> np.ndarray:
        """The tensor of a parameter."""
        order = [a for group in self.axes for a in group]
        return np.transpose(parameter, order).reshape(self.shape(parameter.shape))


AS_IT_IS, MATRIX, VECTOR = ((0,), (1,)), ((1,), (0,)), ((0,),)
INTO_HEADS, FROM_HEADS, OF_HEADS = ((1, 2), (0,)), ((2,), (0, 1)), ((0, 1),)


def places(config: DecoderConfig) -> dict[tuple[str, ...], Place]:
    """Path of each parameter -> its place; those under `blocks` stand once a layer."""
    layer = {
        ("attention_norm", "scale"): Place("input_layernorm.weight", "attn_norm.weight", VECTOR),
        ("query",): Place("self_attn.q_proj.weight", "attn_q.weight", INTO_HEADS),
        ("key",): Place("self_attn.k_proj.weight", "attn_k.weight", INTO_HEADS),
        ("value",): Place("self_attn.v_proj.weight", "attn_v.weight", INTO_HEADS),
        ("out",): Place("self_attn.o_proj.weight", "attn_output.weight", FROM_HEADS),
        ("gate",): Place("mlp.gate_proj.weight", "ffn_gate.weight", MATRIX),
        ("up",): Place("mlp.up_proj.weight", "ffn_up.weight", MATRIX),
        ("down",): Place("mlp.down_proj.weight", "ffn_down.weight", MATRIX),
    }
    if config.qkv_bias:
        for name, letter in (("query", "q"), ("key", "k"), ("value", "v")):
            layer[f"{name}_bias",] = Place(f"self_attn.{letter}_proj.bias", f"attn_{letter}.bias", OF_HEADS)
    if config.qk_norm:
        for name, letter in (("query", "q"), ("key", "k")):
            place = Place(f"self_attn.{letter}_norm.weight", f"attn_{letter}_norm.weight", VECTOR)
            layer[f"{name}_norm", "scale"] = place
    if config.post_norms:
        layer |= {
            ("attention_post_norm", "scale"): Place(
                "post_attention_layernorm.weight", "post_attention_norm.weight", VECTOR
            ),
            ("mlp_norm", "scale"): Place("pre_feedforward_layernorm.weight", "ffn_norm.weight", VECTOR),
            ("mlp_post_norm", "scale"): Place("post_feedforward_layernorm.weight", "post_ffw_norm.weight", VECTOR),
        }
    else:
        layer["mlp_norm", "scale"] = Place("post_attention_layernorm.weight", "ffn_norm.weight", VECTOR)
    found = {
        ("blocks", *path): Place(f"model.layers.{{}}.{place.tensor}", f"blk.{{}}.{place.gguf}", place.axes)
        for path, place in layer.items()
    }
    found["embedding",] = Place("model.embed_tokens.weight", "token_embd.weight", AS_IT_IS)
    found["final_norm", "scale"] = Place("model.norm.weight", "output_norm.weight", VECTOR)
    if not config.tied:
        found["head",] = Place("lm_head.weight", "output.weight", AS_IT_IS)
    return found
