"""A bonus for the shortest right answer of a group (Observe-R1, arXiv 2505.12432, released code f09c1e4)."""

import jax.numpy as jnp

from jaxrl_llm.rewards._base import RewardTransform, lengths, stateless


def _correct(rollout, among):
    """Right answers: component `among` at least 1, or the whole part of the reward at least 1 where it is None."""
    value = rollout.reward if among is None else rollout.components[..., among]
    return rollout.valid & (value >= 1)


def shortest_correct_bonus(
    bonus: float | int = 0.2, longer_than: int = 100, among: int | None = None
) -> RewardTransform:
    """r ← r + bonus / m  for the m shortest right answers of the group, if they are longer than `longer_than` tokens.

    m > 1 only where lengths tie: they share, so that the order of the answers does not matter. A group without a right
    answer gets nothing. Right means component `among` >= 1, or r >= 1 where it is None.
    """

    def fn(rollout):
        length, correct = lengths(rollout), _correct(rollout, among)
        shortest = jnp.min(jnp.where(correct, length, jnp.inf), axis=-1, keepdims=True)
        paid = correct & (length == shortest) & (length > longer_than)
        winners = jnp.maximum(jnp.sum(paid, axis=-1, keepdims=True), 1).astype(length.dtype)
        return rollout.reward + jnp.where(paid, bonus / winners, 0)

    return stateless(fn, components=0 if among is None else among + 1)


def shortest_correct_bonus_released(
    bonus: float | int = 0.2, longer_than: int = 100, among: int | None = None
) -> RewardTransform:
    """As released: the first of the shortest right answers, and in a group without one the first valid answer.

    There all masked lengths are infinite, the index of the smallest is 0, and infinity is longer than any threshold.
    The order of the answers matters. Use it to reproduce the release only.
    """

    def fn(rollout):
        length, correct = lengths(rollout), _correct(rollout, among)
        longest = rollout.acted.shape[-1]
        order = jnp.where(correct, length, jnp.where(rollout.valid, longest + 1, longest + 2))
        first = jnp.arange(order.shape[-1])[None] == jnp.argmin(order, axis=-1, keepdims=True)
        return rollout.reward + jnp.where(first & (~correct | (length > longer_than)), bonus, 0)

    return stateless(fn, components=0 if among is None else among + 1)
