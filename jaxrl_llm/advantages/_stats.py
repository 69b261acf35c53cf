"""Means that several baselines share: weighted, of the others, and carried over steps. Nothing here is NaN for 0/0."""

import fractions
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.types import Rollout

Scalars = tuple[Float[Array, ""], ...]


def weighted_mean(
    x: Float[Array, "*S"], weight: Shaped[Array, "*S"], where: Bool[Array, "*S"], axis: int = -1
) -> Float[Array, "..."]:
    """Σ w x / Σ w over the mask, the axis kept; the plain mean where all weights are 0, and 0 where the mask is empty.

    Weights are >= 0; an infinite one counts as a very large one. Like `masked.mean` it is peak + mean(x - peak), so
    that the mean of equal numbers is that number to the last bit.
    """
    # A little below the largest number, whose reciprocal would be flushed to 0.
    weight = jnp.minimum(jnp.where(where, weight, 0).astype(x.dtype), jnp.finfo(x.dtype).max / 256)
    top = jnp.max(weight, axis=axis, keepdims=True, initial=0)
    weight = jnp.where(top > 0, weight / jnp.where(top > 0, top, 1), where.astype(x.dtype))
    peak = jnp.max(jnp.where(where, x, -jnp.inf), axis=axis, keepdims=True, initial=-jnp.inf)
    peak = jax.lax.stop_gradient(jnp.where(jnp.any(where, axis=axis, keepdims=True), peak, 0))
    inside = jnp.where(where, x, jnp.broadcast_to(peak, x.shape)) - peak
    mass = jnp.sum(weight, axis=axis, keepdims=True)
    return peak + jnp.sum(weight * inside, axis=axis, keepdims=True) / jnp.where(mass > 0, mass, 1)


def others(where: Bool[Array, "*S N"]) -> Bool[Array, "*S N N"]:
    """[..., i, j]: j is on the mask and is not i."""
    wide = spread_over_others(where)
    return wide & ~jnp.broadcast_to(jnp.eye(where.shape[-1], dtype=bool), wide.shape)


def spread_over_others(x: Shaped[Array, "*S N"]) -> Shaped[Array, "*S N N"]:
    """[..., i, j] = x[..., j]: what every i sees of the others."""
    return jnp.broadcast_to(x[..., None, :], (*x.shape, x.shape[-1]))


def weighted_credit(
    advantage: Float[Array, "P G"], weight: Shaped[Array, "P G"], valid: Bool[Array, "P G"], leave_one_out: bool
) -> Float[Array, "P G"]:
    """rᵢ - Σⱼ wⱼ rⱼ / Σⱼ wⱼ, over all valid answers to the prompt or over those beside i; 0 where there is no other."""
    if leave_one_out:
        weight, where = spread_over_others(weight), others(valid)
        baseline = weighted_mean(spread_over_others(advantage), weight, where)[..., 0]
        return jnp.where(valid & jnp.any(where, axis=-1), advantage - baseline, 0)
    return jnp.where(valid, advantage - weighted_mean(advantage, weight, valid), 0)


def weighted_baseline(weight, leave_one_out: bool, needs: tuple[str, ...] = ()) -> AdvantageTransform:
    """The transform rᵢ - Σ w r / Σ w with weights `weight(rollout)` [P G], and the claims that hold for any weights."""

    def fn(advantage, rollout):
        return weighted_credit(advantage, weight(rollout), rollout.valid, leave_one_out)

    if leave_one_out:
        claim = {"unbiased": "yes", "needs_iid": True, "f_prime": lambda p, g: 1.0}
    else:
        claim = {"unbiased": "no", "uses_self": True}
    return stateless(fn, Traits(**claim, minimum_group=2, centred=True, needs=needs))


def leave_one_out_mean(
    advantage: Float[Array, "P G"], valid: Bool[Array, "P G"]
) -> tuple[Float[Array, "P G"], Bool[Array, "P 1"]]:
    """Mean of the other valid answers to the prompt, and whether there is one."""
    n = masked.count(valid, axis=-1, keepdims=True)
    mean = masked.mean(advantage, valid, axis=-1, keepdims=True)
    excess = jnp.where(valid, advantage - mean, 0)
    return mean - excess / jnp.maximum(n - 1, 1).astype(advantage.dtype), n > 1


