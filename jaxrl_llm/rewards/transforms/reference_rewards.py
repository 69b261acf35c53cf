"""Reference rewards by prompt, from the rewards of reference answers (arXiv 2402.00742: the 85th percentile)."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import masked


def quantile_reference(
    reward: Float[Array, "P N"], where: Bool[Array, "P N"], *, quantile: float = 0.85
) -> Float[Array, " P"]:
    """r_ref(x): a quantile of the rewards of N reference answers to each prompt, linear between order statistics.

    Entries off the mask may hold anything; a prompt without a reference answer has r_ref = 0.
    """
    n = masked.count(where, axis=-1, keepdims=True)
    ordered = jnp.sort(jnp.where(where, reward, jnp.inf), axis=-1)
    place = quantile * jnp.maximum(n - 1, 0).astype(jnp.promote_types(reward.dtype, jnp.float32))
    below = jnp.floor(place).astype(jnp.int32)
    low, high = (jnp.take_along_axis(ordered, jnp.minimum(i, jnp.maximum(n - 1, 0)), -1) for i in (below, below + 1))
    some = n > 0
    low, high = jnp.where(some, low, 0), jnp.where(some, high, 0)
    return (low + (high - low) * (place - below).astype(reward.dtype))[:, 0]


def gaussian_reference(
    reward: Float[Array, "P N"], where: Bool[Array, "P N"], *, ddof: int, deviations: float = 1.0364
) -> Float[Array, " P"]:
    """r_ref(x) = mean + deviations · std of the rewards of N reference answers; Φ(1.0364) = 0.85.

    A prompt with one reference answer has its reward as r_ref, one without any has 0.
    """
    return masked.mean(reward, where, axis=-1) + deviations * masked.std(reward, where, axis=-1, ddof=ddof)
