"""The answer most of the group gave as the right one ("Mirage or Method?", arXiv 2508.21188)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.rewards._base import RewardTransform
from jaxrl_llm.rewards.transforms._gate import gated


def majority_vote(*, format: int | None) -> RewardTransform:
    """r = 1 / m for answers equal to one of the m most frequent of their group, else 0; times c_format.

    Extras "answer_key" [P G] holds integers, equal for equal answers, negative for no answer: those neither vote nor
    win. m > 1 only in a tie, where each winner gets what a fair draw between the winners would pay on average.
    """

    def fn(rollout):
        key = rollout.extras["answer_key"]
        voter = rollout.valid & (key >= 0)
        same = (key[:, :, None] == key[:, None, :]) & voter[:, :, None] & voter[:, None, :]
        votes = masked.count(same, axis=-1)
        most = jnp.max(votes, axis=-1, keepdims=True)
        winner = voter & (votes == most)
        tied = jnp.sum(winner, axis=-1, keepdims=True) // jnp.maximum(most, 1)
        return jnp.where(winner, 1 / jnp.maximum(tied, 1).astype(rollout.reward.dtype), 0)

    return gated(fn, format, ("answer_key",))
