"""Mean of all other answers of the batch as the baseline (Kool et al., 2019, over a batch in place of a group)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def batch_leave_one_out() -> AdvantageTransform:
    """Aᵢ = rᵢ - mean of r over the other valid answers to all prompts = N/(N-1) · (rᵢ - r̄), N valid answers in all.

    Unbiased. The only answer of a batch has no baseline and keeps its reward, which is unbiased too.
    """

    def fn(advantage, rollout):
        n = masked.count(rollout.valid)
        mean = masked.mean(advantage, rollout.valid, axis=(0, 1), keepdims=True)
        scale = n.astype(advantage.dtype) / jnp.maximum(n - 1, 1).astype(advantage.dtype)
        return jnp.where(rollout.valid, jnp.where(n > 1, (advantage - mean) * scale, advantage), 0)

    return stateless(
        fn, Traits(unbiased="yes", batch_wide=True, needs_iid=True, keeps_zero=False, f_prime=lambda p, g: 1.0)
    )
