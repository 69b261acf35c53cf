"""The decoder: rotary positions, grouped-query attention, RMSNorm, gated MLP, tied or untied head.

Tokens have axes [P G S]: a prompt is [P 1 L], the answers of its group [P G T]. Layers are one scanned, rematerialised
block; every parameter names its logical axes, from which `sharding` derives where it lives.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.policies.attention import attend, rotate
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.types import pytree


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Past:
    """Keys and values of one part of the context, layers first: [N P L Hk D] of prompts, [N P G T Hk D] of answers."""

    key: Float[Array, "N *B Hk D"]
    value: Float[Array, "N *B Hk D"]


def _weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...], fan_in: int) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.truncated_normal(fan_in**-0.5), axes)
    return module.param(name, init, shape, jnp.float32)


class RMSNorm(nn.Module):
    """x / rms(x) · scale, in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: Float[Array, "P G S E"]) -> Float[Array, "P G S E"]:
        scale = self.param("scale", nn.with_logical_partitioning(nn.initializers.ones, ("norm",)), x.shape[-1:])
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.eps)
        return (wide * scale[None, None, None, :]).astype(x.dtype)


class Block(nn.Module):
    """One layer. The carry is (activations, cache of the answers or None); the cache is updated in place."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, carry, per_layer, position, own_mask, prefix_mask, column):
        c = self.config
        x, cache = carry
        layer, prefix = per_layer
        h = RMSNorm(c.norm_eps, name="attention_norm")(x)
        wq = _weight(self, "query", (c.width, c.heads, c.head_size), ("embed", "heads", "head"), c.width)
        wk = _weight(self, "key", (c.width, c.kv_heads, c.head_size), ("embed", "kv_heads", "head"), c.width)
        wv = _weight(self, "value", (c.width, c.kv_heads, c.head_size), ("embed", "kv_heads", "head"), c.width)
        wo = _weight(self, "out", (c.heads, c.head_size, c.width), ("heads", "head", "embed"), c.heads * c.head_size)
        q, k, v = (jnp.einsum("pgse,ehd->pgshd", h, w.astype(c.dtype)) for w in (wq, wk, wv))
        q, k = rotate(q, position, c.rope_base), rotate(k, position, c.rope_base)
        own, emitted = (k, v), (k, v)
        if cache is not None:
            at = (layer, 0, 0, column, 0, 0)
            cache = Past(
                key=jax.lax.dynamic_update_slice(cache.key, k[None], at),
                value=jax.lax.dynamic_update_slice(cache.value, v[None], at),
            )
            own, emitted = (cache.key[layer], cache.value[layer]), None
        a = attend(q, own, own_mask, (prefix.key, prefix.value), prefix_mask)
        x = x + jnp.einsum("pgshd,hde->pgse", a, wo.astype(c.dtype))
        h = RMSNorm(c.norm_eps, name="mlp_norm")(x)
        gate = _weight(self, "gate", (c.width, c.mlp_width), ("embed", "mlp"), c.width).astype(c.dtype)
        up = _weight(self, "up", (c.width, c.mlp_width), ("embed", "mlp"), c.width).astype(c.dtype)
        down = _weight(self, "down", (c.mlp_width, c.width), ("mlp", "embed"), c.mlp_width).astype(c.dtype)
        x = x + (nn.silu(h @ gate) * (h @ up)) @ down
        return (x, cache), emitted


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
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast),
            length=c.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        self.blocks = scanned(c)
        self.final_norm = RMSNorm(c.norm_eps)

    def __call__(
        self,
        token: Int[Array, "P G S"],
        position: Int[Array, "P #G S"],
        own_mask: Bool[Array, "#P #G S T"],
        prefix: Past,
        prefix_mask: Bool[Array, "P L"],
        cache: Past | None = None,
        column: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "P G S E"], Past]:
        """Hidden states, and the keys and values of these tokens: the updated cache, or fresh ones without a cache."""
        c = self.config
        x = jnp.take(self.embedding, token, axis=0).astype(c.dtype)
        per_layer = (jnp.arange(c.layers), prefix)
        (x, cache), emitted = self.blocks((x, cache), per_layer, position, own_mask, prefix_mask, column)
        past = cache if cache is not None else Past(key=emitted[0], value=emitted[1])
        return self.final_norm(x), past

    def logits(self, hidden: Float[Array, "P G S E"]) -> Float[Array, "P G S V"]:
        """hidden · headᵀ in float32, contracted without a transposed copy of the table."""
        table = self.embedding if self.config.tied else self.head
        contraction = (((hidden.ndim - 1,), (1,)), ((), ()))
        return jax.lax.dot_general(hidden, table.astype(hidden.dtype), contraction, preferred_element_type=jnp.float32)
