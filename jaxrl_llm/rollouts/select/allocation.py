"""How many answers each prompt gets, and selectors that keep to it.

    neyman            n ∝ v               minimises Σ v² / n      v: standard deviation of one answer's gradient
    gvm               n ∝ g / sqrt(p)     minimises Σ g² / (n p)  p: rate of right answers, g: norm of their score
    estimated_budget  n ∝ 1 / sqrt(p)     within bounds

The first two want the mean over the answers of *each* prompt, then the mean over prompts: with one mean over all
answers a prompt would weigh as many times as it has answers, and the direction would change. The third wants one mean
over all answers, for that very reason.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import masked
from jaxrl_llm.rollouts.select._gather import first_of, take_answers, with_extras
from jaxrl_llm.rollouts.select.plan import Select
from jaxrl_llm.types import Rollout

HALVINGS = 60  # of the bracket of a scale, on a logarithmic axis: past the last bit of float32


def whole_numbers(
    share: Float[Array, " P"], total: int | Int[Array, ""], exists: Bool[Array, " P"] | None = None
) -> Int[Array, " P"]:
    """n = round(total · share / Σ share), then one more or one less at the largest residuals until Σ n = total.

    A half is rounded to the even number, and of equal residuals the earlier prompt gets more. A share of 0 gets 0
    answers. All shares 0: the same share for every prompt that `exists` (None: all do), our choice, as the released
    code of GVM divides by zero there. No prompt exists: all 0. Shares are not negative; total is below 2²⁴.
    """
    share = share.astype(jnp.promote_types(share.dtype, jnp.float32))
    exists = jnp.ones(share.shape, bool) if exists is None else exists
    share = jnp.where(exists, share, 0)
    share = jnp.where(jnp.any(share > 0), share, exists.astype(share.dtype))
    # The largest share is taken out first, so that neither tiny shares vanish nor huge ones overflow in the sum.
    share = share / jnp.maximum(jnp.max(share, initial=0), jnp.finfo(share.dtype).tiny)
    return _rounded_to(total, total * _normalised(share), share > 0)


def neyman(
    spread: Float[Array, " P"], total: int | Int[Array, ""], exists: Bool[Array, " P"] | None = None
) -> Int[Array, " P"]:
    """n = total · v / Σ v in whole numbers, v = `spread`: the standard deviation of one answer's gradient.

    For 0/1 rewards and score norms that do not depend on the prompt v is sqrt(p (1 - p)) (VIP, arXiv 2602.01601), and
    0 at an estimated rate of 0 or 1, however rough the estimate is; a constant added to v keeps such prompts (SPO's
    sampler adds 0.05). All spreads 0: see `whole_numbers`. Neyman, 1934.
    """
    return whole_numbers(spread, total, exists)


def gvm(
    rate: Float[Array, " P"],
    norm: Float[Array, " P"],
    total: int | Int[Array, ""],
    alpha: float | int = 1e-3,
    beta: float | int = 2.0,
    rate_threshold: float | int | None = None,
    min_accepted: float | int = 0,
    exists: Bool[Array, " P"] | None = None,
) -> Int[Array, " P"]:
    """n ∝ u, u = g / sqrt(p + alpha / p^(beta-1)), in whole numbers with Σ n = total; u = 0 where g = 0 or p = 0.

    p = `rate` of accepted answers, g = `norm`: the mean over a prompt's accepted answers of the norm of the score of
    the whole answer (not its square; 0 where none is accepted). alpha = 0 is the optimum of Σ g² / (n p). g = 1 for
    every prompt is the variant that needs no gradient. Prompts with p > rate_threshold, or that expect fewer than
    min_accepted accepted answers (p · n before rounding), get none, and the others share what they leave.

    A prompt with p = 0 gets nothing until it is estimated anew: alpha holds small rates back, it rescues none. When no
    prompt is left, every one gets the same (see `whole_numbers`). The released code takes the norm over one parameter
    tensor only, and no larger total than the number of answers that p was estimated from; here both are the caller's.
    GVM-RAFT, arXiv 2505.02391.
    """
    dtype = jnp.promote_types(jnp.result_type(rate, norm), jnp.float32)
    rate, norm = rate.astype(dtype), norm.astype(dtype)
    there = (rate > 0) & (norm > 0) & (True if exists is None else exists)
    p = jnp.where(there, rate, 1)
    share = _normalised(jnp.where(there, jnp.where(there, norm, 0) / jnp.sqrt(p + alpha / p ** (beta - 1)), 0))
    keep = p * share * total >= min_accepted
    if rate_threshold is not None:
        keep = keep & (p <= rate_threshold)
    return whole_numbers(jnp.where(keep, share, 0), total, exists)


def estimated_budget(
    rate: Float[Array, " P"],
    minimum: int,
    maximum: int,
    total: int,
    eps: float,
    exists: Bool[Array, " P"] | None = None,
) -> Int[Array, " P"]:
    """n = clip(c / sqrt(rate + eps), minimum, maximum), with c such that Σ n = total (Ada-Est of arXiv 2510.04996).

    Whole numbers as in `whole_numbers`. Σ n is `total` where P·minimum <= total <= P·maximum for the P prompts that
    exist; outside, each of them gets the bound. Prompts that do not exist get 0. eps > 0 keeps a rate of 0 finite.
    minimum, maximum: unverified, the paper's values are known second-hand (4 and 32, at about 8 a prompt). ValueError
    unless 1 <= minimum <= maximum.
    """
    if not 1 <= minimum <= maximum:
        raise ValueError(f"minimum must lie in 1..{max(maximum, 1)}, the maximum, not {minimum}")
    exists = jnp.ones(rate.shape, bool) if exists is None else exists
    weight = jax.lax.rsqrt(jnp.where(exists, rate, 1).astype(jnp.float32) + eps)
    limits = jnp.finfo(weight.dtype)

    def shares(log_scale):
        return jnp.where(exists, jnp.clip(jnp.exp(log_scale) * weight, minimum, maximum), 0)

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        short = jnp.sum(shares(middle)) < total
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    largest = jnp.max(weight, where=exists, initial=limits.tiny)
    smallest = jnp.min(weight, where=exists, initial=limits.max)
    share = shares(jax.lax.fori_loop(0, HALVINGS, halve, (jnp.log(minimum / largest), jnp.log(maximum / smallest)))[1])
    return jnp.where(exists, jnp.clip(_rounded_to(total, share, exists), minimum, maximum), 0)


def keep_budget(keep: int) -> Select:
    """The first extras["budget"] [P] valid answers of each prompt, at most `keep`."""

    def select(pool: Rollout) -> Rollout:
        wanted = pool.valid & (jnp.cumsum(pool.valid, axis=-1) <= pool.extras["budget"][:, None])
        return take_answers(pool, *first_of(wanted, keep))

    return select


def gvm_allocation(
    first: int,
    total: int,
    width: int,
    threshold: float,
    *,
    alpha: float | int = 1e-3,
    beta: float | int = 2.0,
    rate_threshold: float | int | None = None,
    min_accepted: float | int = 0,
) -> Select:
    """[P N T] -> [P width T]: the first `first` valid answers of a prompt say how many of its others are kept.

    An answer is accepted when its reward is above `threshold`. The rate is that of the first answers; the norm is the
    mean of sqrt(extras["energy"] [P N]) over the accepted ones, or 1 for every prompt without that extra. `gvm` makes
    n of them, which is added as extras["budget"] [P]. The first n of the other valid answers are kept; where n is more
    than `width`, or than there are, what is missing is not given to another prompt.

    The answers that are kept say nothing about the estimate, so the mean over them is unbiased for each prompt with
    n > 0. Prompts with n = 0 have no gradient at all: those whose share rounds to 0, and those without an accepted
    first answer (where no prompt has one, all get the same).
    """

    def numbers(pool: Rollout, seen: Bool[Array, "P N"]) -> Int[Array, " P"]:
        accepted = seen & (pool.reward > threshold)
        norm = jnp.ones(pool.valid.shape[0])
        if "energy" in pool.extras:
            energy = jnp.where(accepted, pool.extras["energy"].astype(jnp.float32), 0)
            norm = masked.mean(jnp.sqrt(energy), accepted, axis=-1)
        rate = masked.mean(accepted.astype(jnp.float32), seen, axis=-1)
        return gvm(rate, norm, total, alpha, beta, rate_threshold, min_accepted, jnp.any(seen, axis=-1))

    return _by_the_first(first, width, numbers)


def neyman_allocation(first: int, total: int, width: int, floor: float | int) -> Select:
    """[P N T] -> [P width T]: as `gvm_allocation`, with n ∝ sqrt(p (1 - p)) + floor, for credit of both signs.

    p is the mean reward of the first answers, for rewards in [0, 1]. Without a floor a prompt whose first answers are
    all equal gets none of the others.
    """

    def numbers(pool: Rollout, seen: Bool[Array, "P N"]) -> Int[Array, " P"]:
        rate = jnp.clip(masked.mean(pool.reward.astype(jnp.float32), seen, axis=-1), 0, 1)
        return neyman(jnp.sqrt(rate * (1 - rate)) + floor, total, jnp.any(seen, axis=-1))

    return _by_the_first(first, width, numbers)


def estimated_allocation(first: int, total: int, least: int, most: int, eps: float) -> Select:
    """[P N T] -> [P most T]: as `gvm_allocation`, with n ∝ 1/sqrt(p + eps) between `least` and `most` (Ada-Est).

    p is the mean reward of the first answers, see `estimated_budget`; extras["pool_mean"] [P] is that of the kept ones.
    """

    def numbers(pool: Rollout, seen: Bool[Array, "P N"]) -> Int[Array, " P"]:
        rate = jnp.clip(masked.mean(pool.reward.astype(jnp.float32), seen, axis=-1), 0, 1)
        return estimated_budget(rate, least, most, total, eps, jnp.any(seen, axis=-1))

    def select(pool: Rollout) -> Rollout:
        kept = _by_the_first(first, most, numbers)(pool)
        return with_extras(kept, pool_mean=masked.mean(kept.reward, kept.valid, axis=-1))

    return select


def _by_the_first(first: int, width: int, numbers: Callable[[Rollout, Array], Array]) -> Select:
    """Keep as many of the later answers as `numbers` makes of the `first` valid ones."""

    def select(pool: Rollout) -> Rollout:
        if pool.valid.shape[1] < first + width:
            raise ValueError(f"a pool of {first} + {width} answers or more is needed, not of {pool.valid.shape[1]}")
        seen = pool.valid & (jnp.cumsum(pool.valid, axis=-1) <= first)
        others = dataclasses.replace(pool, valid=pool.valid & ~seen)
        return keep_budget(width)(with_extras(others, budget=numbers(pool, seen)))

    return select


def _rounded_to(total: int | Int[Array, ""], wanted: Float[Array, " P"], where: Bool[Array, " P"]) -> Int[Array, " P"]:
    """`wanted` rounded, then one more or one less at the largest residuals until the sum over `where` is total."""
    rounded = jnp.where(where, jnp.round(wanted), 0).astype(jnp.int32)
    residual = jnp.where(where, wanted - rounded, -jnp.inf)
    # One less at the c smallest residuals of m is one less everywhere and one more at the m - c largest.
    lack = total - jnp.sum(rounded)
    each, left = jnp.divmod(lack, jnp.maximum(masked.count(where), 1))
    place = jnp.argsort(jnp.argsort(-residual, stable=True))
    return jnp.where(where, rounded + each + (place < left), 0)


def _normalised(share: Float[Array, " P"]) -> Float[Array, " P"]:
    """share / Σ share; zeros where all are zero."""
    whole = jnp.sum(share)
    return jnp.where(whole > 0, share / jnp.where(whole > 0, whole, 1), 0)
