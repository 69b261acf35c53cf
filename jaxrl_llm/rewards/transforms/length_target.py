"""A bonus that grows with the length of the answer up to a target (ToolRL, arXiv 2504.13958, released code 8cee13e)."""

import jax.numpy as jnp

from jaxrl_llm.rewards._base import RewardTransform, cleaned, lengths, stateless, with_reward


def _bonus(rollout, target, scale):
    return rollout.reward + scale * jnp.minimum(lengths(rollout) / target, 1)


def length_target(target: float | int = 512, *, scale: float | int = 1.0) -> RewardTransform:
    """r ← r + scale · min(L / target, 1),  L the acted tokens of the answer.

    The release counts the words of the thought and rounds the quotient to two digits: `tool_calls.thought_length`.
    """
    return stateless(lambda rollout: _bonus(rollout, target, scale))


def length_target_schedule(
    start: float | int = 384, stop: float | int = 640, steps: int = 105, *, scale: float | int = 1.0
) -> RewardTransform:
    """The same with target = start + (stop - start) · t / steps at step t = 0, 1, ...; as released it goes on beyond
    `stop` after `steps` steps. State: t, an int32 scalar.
    """

    def update(rollout, step):
        target = start + (stop - start) * step.astype(jnp.float32) / steps
        return with_reward(rollout, _bonus(cleaned(rollout), target, scale)), step + 1

    return RewardTransform(lambda: jnp.zeros((), jnp.int32), update)
