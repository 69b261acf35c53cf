"""Beta normalisation (BNPO, Xiao et al., arXiv 2506.02864; conventions of their released code)."""

import jax.numpy as jnp
from jax.scipy.special import betaln, xlog1py, xlogy

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def beta_density(*, maximum: float = 1e6) -> AdvantageTransform:
    """Aᵢ ← Aᵢ · min(1 / Beta(p; α, β), maximum),  p the mean reward of the prompt's valid answers, rewards in [0, 1].

    α = max(1 + km/3, 1), β = max(1 + k(1-m)/3, 1), k = m(1-m)/v - 1; m and v (ddof 1) are of p over the prompts with a
    valid answer. The weight is 1 where p is 0 or 1, and where v <= 1e-6 m(1-m): one prompt, or v = 0 but for rounding.
    """

    def fn(advantage, rollout):
        present = jnp.any(rollout.valid, axis=-1, keepdims=True)
        p = masked.mean(rollout.reward, rollout.valid, axis=-1, keepdims=True)
        m, v = masked.mean(p, present), masked.variance(p, present, ddof=1)
        apart = v > 1e-6 * jnp.maximum(m * (1 - m), 0)
        k = jnp.where(apart, m * (1 - m) / jnp.where(apart, v, 1) - 1, 0)
        alpha, beta = jnp.maximum(1 + k * m / 3, 1), jnp.maximum(1 + k * (1 - m) / 3, 1)
        inside = (p > 0) & (p < 1)
        safe = jnp.where(inside, p, 0.5)
        log_weight = betaln(alpha, beta) - xlogy(alpha - 1, safe) - xlog1py(beta - 1, -safe)
        weight = jnp.where(inside, jnp.exp(jnp.minimum(log_weight, jnp.log(maximum))), 1).astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage * weight, 0)

    return stateless(fn, Traits(unbiased="no", uses_self=True))
