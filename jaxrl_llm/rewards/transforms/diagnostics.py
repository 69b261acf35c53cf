"""Rewards that say nothing, or the wrong thing, of correctness ("Mirage or Method?", arXiv 2508.21188).

`format` is the index of a component in {0, 1} that gates the reward, or None for no gate.
"""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.rewards._base import RewardTransform, stateless


def _gated(fn, format, needs=(), components=0):
    gate = (lambda rollout: 1) if format is None else (lambda rollout: rollout.components[..., format])
    needed = max(components, 0 if format is None else format + 1)
    return stateless(lambda rollout: fn(rollout) * gate(rollout), needs=needs, components=needed)


def random_reward(probability: float = 0.5, *, format: int | None) -> RewardTransform:
    """r = 1[u < probability] · c_format,  u uniform in [0, 1) from extras "noise" [P G].

    Independent of the answer where the format is: its expected on-policy gradient is then 0, but not under clipping.
    """
    return _gated(
        lambda rollout: (rollout.extras["noise"] < probability).astype(rollout.reward.dtype), format, ("noise",)
    )


def inverted(*, accuracy: int = 0, format: int | None) -> RewardTransform:
    """r = (1 - c_accuracy) · c_format: its gradient is minus that of the accuracy where the format never varies."""
    return _gated(lambda rollout: 1 - rollout.components[..., accuracy], format, (), accuracy + 1)


def format_only(*, format: int = 1) -> RewardTransform:
    """r = c_format."""
    return _gated(lambda rollout: jnp.ones_like(rollout.reward), format)


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

    return _gated(fn, format, ("answer_key",))


def mean_log_probability(*, format: int | None = None) -> RewardTransform:
    """r = mean over acted tokens of log π(token): entropy minimisation. 0 for an answer without any.

    0 is the largest value: a gate would give it to the answers that fail it, so there is none unless asked for.
    """
    return _gated(lambda rollout: masked.mean(rollout.policy_logp, rollout.acted, axis=-1), format)
