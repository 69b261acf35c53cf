"""Division by the standard deviation of the group's rewards (GRPO, Shao et al., 2024)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def group_std(*, ddof: int, eps: float) -> AdvantageTransform:
    """Aᵢ ← Aᵢ / (σ + eps),  σ² = Σ (rⱼ - r̄)² / (n - ddof) over the n valid answers to the prompt.

    σ is of the rewards, whatever was subtracted before. Where σ = 0 (a group of one, an all-equal group, n <= ddof)
    nothing is divided, so a centred advantage of 0 stays 0. `ddof` and `eps` differ between libraries and have no
    default: TRL 1, 1e-4; verl 1, 1e-6; open-instruct 0, 1e-8. Biased: prompts near p = 0 and p = 1 are weighed up.
    """

    def fn(advantage, rollout):
        sigma = masked.std(rollout.reward, rollout.valid, axis=-1, ddof=ddof, keepdims=True).astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage, 0) / jnp.where(sigma > 0, sigma + eps, 1)

    return stateless(fn, Traits(unbiased="no", uses_self=True))
