"""Sums, means, deviations and ranks over the entries where a mask is True. Every guard against 0/0 lives here.

All take `x` of any shape, a mask `where` of the same shape, and an axis or axes. Entries off the mask may hold
anything, NaN included; they change neither the value nor the gradient. The statistic of no entries is 0.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Axis = int | tuple[int, ...] | None


def total(
    x: Float[Array, "*S"], where: Bool[Array, "*S"], axis: Axis = None, keepdims: bool = False
) -> Float[Array, "..."]:
    """Σ x over the mask."""
    return jnp.sum(jnp.where(where, x, 0), axis=axis, keepdims=keepdims)


def count(where: Bool[Array, "..."], axis: Axis = None, keepdims: bool = False) -> Int[Array, "..."]:
    """Number of True entries."""
    return jnp.sum(where, axis=axis, keepdims=keepdims, dtype=jnp.int32)


def mean(
    x: Float[Array, "*S"], where: Bool[Array, "*S"], axis: Axis = None, keepdims: bool = False
) -> Float[Array, "..."]:
    """Mean of x over the mask; 0 where the mask is empty.

    It is taken as max + mean(x - max), so that the mean of equal numbers is that number to the last bit, and a group
    whose rewards are all equal has advantages of exactly 0 rather than of rounding noise.
    """
    n = count(where, axis, keepdims=True)
    peak = jnp.max(jnp.where(where, x, -jnp.inf), axis=axis, keepdims=True, initial=-jnp.inf)
    peak = jax.lax.stop_gradient(jnp.where(n > 0, peak, 0))
    inside = jnp.where(where, x, jnp.broadcast_to(peak, x.shape)) - peak
    value = peak + jnp.sum(inside, axis=axis, keepdims=True) / jnp.maximum(n, 1).astype(x.dtype)
    return value if keepdims else jnp.squeeze(value, axis=axis if axis is not None else tuple(range(x.ndim)))


def variance(
    x: Float[Array, "*S"], where: Bool[Array, "*S"], axis: Axis = None, *, ddof: int, keepdims: bool = False
) -> Float[Array, "..."]:
    """Σ (x - mean)² / (n - ddof) over the mask; 0 where n <= ddof."""
    centred = jnp.where(where, x, 0) - jnp.where(where, mean(x, where, axis, keepdims=True), 0)
    n = count(where, axis, keepdims)
    squares = jnp.sum(jnp.square(centred), axis=axis, keepdims=keepdims)
    return jnp.where(n > ddof, squares / jnp.maximum(n - ddof, 1).astype(x.dtype), 0)


def std(
    x: Float[Array, "*S"], where: Bool[Array, "*S"], axis: Axis = None, *, ddof: int, keepdims: bool = False
) -> Float[Array, "..."]:
    """Square root of `variance`, with gradient 0 (not infinite) where the variance is 0."""
    v = variance(x, where, axis, ddof=ddof, keepdims=keepdims)
    return jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1)), 0)


def kth_smallest(x: Float[Array, "*S"], where: Bool[Array, "*S"], k: Int[Array, ""]) -> Float[Array, ""]:
    """x₍ₖ₎, the k-th smallest entry of the mask, k from 1, as a sort of all of them has it; NaN where k > n. Detached.

    NaN of either sign is the largest number. The bits of x₍ₖ₎ are found one by one, from the highest: the bit is 1
    where fewer than k entries are below the number that has it. That is a pass over x for each bit of its type, which
    for large x costs far less than a sort.
    """
    x = jax.lax.stop_gradient(x)
    bits = jnp.finfo(x.dtype).bits
    key = _ordered(x)
    top = jnp.asarray(jnp.iinfo(key.dtype).min, key.dtype)

    def settle(i, found):
        larger = found | (jnp.ones((), key.dtype) << (bits - 1 - i).astype(key.dtype))
        # `found` grows from 0 as an unsigned number; with the highest bit turned it compares as a signed one.
        below = count(where & (key < larger ^ top))
        return jnp.where(below < k, larger, found)

    found = jax.lax.fori_loop(0, bits, settle, jnp.zeros((), key.dtype)) ^ top
    return jax.lax.bitcast_convert_type(_turned(found), x.dtype)


def _ordered(x):
    """Integers of the same width in the same order; NaN above all."""
    x = jnp.where(jnp.isnan(x), jnp.nan, x)  # of one sign
    return _turned(jax.lax.bitcast_convert_type(x, f"int{jnp.finfo(x.dtype).bits}"))


def _turned(i):
    """The bits of a float are in order as they are, but for those of negative numbers, which are in reverse order."""
    return jnp.where(i < 0, i ^ int(jnp.iinfo(i.dtype).max), i)
