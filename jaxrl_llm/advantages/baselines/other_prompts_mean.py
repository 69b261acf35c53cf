"""Mean of the other prompts' answers as the baseline (own derivation)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._stats import others, spread_over_others, weighted_mean


def other_prompts_mean() -> AdvantageTransform:
    """Aᵢ = rᵢ - mean of r over all valid answers to the other prompts.

    Unbiased, also for answers of one prompt that were not drawn independently. Its error is the spread of the prompts'
    means. A batch of one prompt (others without a valid answer count as absent) has no baseline and gets 0.
    """

    def fn(advantage, rollout):
        n = masked.count(rollout.valid, axis=-1)
        means = masked.mean(advantage, rollout.valid, axis=-1)
        there = others(n > 0)
        baseline = weighted_mean(spread_over_others(means), spread_over_others(n), there)
        return jnp.where(rollout.valid & jnp.any(there, axis=-1, keepdims=True), advantage - baseline, 0)

    return stateless(fn, Traits(unbiased="yes", batch_wide=True, minimum_prompts=2, keeps_zero=False))
