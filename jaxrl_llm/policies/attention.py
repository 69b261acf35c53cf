"""Attention of an answer's tokens over the prompt that its group shares and over its own past."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

NEVER = -1e30  # finite, so that a row that may attend to nothing (padding) stays finite


def attend(
    query: Float[Array, "P G S Hq D"],
    own: tuple[Float[Array, "P G T Hk D"], Float[Array, "P G T Hk D"]],
    own_mask: Bool[Array, "#P #G S T"],
    prefix: tuple[Float[Array, "P L Hk D"], Float[Array, "P L Hk D"]],
    prefix_mask: Bool[Array, "P L"],
) -> Float[Array, "P G S Hq D"]:
    """softmax(q·k/√D) v over the prefix and the own keys together, in float32.

    The keys of a prompt are stored and read once for its G answers. Heads are grouped: Hq/Hk queries share a key.
    `own_mask` says which own position each query sees; `prefix_mask` which prompt columns are real.
    """
    p, g, s, heads, size = query.shape
    groups = own[0].shape[-2]
    q = query.reshape(p, g, s, groups, heads // groups, size) * size**-0.5
    far = jnp.einsum("pgskrd,plkd->pgkrsl", q, prefix[0], preferred_element_type=jnp.float32)
    near = jnp.einsum("pgskrd,pgtkd->pgkrst", q, own[0], preferred_element_type=jnp.float32)
    far = jnp.where(prefix_mask[:, None, None, None, None, :], far, NEVER)
    near = jnp.where(own_mask[:, :, None, None, :, :], near, NEVER)
    weights = jax.nn.softmax(jnp.concatenate([far, near], axis=-1), axis=-1).astype(query.dtype)
    split = far.shape[-1]
    out = jnp.einsum("pgkrsl,plkd->pgskrd", weights[..., :split], prefix[1])
    out = out + jnp.einsum("pgkrst,pgtkd->pgskrd", weights[..., split:], own[1])
    return out.reshape(query.shape)


def rotate(x: Float[Array, "P G S H D"], position: Int[Array, "P #G S"], base: float) -> Float[Array, "P G S H D"]:
    """Rotary positions (Su et al., 2021), halves rotated as in Llama: pair i turns by position · base^(-2i/D)."""
    half = x.shape[-1] // 2
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position[..., None, None].astype(jnp.float32) * frequency[None, None, None, None, :]
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
