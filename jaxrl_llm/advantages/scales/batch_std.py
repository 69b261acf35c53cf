"""Division by the standard deviation of the rewards of the whole batch (`scale_rewards="batch"` of TRL)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def batch_std(*, ddof: int, eps: float) -> AdvantageTransform:
    """Aᵢ ← Aᵢ / (σ + eps),  σ² = Σ (rⱼ - r̄)² / (N - ddof) over the N valid answers of the batch.

    σ is of the raw rewards, not of the credit that comes in, so it holds the spread between prompts as well. Where
    σ = 0 nothing is divided. `ddof` and `eps` have no default; TRL: 1, 1e-4. One factor for all answers, yet biased:
    σ depends on the same rewards.
    """

    def fn(advantage, rollout):
        sigma = masked.std(rollout.reward, rollout.valid, ddof=ddof).astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage, 0) / jnp.where(sigma > 0, sigma + eps, 1)

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True))
