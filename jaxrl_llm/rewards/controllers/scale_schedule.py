"""Reward scales that change with the step (ToolRL, arXiv 2504.13958, released code 8cee13e)."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm.rewards._base import RewardTransform, cleaned, with_reward

Bounds = Callable[[Int[Array, ""]], Float[Array, "2 2"]]


def scale_schedule(bounds: Bounds, *, format: int = 0, correctness: int = 1) -> RewardTransform:
    """r = f₀ + (f₁ - f₀) c_format + q₀ + (q₁ - q₀) c_correctness,  ((f₀, f₁), (q₀, q₁)) = bounds(t), t = 0, 1, ...

    Both components lie in [0, 1]; a correctness of 1/2 is neutral where q₀ = -q₁. Scaling the whole of r changes
    nothing under a group mean and std; scaling its parts against each other does: the format is 1/7 of the range with
    `tool_bounds` and 1/3 with `tool_bounds(1)`. State: t, an int32 scalar.
    """

    needed = max(format, correctness) + 1

    def update(rollout, step):
        c = cleaned(rollout, needed).components
        (f0, f1), (q0, q1) = (tuple(pair) for pair in bounds(step).astype(c.dtype))
        reward = f0 + (f1 - f0) * c[..., format] + q0 + (q1 - q0) * c[..., correctness]
        return with_reward(rollout, reward), step + 1

    return RewardTransform(lambda: jnp.zeros((), jnp.int32), update, components=needed)


def tool_bounds(correctness: float | int = 3.0) -> Bounds:
    """Format in [0, 1] and correctness in ±`correctness` at every step; 1 is the variant of equal scales."""
    return lambda step: jnp.asarray([[0, 1], [-correctness, correctness]], jnp.float32)


def two_stage_bounds(switch: int = 30) -> Bounds:
    """Format in [0, 1] and correctness in ±1 before step `switch`; from then on [0, 1/2] and ±3."""
    early, late = [[0, 1], [-1, 1]], [[0, 0.5], [-3, 3]]
    return lambda step: jnp.where(step < switch, jnp.asarray(early, jnp.float32), jnp.asarray(late, jnp.float32))


def smooth_bounds(steps: int = 150) -> Bounds:
    """At s = t / steps: format from max(-2 + 2s, low) to 2 - s, correctness ±(2 + s), each held from its last value on.

    As released: the lower bound of the format reaches its last value -1 at s = 1/2, twice as fast as the upper its 1.
    """

    def bounds(step):
        s = jnp.minimum(step.astype(jnp.float32) / steps, 1)
        return jnp.stack([jnp.stack([jnp.minimum(2 * s, 1) - 2, 2 - s]), jnp.stack([-2 - s, 2 + s])])

    return bounds
