"""Draw many answers, train on few: [P G' T] -> [P keep T]. An invalid answer is never kept before a valid one."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxrl_llm import masked
from jaxrl_llm.advantages._rates import without_surplus
from jaxrl_llm.rollouts.select._gather import first_of, take_answers, with_extras
from jaxrl_llm.rollouts.select.plan import Select
from jaxrl_llm.types import Rollout


def keep_first(keep: int) -> Select:
    """The first `keep` valid answers: the group that would have been drawn without the others."""
    return lambda pool: take_answers(pool, *first_of(pool.valid, keep))


def keep_random(keep: int) -> Select:
    """A random subset of `keep` valid answers, those with the smallest extras["noise"]: unbiased, as `keep_first` is.
    Of 64 answers a prompt it is the oversampling of T1 (Hou et al., 2025, arXiv 2501.11651)."""

    def select(pool: Rollout) -> Rollout:
        order = jnp.argsort(jnp.where(pool.valid, pool.extras["noise"], jnp.inf), axis=-1)
        return _of_order(pool, order, jnp.arange(order.shape[1])[None] < _number(pool.valid), keep)

    return select


def keep_extremes(keep: int) -> Select:
    """The keep // 2 lowest rewards and the other places for the highest; of equals the earlier answer counts as lower.
    Biased: the expected gradient is another one. With 0/1 rewards and an
    even `keep` the rewards that are kept are those of `max_variance`."""

    def select(pool: Rollout) -> Rollout:
        order = _by_reward(pool)
        low = keep // 2
        return _of_order(pool, order, _ends(_number(pool.valid), order.shape[1], low, keep - low), keep)

    return select


def max_variance(keep: int) -> Select:
    """The subset of `keep` answers with the largest variance of rewards: for some i the i highest and the keep - i
    lowest. Of subsets that tie it takes the one with the fewest high ones; of equals the earlier counts as lower.
    Biased: the expected gradient is another one. PODS, Xu et al., 2025, arXiv 2504.13818.
    """

    def select(pool: Rollout) -> Rollout:
        order = _by_reward(pool)
        n, places = _number(pool.valid), order.shape[1]
        # Variances are compared as keep·Σd² - (Σd)² over distances d from the lowest reward: exact for 0/1 rewards,
        # where subsets tie, and no smaller dtype decides.
        reward = jnp.take_along_axis(pool.reward, order, axis=-1)
        reward = reward.astype(jnp.promote_types(reward.dtype, jnp.float32))
        inside = jnp.arange(places)[None] < n
        distance = jnp.where(inside, jnp.where(inside, reward, 0) - jnp.where(n > 0, reward[:, :1], 0), 0)
        high = jnp.arange(keep + 1)[None, :, None]
        subset = _ends(n[..., None], places, keep - high, high)
        spread = keep * masked.total(jnp.square(distance)[:, None] + 0 * high, subset, axis=-1)
        spread = spread - jnp.square(masked.total(distance[:, None] + 0 * high, subset, axis=-1))
        best = jnp.argmax(spread, axis=-1)[:, None]
        return _of_order(pool, order, _ends(n, places, keep - best, best), keep)

    return select


def drop_surplus_wrong() -> Select:
    """Of wrong answers (reward below the mean of the group) drop those with the least extras["noise"] until no more are
    left than right ones: the same ones to which the weight `red_drop` gives 0.

    The dropped become invalid, so a mean or deviation of the group runs over what is left; the shape stays. They also
    leave the counts of an average: divide by a fixed number where they should go on counting, as in the original.
    With 0/1 rewards, k < G/2 right and the mean of the rest as the baseline the expected credit is G / (2(G-k)) times
    the undropped one. RED-Drop of arXiv 2509.24203.
    """

    def select(pool: Rollout) -> Rollout:
        kept = without_surplus(pool.reward, pool.valid, pool.extras["noise"])
        return dataclasses.replace(pool, valid=kept)

    return select


def keep_one_pair(threshold: float) -> Select:
    """One random right answer (reward above `threshold`), then one random wrong one: [P G T] -> [P 2 T].

    Prompts without both are invalid. Credit comes from the whole group, so its statistics travel with the pair in
    extras: pool_mean and pool_std [P] of the rewards (unbiased; 0 for fewer than two answers) and drawn [P], their
    number n. n/(n-1) · (r - pool_mean) is the leave-one-out credit. For a credit that needs more than these, see
    `mark_one_pair`. Needs extras["noise"]. OREAL, Lyu et al., 2025, arXiv 2502.06781.
    """

    def select(pool: Rollout) -> Rollout:
        index, exist = _one_pair(pool, threshold)
        return with_extras(
            take_answers(pool, index, jnp.broadcast_to(exist[:, None], index.shape)),
            pool_mean=masked.mean(pool.reward, pool.valid, axis=-1),
            pool_std=masked.std(pool.reward, pool.valid, axis=-1, ddof=1),
            drawn=masked.count(pool.valid, axis=-1),
        )

    return select


def mark_one_pair(threshold: float) -> Select:
    """The same pair as `keep_one_pair`, only marked: extras["selected"] [P G] is True for the two answers.

    Credit is taken on the whole rollout, the loss on `drop_unselected` of it.
    """

    def select(pool: Rollout) -> Rollout:
        index, exist = _one_pair(pool, threshold)
        places = jnp.arange(pool.valid.shape[1])
        return with_extras(pool, selected=jnp.any(index[..., None] == places[None, None], axis=1) & exist[:, None])

    return select


def drop_unselected(rollout: Rollout) -> Rollout:
    """Make invalid what extras["selected"] [P G] does not mark; applied once the credit is known."""
    return dataclasses.replace(rollout, valid=rollout.valid & rollout.extras["selected"])


def _one_pair(pool: Rollout, threshold: float) -> tuple[Int[Array, "P 2"], Bool[Array, " P"]]:
    right = pool.valid & (pool.reward > threshold)
    wrong = pool.valid & ~right
    least = [jnp.argmin(jnp.where(of, pool.extras["noise"], jnp.inf), axis=-1) for of in (right, wrong)]
    return jnp.stack(least, axis=-1), jnp.any(right, axis=-1) & jnp.any(wrong, axis=-1)


def _number(valid: Bool[Array, "P N"]) -> Int[Array, "P 1"]:
    return masked.count(valid, axis=-1, keepdims=True)


def _by_reward(pool: Rollout) -> Int[Array, "P N"]:
    """Answers from the lowest reward to the highest, invalid ones last."""
    return jnp.argsort(jnp.where(pool.valid, pool.reward, jnp.inf), axis=-1, stable=True)


def _ends(
    n: Int[Array, "... 1"], places: int, low: int | Int[Array, "..."], high: int | Int[Array, "..."]
) -> Bool[Array, "... N"]:
    """Of n ordered answers the `low` first and the `high` last."""
    place = jnp.arange(places).reshape((1,) * (n.ndim - 1) + (places,))
    return ((place < low) | (place >= n - high)) & (place < n)


def _of_order(pool: Rollout, order: Int[Array, "P N"], wanted: Bool[Array, "P N"], keep: int) -> Rollout:
    """The answers at the wanted places of an order, at most `keep`."""
    place, kept = first_of(wanted, keep)
    return take_answers(pool, jnp.take_along_axis(order, place, axis=-1), kept)
