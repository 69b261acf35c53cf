"""Attention of an answer's tokens over the prompt that its group shares and over its own past."""

from typing import Literal

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
    lone, alone = s == 1, s == 1 and g == 1
    if alone:
        far = _scores_of_one(q, prefix[0][:, None])
    else:
        far = jnp.einsum("pgskrd,plkd->pgkrsl", q, prefix[0], preferred_element_type=jnp.float32)
    if lone:
        near = _scores_of_one(q, own[0])
    else:
        near = jnp.einsum("pgskrd,pgtkd->pgkrst", q, own[0], preferred_element_type=jnp.float32)
    far, near = capped(far, cap), capped(near, cap)
    far = jnp.where(prefix_mask[:, :, None, None, :, :], far, NEVER)
    near = jnp.where(own_mask[:, :, None, None, :, :], near, NEVER)
    weights = jax.nn.softmax(jnp.concatenate([far, near], axis=-1), axis=-1).astype(query.dtype)
    split = far.shape[-1]
    if alone:
        out = _sum_of_one(weights[..., :split], prefix[1][:, None])
    else:
        out = jnp.einsum("pgkrsl,plkd->pgskrd", weights[..., :split], prefix[1])
    if lone:
        out = out + _sum_of_one(weights[..., split:], own[1])
    else:
        out = out + jnp.einsum("pgkrst,pgtkd->pgskrd", weights[..., split:], own[1])
    return out.reshape(query.shape)


# With one query an answer a contraction has next to nothing to reuse, and XLA on CPU transposes all keys and values for
# it. Multiplied and summed as they lie they are read once: half the time.


def _scores_of_one(
    query: Float[Array, "P G 1 Hk R D"], keys: Float[Array, "P G T Hk D"]
) -> Float[Array, "P G Hk R 1 T"]:
    """Products of one query an answer, as it may be for several heads, and keys of its own; float32."""
    products = query.astype(jnp.float32) * keys[:, :, :, :, None, :].astype(jnp.float32)
    return jnp.transpose(jnp.sum(products, axis=-1), (0, 1, 3, 4, 2))[:, :, :, :, None, :]


def _sum_of_one(
    weights: Float[Array, "P G Hk R 1 T"], values: Float[Array, "P G T Hk D"]
) -> Float[Array, "P G 1 Hk R D"]:
    """Weighted values of its own for one query an answer, in their type; summed in float32."""
    weights = jnp.transpose(weights[:, :, :, :, 0], (0, 1, 4, 2, 3))[..., None].astype(jnp.float32)
    total = jnp.sum(weights * values[:, :, :, :, None, :].astype(jnp.float32), axis=2)
    return total[:, :, None].astype(values.dtype)


def attend_by(
    implementation: Literal["xla", "cudnn"],
    query: Float[Array, "P G S Hq D"],
    own: tuple[Float[Array, "P G S Hk D"], Float[Array, "P G S Hk D"]],
    own_mask: Bool[Array, "#P #G S S"],
    prefix: tuple[Float[Array, "P L Hk D"], Float[Array, "P L Hk D"]],
    prefix_mask: Bool[Array, "P #G #S L"],
    *,
    scale: float,
) -> Float[Array, "P G S Hq D"]:
    """As `attend` without a cap, by `jax.nn.dot_product_attention`, each answer with a copy of its prompt's keys.

    cudnn keeps no weights [S L+T] for the backward pass. Raises RuntimeError for it where the default device is no GPU;
    what else a GPU cannot do, jax says.
    """
    if implementation == "cudnn" and jax.default_backend() != "gpu":
        raise RuntimeError(
            f"attention=cudnn needs an NVIDIA GPU, and this program is for a device of kind {jax.default_backend()}: "
            "take attention=xla"
        )
    p, g, s, heads, size = query.shape
    length = prefix_mask.shape[-1]

    def together(before, own):
        before = jnp.broadcast_to(before[:, None], (p, g, *before.shape[1:]))
        return jnp.concatenate([before, own], axis=2).reshape(p * g, length + s, *own.shape[3:])

    masks = (jnp.broadcast_to(x, (p, g, s, x.shape[-1])) for x in (prefix_mask, own_mask))
    key, value = (together(x, y) for x, y in zip(prefix, own, strict=True))
    out = jax.nn.dot_product_attention(
        query.reshape(p * g, s, heads, size),
        key,
        value,
        mask=jnp.concatenate(list(masks), axis=-1).reshape(p * g, 1, s, length + s),
        scale=scale,
        implementation=implementation,
    )
    return out.reshape(query.shape)


def capped(logits: Float[Array, "*B"], cap: float) -> Float[Array, "*B"]:
    """cap tanh(logits/cap); unchanged for a cap of 0."""
    return cap * jnp.tanh(logits / cap) if cap else logits
