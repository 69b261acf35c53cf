"""Beta normalisation (BNPO, Xiao et al., arXiv 2506.02864; conventions of their released code)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import inverse_fitted_density


def beta_density(*, maximum: float = 1e6) -> AdvantageTransform:
    """Aᵢ ← Aᵢ · min(1 / Beta(p; α, β), maximum),  p the mean reward of the prompt's valid answers, rewards in [0, 1].

    α = max(1 + km/3, 1), β = max(1 + k(1-m)/3, 1), k = m(1-m)/v - 1; m and v (ddof 1) are of p over the prompts with a
    valid answer. The weight is 1 where p is 0 or 1, and where v <= 1e-6 m(1-m): one prompt, or v = 0 but for rounding.
    """

    def fn(advantage, rollout):
        weight = inverse_fitted_density(rollout.reward, rollout.valid, maximum).astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage, 0) * weight

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True, domain="unit"))
