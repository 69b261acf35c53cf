"""A ladder of credit for answers that solve nothing yet (ML-engineering agents, arXiv 2509.01684)."""

import jax.numpy as jnp

from jaxrl_llm.rewards._base import RewardTransform, stateless


def partial_credit(
    failure: float | int = -10.0, per_mark: float = 0.1, *, solved: int = 0, score: int = 1, marks: int = 2
) -> RewardTransform:
    """r = c_score where c_solved > 0, else failure + per_mark · c_marks.

    c_marks counts the marks of progress that the answer reached (7 in the paper); c_score is about -1 to 1, higher is
    better, and may hold anything, NaN too, where nothing was solved.
    """

    def fn(rollout):
        c = rollout.components
        return jnp.where(c[..., solved] > 0, c[..., score], failure + per_mark * c[..., marks])

    return stateless(fn, components=max(solved, score, marks) + 1)
