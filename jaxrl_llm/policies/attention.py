"""Attention of an answer's tokens over the prompt that its group shares and over its own past."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

NEVER = -1e30  # finite, so that a row that may attend to nothing (padding) stays finite


def attend(
    query: Float[Array, "P G S Hq D"],
    own: tuple[Float[Array, "P G T Hk D"], Float[Array, "P G T Hk D"]],
    own_mask: Bool[Array, "#P #G S T"],
    prefix: tuple[Float[Array, "P L Hk D"], Float[Array, "P L Hk D"]],
    prefix_mask: Bool[Array, "P #G #S L"],
    *,
    scale: float,
    cap: float = 0.0,
) -> Float[Array, "P G S Hq D"]:
    """softmax(scale q·k) v over the prefix and the own keys together, in float32.

    The keys of a prompt are stored and read once for its G answers. Heads are grouped: Hq/Hk queries share a key.
    The masks say which positions each query sees. cap  logits x become cap tanh(x/cap) before the masks; 0: they stay
    """
    p, g, s, heads, size = query.shape
    groups = own[0].shape[-2]
    q = query.reshape(p, g, s, groups, heads // groups, size) * scale
    far = jnp.einsum("pgskrd,plkd->pgkrsl", q, prefix[0], preferred_element_type=jnp.float32)
    near = jnp.einsum("pgskrd,pgtkd->pgkrst", q, own[0], preferred_element_type=jnp.float32)
    far, near = capped(far, cap), capped(near, cap)
    far = jnp.where(prefix_mask[:, :, None, None, :, :], far, NEVER)
    near = jnp.where(own_mask[:, :, None, None, :, :], near, NEVER)
    weights = jax.nn.softmax(jnp.concatenate([far, near], axis=-1), axis=-1).astype(query.dtype)
    split = far.shape[-1]
    out = jnp.einsum("pgkrsl,plkd->pgskrd", weights[..., :split], prefix[1])
    out = out + jnp.einsum("pgkrst,pgtkd->pgskrd", weights[..., split:], own[1])
    return out.reshape(query.shape)


def capped(logits: Float[Array, "*B"], cap: float) -> Float[Array, "*B"]:
    """cap tanh(logits/cap); unchanged for a cap of 0."""
    return cap * jnp.tanh(logits / cap) if cap else logits
