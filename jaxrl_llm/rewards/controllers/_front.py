"""Hypervolumes of small fronts, all objectives to be made large, with fixed shapes."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def hypervolume(points: Float[Array, "C K"], where: Bool[Array, " C"], reference: Float[Array, " K"]):
    """Volume of the union of the boxes between the reference and each point, K <= 3, O(C^(K-1) log C).

    A point that is not better than the reference in every objective adds nothing. Slicing without that cut lets a
    point below the reference in the last objective add a negative volume: (0.5, -0.2) would add -0.1.
    """
    if points.shape[-1] > 3:
        raise ValueError(f"hypervolume knows up to 3 objectives, not {points.shape[-1]}")
    return _volume(_sides(points, where, reference))


def contribution(
    point: Float[Array, " K"],
    points: Float[Array, "C K"],
    where: Bool[Array, " C"],
    reference: Float[Array, " K"],
) -> Float[Array, ""]:
    """HV(front + point) - HV(front): the box of the point less what the front covers of it.

    Exactly 0 where a point of the front is at least as good in every objective.
    """
    own = jnp.maximum(point - reference, 0)
    others = _sides(points, where, reference)
    dominated = jnp.any(jnp.all(others >= own[None], axis=-1))
    gain = jnp.prod(own) - _volume(jnp.minimum(others, own[None]))
    return jnp.where(dominated, 0, jnp.maximum(gain, 0))


def _sides(points, where, reference):
    """Sides of the boxes [C K]; none at all for a point that is off the mask or not inside in every objective."""
    sides = points - reference[None]
    inside = where & jnp.all(sides > 0, axis=-1)
    return jnp.where(inside[:, None], sides, 0)


def _volume(sides):
    """Volume of a union of boxes with one corner at the origin, by slices along the last axis."""
    if sides.shape[-1] == 1:
        return jnp.max(sides[:, 0], initial=0)
    sides = sides[jnp.argsort(-sides[:, -1])]
    height = sides[:, -1] - jnp.append(sides[1:, -1], 0)
    if sides.shape[-1] == 2:
        return jnp.sum(height * jax.lax.cummax(sides[:, 0]))
    index = jnp.arange(sides.shape[0])
    area = jax.vmap(lambda last: _volume(jnp.where((index <= last)[:, None], sides[:, :-1], 0)))(index)
    return jnp.sum(height * area)