def shrinkage(noise: Float[Array, "*S"], spread: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """λ = noise / (noise + spread), 0 for 0/0: the weight of the common mean. Held constant in differentiation."""
    total = noise + spread
    return jax.lax.stop_gradient(jnp.where(total > 0, noise / jnp.where(total > 0, total, 1), 0))


def prompt_moments(
    advantage: Float[Array, "P G"], valid: Bool[Array, "P G"]
) -> tuple[Float[Array, " P"], Float[Array, " P"], Bool[Array, " P"], Bool[Array, " P"]]:
    """Of each prompt: the mean, the variance of an answer (ddof 1), and whether there is a mean and a variance."""
    n = masked.count(valid, axis=-1)
    mean, variance = masked.mean(advantage, valid, axis=-1), masked.variance(advantage, valid, axis=-1, ddof=1)
    return mean, variance, n > 0, n > 1


def merged(running: Scalars, x: Float[Array, "*S"], where: Bool[Array, "*S"]) -> Scalars:
    """(count, mean, Σ (x - mean)²) of what was seen before and of x over the mask, merged as by Welford and Chan."""
    count, mean, squares = running
    n = masked.count(where).astype(count.dtype)
    fresh, spread = masked.mean(x, where).astype(count.dtype), masked.variance(x, where, ddof=0).astype(count.dtype)
    total = jnp.maximum(count + n, 1)
    step = fresh - mean
    return count + n, mean + step * n / total, squares + n * spread + jnp.square(step) * count * n / total


def tracker_decay(rollout: Rollout, half_life: float, bounds: tuple[float, float], slots: int) -> Float[Array, " S"]:
    """2^(-drift / half_life) within the bounds, by slot: 1 without a valid answer, the least of prompts that share."""
    decay = jnp.clip(jnp.exp2(-jnp.abs(rollout.extras["drift"]) / half_life), *bounds)
    decay = jnp.where(jnp.any(rollout.valid, axis=-1), decay, 1).astype(jnp.float32)
    return jnp.ones(slots, jnp.float32).at[rollout.prompt_id % slots].min(decay)


def slot_total(slots: int, slot: Int[Array, " P"], x: Shaped[Array, " P"]) -> Shaped[Array, " S"]:
    """Σ of x over the prompts of each slot; two prompts of one slot add up, in whatever order they come."""
    return jnp.zeros(slots, x.dtype).at[slot].add(x)


def noise_of_mean(variance: Float[Array, " P"], valid: Bool[Array, "P G"]) -> Float[Array, " P"]:
    """Variance of an answer over the number of valid answers: that of the prompt's mean."""
    return variance / jnp.maximum(masked.count(valid, axis=-1), 1).astype(variance.dtype)


def zeros(n: int) -> Scalars:
    """A state of n float32 scalars."""
    return tuple(jnp.zeros((), jnp.float32) for _ in range(n))


def beta_prior(rate: float, decays: tuple[float, float]) -> tuple[float, float]:
    """α and β of a tracker that has seen nothing: as many observations as the shortest memory, 1/(1 - least decay)."""
    if not 0 <= decays[0] <= decays[1] <= 1 or decays[0] == 1:
        raise ValueError(f"decays must rise from 0 to 1, the least below 1, not {decays[0]} and {decays[1]}")
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be from 0 to 1, not {rate}")
    return rate / (1 - decays[0]), (1 - rate) / (1 - decays[0])


def quantile_rank(level: float) -> Callable[[int], int]:
    """n -> ⌈level · n⌉, the level read as the decimal it is written as: 0.6 · 5 is 3, not a rounding error above."""
    if not 0 < level <= 1:
        raise ValueError(f"level must be above 0 and at most 1, not {level}")
    return lambda n: math.ceil(fractions.Fraction(str(level)) * n)


def quantile_weight(p: float, group: int, rank: int) -> float:
    """1 - C(G-1, c) pᶜ (1-p)^(G-1-c), c = G - rank: the weight on the gradient of p that a quantile baseline keeps."""
    wrong = rank - 1
    return 1 - math.comb(group - 1, wrong) * p ** (group - rank) * (1 - p) ** wrong


def spread_over_roles(x: Shaped[Array, "P G"], roles: int) -> Shaped[Array, "P G R"]:
    """The same number for every role."""
    return jnp.broadcast_to(x[..., None], (*x.shape, roles))


def is_role(role: Int[Array, "P G"], roles: int) -> Bool[Array, "P G R"]:
    """[..., k]: the answer has role k."""
    return spread_over_roles(role, roles) == jnp.arange(roles)[None, None, :]
