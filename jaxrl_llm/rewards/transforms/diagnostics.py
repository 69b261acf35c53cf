"""Rewards that say nothing, or the wrong thing, of correctness ("Mirage or Method?", arXiv 2508.21188).

`format` is the index of a component in {0, 1} that gates the reward, or None for no gate.
"""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.rewards._base import RewardTransform
from jaxrl_llm.rewards.transforms._gate import gated


def random_reward(probability: float = 0.5, *, format: int | None) -> RewardTransform:
    """r = 1[u < probability] · c_format,  u uniform in [0, 1) from extras "noise" [P G].

    Independent of the answer where the format is: its expected on-policy gradient is then 0, but not under clipping.
    """
    return gated(
        lambda rollout: (rollout.extras["noise"] < probability).astype(rollout.reward.dtype), format, ("noise",)
    )


def inverted(*, accuracy: int = 0, format: int | None) -> RewardTransform:
    """r = (1 - c_accuracy) · c_format: its gradient is minus that of the accuracy where the format never varies."""
    return gated(lambda rollout: 1 - rollout.components[..., accuracy], format, (), accuracy + 1)


def format_only(*, format: int = 1) -> RewardTransform:
    """r = c_format."""
    return gated(lambda rollout: jnp.ones_like(rollout.reward), format)


def mean_log_probability(*, format: int | None = None) -> RewardTransform:
    """r = mean over acted tokens of log π(token): entropy minimisation. 0 for an answer without any.

    0 is the largest value: a gate would give it to the answers that fail it, so there is none unless asked for.
    """
    return gated(lambda rollout: masked.mean(rollout.policy_logp, rollout.acted, axis=-1), format)
