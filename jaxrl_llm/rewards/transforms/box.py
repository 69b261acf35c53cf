"""Rewards of predicted boxes (GUI-G1, arXiv 2505.15810, released code e581fe9). Boxes are x1, y1, x2, y2 in pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Box = Float[Array, "*S 4"]


def hit(prediction: Box, target: Box) -> Bool[Array, "*S"]:
    """1[the centre of the prediction lies in the target, its edges included]."""
    centre = (prediction[..., :2] + prediction[..., 2:]) / 2
    return jnp.all((centre >= target[..., :2]) & (centre <= target[..., 2:]), axis=-1)


def overlap(prediction: Box, target: Box) -> Float[Array, "*S"]:
    """|intersection| / |union|, edges being pixels that belong to the box: a side from a to b is b - a + 1 long.

    A box with a corner on the wrong side has no area. 0 where the union is empty.
    """
    low = jnp.maximum(prediction[..., :2], target[..., :2])
    high = jnp.minimum(prediction[..., 2:], target[..., 2:])
    area = lambda low, high: jnp.prod(jnp.maximum(high - low + 1, 0), axis=-1)  # noqa: E731
    both = area(low, high)
    either = area(prediction[..., :2], prediction[..., 2:]) + area(target[..., :2], target[..., 2:]) - both
    return jnp.where(either > 0, both / jnp.where(either > 0, either, 1), 0)


def harmonic_box(prediction: Box, target: Box, size: Float[Array, "*S 2"]) -> Float[Array, "*S"]:
    """4 / Σₖ 1/xₖ,  xₖ = 1 - |difference of coordinate k| / size of the image along it (width, height).

    0 where some xₖ is 0 or less, as the limit is: no coordinate in the image can make it negative.
    """
    x = 1 - jnp.abs(prediction - target) / jnp.concatenate([size, size], axis=-1)
    inside = jnp.all(x > 0, axis=-1)
    safe = jnp.where(inside[..., None], x, 1)
    return jnp.where(inside, 4 / jnp.sum(1 / safe, axis=-1), 0)


def box_reward(
    prediction: Box,
    target: Box,
    size: Float[Array, "*S 2"],
    *,
    overlap_weight: float = 0.25,
    box_weight: float = 0.125,
) -> Float[Array, "*S"]:
    """hit + overlap_weight · overlap + box_weight · harmonic_box.

    Hit alone shrinks boxes and overlap alone enlarges them: the sum balances two proxies that can be gamed.
    """
    rest = overlap_weight * overlap(prediction, target) + box_weight * harmonic_box(prediction, target, size)
    return hit(prediction, target).astype(prediction.dtype) + rest
