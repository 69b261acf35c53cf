"""Weight by the time an answer took (RL for machine learning engineering agents, arXiv 2509.01684)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def duration_weight() -> AdvantageTransform:
    """Aᵢ ← Aᵢ · Δtᵢ / mean of Δt over the valid answers of the batch,  `extras["duration"]` [P G] > 0.

    Answers collected until a deadline over-represent the quick ones as 1/Δt; the weight restores the policy's own
    frequencies, up to a factor. On answers that were all waited for it biases towards the slow ones. Equal durations
    change nothing. No cap: a heavy tail of durations is a heavy tail of weights.
    """

    def fn(advantage, rollout):
        duration = rollout.extras["duration"].astype(advantage.dtype)
        mean = masked.mean(duration, rollout.valid)
        weight = jnp.where(rollout.valid, duration, 0) / jnp.where(mean > 0, mean, 1)
        return jnp.where(rollout.valid, advantage, 0) * weight

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True, needs=("duration",)))
