"""The decoder of all families: Llama, Qwen 2 and 3, Gemma 2 and 3 differ by their `DecoderConfig`.

Tokens have axes [P G S]: a prompt is [P 1 L], the answers of its group [P G T]. Layers are one scanned block, by
default rematerialised; every parameter names its logical axes, from which `sharding` derives where it lives.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.policies.attention import attend, attend_by
from jaxrl_llm.policies.config import DecoderConfig, Rope
from jaxrl_llm.policies.rope import frequencies, rotate
from jaxrl_llm.policies.turned import attend_one, product
from jaxrl_llm.types import pytree


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Past:
    """Keys and values of one part of the context, layers first: [N P L Hk D] of prompts, [N P G T Hk D] of answers."""

    key: Float[Array, "N *B Hk D"]
    value: Float[Array, "N *B Hk D"]

    @property
    def columns(self) -> int:
        """L of prompts, T of answers."""
        return self.key.shape[-3]

    def put(self, key: Array, value: Array, layer: Array | int, column: Array | int) -> "Past":
        """With keys and values [P G S Hk D] of a layer from a column on."""
        at = (layer, 0, 0, column, 0, 0)
        return Past(
            key=jax.lax.dynamic_update_slice(self.key, key[None], at),
            value=jax.lax.dynamic_update_slice(self.value, value[None], at),
        )

    def read(self, layer: Array | int, columns: int) -> tuple[Array, Array]:
        """The first columns of a layer, [P G R Hk D]."""

        def cut(x):
            return jax.lax.dynamic_slice(x, (layer, 0, 0, 0, 0, 0), (1, *x.shape[1:3], columns, *x.shape[4:]))[0]

        return cut(self.key), cut(self.value)

    def some(self, take: Callable[[Array, int], Array], axes: int) -> "Past":
        """Of some prompts (1 axis), or of some answers (2), one a prompt: `take` chooses them along these axes."""

        def chosen(x):
            return take(x, axes) if axes == 1 else take(x, axes)[:, None]

        return Past(key=jax.vmap(chosen)(self.key), value=jax.vmap(chosen)(self.value))


class Sight(NamedTuple):
    """What each query sees of its own answer and of the prompt."""

    own: Bool[Array, "#P #G S T"]
    prefix: Bool[Array, "P #G #S L"]


class Places(NamedTuple):
    """Where tokens stand and what they see; `nearby` is the sight in layers with a window, None where none has one."""

    position: Int[Array, "P #G S"]
    column: Int[Array, ""] | int  # of the cache, of the first token
    everything: Sight
    nearby: Sight | None


def places_of(
    config: DecoderConfig,
    position: Int[Array, "P #G S"],
    own: tuple[Int[Array, "P #G T"], Bool[Array, "#P #G S T"]],
    prefix_mask: Bool[Array, "P L"],
    column: Int[Array, ""] | int = 0,
) -> Places:
    """Masks of both kinds of layers from the positions of queries, of the own keys with their mask, and of the prompt.

    A window of w reaches back to the key w - 1 positions before the query.
    """
    own_position, own_mask = own
    seen = Sight(own_mask, prefix_mask[:, None, None, :])
    if not any(config.windowed):
        return Places(position, column, seen, None)
    start = position[..., None] - config.window  # the last position that is out of sight
    prefix_position = (jnp.cumsum(prefix_mask, axis=-1) - 1)[:, None, None, :]
    near = Sight(own_mask & (own_position[:, :, None, :] > start), seen.prefix & (prefix_position > start))
    return Places(position, column, seen, near)


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last axis, in float32; · (1 + weight) with `offset`."""

    eps: float
    offset: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*B E"]) -> Float[Array, "*B E"]:
        init = nn.initializers.zeros if self.offset else nn.initializers.ones
        scale = self.param("scale", nn.with_logical_partitioning(init, ("norm",)), x.shape[-1:])
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape) + float(self.offset)
        return (wide * scale).astype(x.dtype)


class Block(nn.Module):
    """One layer. The carry is (activations, cache of the answers or None); the cache is updated in place."""

    config: DecoderConfig
    turned: bool = False  # maps, cache and prefix lie as in `turned`

    @nn.compact
    def __call__(self, carry, per_layer, places: Places):
        c = self.config
        x, cache = carry

        def normed(name, h):
            return RMSNorm(c.norm_eps, c.norm_offset, name=name)(h)

        a, cache, emitted = _attention(self, normed, normed("attention_norm", x), cache, per_layer, places)
        x = x + (normed("attention_post_norm", a) if c.post_norms else a)
        h = _mlp(self, normed("mlp_norm", x))
        x = x + (normed("mlp_post_norm", h) if c.post_norms else h)
        return (x, cache), emitted


def _map(module: nn.Module, name: str, h: Array, shape: tuple[int, ...], axes: tuple[str, ...]) -> Array:
    """h [P G S ...] times a weight whose first axes are those of h; what is left of its axes takes their place."""
    c, inputs = module.config, h.shape[3:]
    size, outputs = math.prod(inputs), shape[len(inputs) :]
    # As matrices: XLA on CPU copies the weights, transposed, for a contraction over two axes, every time.
    flat = h.reshape(*h.shape[:3], size)
    if module.turned:
        weight = module.param(name, nn.initializers.zeros, (math.prod(outputs), size), jnp.float32)
        made = product(flat, weight.astype(c.dtype))
    else:
        init = nn.with_logical_partitioning(nn.initializers.truncated_normal(size**-0.5), axes)
        weight = module.param(name, init, shape, jnp.float32).astype(c.dtype)
        made = flat @ weight.reshape(size, -1)
    return _adapted(module, name, h, made.reshape(*h.shape[:3], *outputs))


