"""Reinforce-Ada: draw answers in rounds until a prompt has what it needs, keep a fixed number of them.

arXiv 2510.04996. The selectors here see the whole pool of rounds · round_size answers in the order of drawing, find the
round after which the sequential procedure would have stopped, and never look at what lies behind it. So a pool drawn
at once and a pool from `rollouts.rounds.draw_in_rounds`, which really stops, give the same rollout.

An answer is right when its reward is above `threshold`, else wrong; one that is invalid was not drawn. Kept are the
earliest keep // 2 right answers and the earliest wrong ones up to `keep`; a class that is short is topped up from the
other. A prompt that never stops is kept too, by the same rule, so an all-wrong pool still takes `keep` rows. With fewer
than `keep` answers all are kept and the other slots are invalid.

Selectors add to `extras` the statistics of *every* answer drawn, kept or not, the whole last round included:

    pool_mean [P]  rate of right answers; 0 for a pool of one answer or none
    pool_std  [P]  unbiased standard deviation of the labels 0/1, at least 1e-6; 1 for a pool of one answer or none
    drawn     [P]  number of answers drawn

Stopping on the rewards biases pool_mean towards 1/2 (`balanced`) or upwards (`positive_first`), and the kept answers
are the earliest, not random ones: credit from them is no unbiased estimate of the gradient of the pass rate.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import masked
from jaxrl_llm.rollouts.select._gather import first_of, take_answers, with_extras
from jaxrl_llm.rollouts.select.plan import Select
from jaxrl_llm.types import Rollout

Exit = Callable[[Int[Array, "*S"], Int[Array, "*S"]], Bool[Array, "*S"]]
SMALLEST_STD = 1e-6


def enough_of_both(keep: int) -> Exit:
    """Stop with keep // 2 right answers and keep - keep // 2 wrong ones."""
    return lambda right, wrong: (right >= keep // 2) & (wrong >= keep - keep // 2)


def enough_right(count: int) -> Exit:
    """Stop with `count` right answers."""
    return lambda right, wrong: right >= count


def balanced(keep: int, round_size: int, rounds: int, threshold: float = 0.7) -> Select:
    """Stop once a balanced group can be kept. Weight on ∇p with credit r - pool_mean and many answers:
    ((1-p)² + p²) / (2p(1-p)), so hard and easy prompts both weigh more; 1 at p = 1/2."""
    return _selector(enough_of_both(keep), keep, round_size, rounds, threshold)


def positive_first(keep: int, round_size: int, rounds: int, threshold: float = 0.7) -> Select:
    """Stop at the first right answer."""
    return _selector(enough_right(1), keep, round_size, rounds, threshold)


def until_positives(count: int, keep: int, round_size: int, rounds: int, threshold: float = 0.7) -> Select:
    """Stop at `count` right answers (Ada-Seq of the paper's third version): E[drawn] is about count / p, which brings
    the weight 1/p of the objective log p. Adds the extra inverse_rate [P], see `inverse_rate`."""
    select = _selector(enough_right(count), keep, round_size, rounds, threshold)

    def with_rate(pool: Rollout) -> Rollout:
        return with_extras(select(pool), inverse_rate=inverse_rate(pool.reward, pool.valid, count, threshold))

    return with_rate


def count_classes(
    reward: Float[Array, "P N"], valid: Bool[Array, "P N"], threshold: float
) -> tuple[Int[Array, " P"], Int[Array, " P"]]:
    """Numbers of right and of wrong answers: what an exit rule asks for, for the `done` of `draw_in_rounds`."""
    right = valid & (reward > threshold)
    return masked.count(right, axis=-1), masked.count(valid & ~right, axis=-1)


def inverse_rate(
    reward: Float[Array, "P N"], valid: Bool[Array, "P N"], count: int, threshold: float
) -> Float[Array, " P"]:
    """(K - 1) / (n - 1), where the K-th right answer is draw number n; k / N where only k < K of all N are right.

    Unbiased for the pass rate although the drawing stops on the rewards, the bound N included (Haldane 1945; Girshick,
    Mosteller and Savage 1946). For K = 1 it is 1 when the first draw is right, else 0. No answers: 0. Answers after
    the K-th right one change nothing, so the size of the rounds does not matter.
    """
    right = valid & (reward > threshold)
    before = jnp.cumsum(right, axis=-1) - right
    n = masked.count(valid & (before < count), axis=-1).astype(reward.dtype)
    found = masked.count(right, axis=-1).astype(reward.dtype)
    stopped = jnp.where(n > 1, (count - 1) / jnp.maximum(n - 1, 1), 1)
    return jnp.where(found >= count, stopped, found / jnp.maximum(n, 1)).astype(reward.dtype)


def _selector(exit_rule: Exit, keep: int, round_size: int, rounds: int, threshold: float) -> Select:
    def select(pool: Rollout) -> Rollout:
        p, n = pool.reward.shape
        if n != rounds * round_size:
            raise ValueError(f"a pool of {rounds} rounds of {round_size} answers is needed, not of {n} answers")
        right = pool.valid & (pool.reward > threshold)
        by_round = (p, rounds, round_size)
        seen_right = jnp.cumsum(jnp.sum(right.reshape(by_round), axis=-1), axis=-1)
        seen_wrong = jnp.cumsum(jnp.sum((pool.valid & ~right).reshape(by_round), axis=-1), axis=-1)
        stops = exit_rule(seen_right, seen_wrong)
        # A round runs when no round before it stopped: counts never fall, so neither does `stops`.
        runs = jnp.concatenate([jnp.ones((p, 1), bool), ~stops[:, :-1]], axis=1)
        drawn = pool.valid & jnp.repeat(runs, round_size, axis=1)
        right = right & drawn
        index, kept = first_of(_earliest(right, drawn & ~right, keep), keep)
        return with_extras(take_answers(pool, index, kept), **_statistics(right, drawn, pool.reward.dtype))

    return select


def _earliest(right: Bool[Array, "P N"], wrong: Bool[Array, "P N"], keep: int) -> Bool[Array, "P N"]:
    """The earliest keep // 2 right answers and the earliest wrong ones up to `keep`; a short class is topped up."""
    n_right, n_wrong = masked.count(right, -1, keepdims=True), masked.count(wrong, -1, keepdims=True)
    keep_right = jnp.minimum(n_right, jnp.maximum(keep // 2, keep - n_wrong))
    first_right = right & (jnp.cumsum(right, axis=-1) <= keep_right)
    return first_right | (wrong & (jnp.cumsum(wrong, axis=-1) <= keep - keep_right))


def _statistics(right: Bool[Array, "P N"], drawn: Bool[Array, "P N"], dtype: jnp.dtype) -> dict[str, Array]:
    label, n = right.astype(dtype), masked.count(drawn, axis=-1)
    std = jnp.maximum(masked.std(label, drawn, axis=-1, ddof=1), SMALLEST_STD).astype(dtype)
    return {
        "pool_mean": jnp.where(n > 1, masked.mean(label, drawn, axis=-1), 0),
        "pool_std": jnp.where(n > 1, std, 1),
        "drawn": n,
    }