def _heads(module: Block, name: str, heads: int, axis: str, h: Float[Array, "P G S E"]) -> Float[Array, "P G S H D"]:
    c = module.config
    out = _map(module, name, h, (c.width, heads, c.head_size), HEADS[axis])
    if c.qkv_bias:
        init = nn.with_logical_partitioning(nn.initializers.zeros, (axis, "head"))
        bias = module.param(f"{name}_bias", init, (heads, c.head_size), jnp.float32).astype(c.dtype)
        out = out + bias[None, None, None, :, :]
    return out


def _adapted(module: nn.Module, name: str, h: Array, out: Array) -> Array:
    """h W + (h A) B where the linear map W has an adapter in the collection `lora`; B is scaled already."""
    if not module.has_variable("lora", name):
        return out
    pair = module.get_variable("lora", name)
    a, b = (pair[each].astype(module.config.dtype) for each in ("a", "b"))
    return out + jnp.tensordot(jnp.tensordot(h, a, a.ndim - 1), b, 1)


HEADS = {axis: ("embed", axis, "head") for axis in ("heads", "kv_heads")}


def _attention(module: Block, normed, h, cache, per_layer, places: Places):
    """-> what attention adds, the cache, and the fresh keys and values where there is no cache."""
    c = module.config
    layer, local, prefix = per_layer
    q = _heads(module, "query", c.heads, "heads", h)
    k, v = (_heads(module, name, c.kv_heads, "kv_heads", h) for name in ("key", "value"))
    if c.qk_norm:
        q, k = normed("query_norm", q), normed("key_norm", k)
    frequency, factor = _turns(c, local)
    q, k = (rotate(x, places.position, frequency, factor) for x in (q, k))
    own, emitted, sight = (k, v), (k, v), places.everything
    if cache is not None:
        cache = cache.put(k, v, layer, places.column)
        own, emitted = cache.read(layer, sight.own.shape[-1]), None
    if places.nearby is not None:
        sight = jax.tree.map(lambda near, every: jnp.where(local, near, every), places.nearby, sight)
    scale = (c.query_scale or c.head_size) ** -0.5
    if module.turned:
        a = attend_one(q, own, sight.own, prefix, sight.prefix, scale=scale, cap=c.attention_cap)
    else:
        seen = (own, sight.own, (prefix.key, prefix.value), sight.prefix)
        if c.attention == "cudnn" and cache is None:  # a single cached step has no weights to save
            a = attend_by(c.attention, q, *seen, scale=scale)
        else:
            a = attend(q, *seen, scale=scale, cap=c.attention_cap)
    out = _map(module, "out", a, (c.heads, c.head_size, c.width), ("heads", "head", "embed"))
    return out, cache, emitted


def _turns(c: DecoderConfig, local: Bool[Array, ""]) -> tuple[Array, Array | float]:
    """Frequencies of the rotary positions of a layer, and the factor on what they turn."""
    table, factor = jnp.asarray(frequencies(c.rope, c.head_size)), c.rope.attention_factor
    if not c.local_rope_base:
        return table, factor
    near = jnp.asarray(frequencies(Rope(base=c.local_rope_base), c.head_size))
    return jnp.where(local, near, table), jnp.where(local, 1.0, factor)


def _mlp(module: Block, h: Float[Array, "P G S E"]) -> Float[Array, "P G S E"]:
    c = module.config
    gate, up = (_map(module, name, h, (c.width, c.mlp_width), ("embed", "mlp")) for name in ("gate", "up"))
    inner = (nn.silu(gate) if c.activation == "silu" else nn.gelu(gate, approximate=True)) * up
    return _map(module, "down", inner, (c.mlp_width, c.width), ("mlp", "embed"))


class Decoder(nn.Module):
    """Token ids [P G S] to final hidden states [P G S E], and hidden states to logits."""

    config: DecoderConfig
    vocab_size: int

    def setup(self):
        c = self.config
        embed = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        self.embedding = self.param("embedding", embed, (self.vocab_size, c.width), jnp.float32)
        if not c.tied:
            self.head = self.param("head", embed, (self.vocab_size, c.width), jnp.float32)
        scanned = nn.scan(
            nn.remat(Block, prevent_cse=False) if c.recompute else Block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.blocks = scanned(c)
        self.final_norm = RMSNorm(c.norm_eps, c.norm_offset)

    def __call__(
        self, token: Int[Array, "P G S"], places: Places, prefix: Past, cache: Past | None = None
    ) -> tuple[Float[Array, "P G S E"], Past]:
        """Hidden states, and the keys and values of these tokens: the updated cache, or fresh ones without a cache."""
        c = self.config
        local = jnp.asarray(np.array(c.windowed or (False,) * c.layers))
        blocks = (jnp.arange(c.layers), local, prefix)
        (x, cache), emitted = self.blocks((self.embed(token), cache), blocks, places)
        past = cache if cache is not None else Past(key=emitted[0], value=emitted[1])
        return self.final_norm(x), past

    def output_table(self) -> Float[Array, "V E"]:
        """What final hidden states are multiplied with: the embedding where it is tied."""
        return self.embedding if self.config.tied else self.head

    def embed(self, token: Int[Array, "P G S"]) -> Float[Array, "P G S E"]:
        """What enters the first layer."""
        c = self.config
        x = jnp.take(self.embedding, token, axis=0).astype(c.dtype)
        return x * jnp.asarray(c.width**0.5, c.dtype) if c.scaled_embedding else x

    def finish(self, x: Float[Array, "P G S E"]) -> Float[Array, "P G S E"]:
        """Hidden states from what leaves the last layer."""
        return self.final_norm(x)
