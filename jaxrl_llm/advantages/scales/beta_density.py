"""Beta normalisation (BNPO, Xiao et al., arXiv 2506.02864; conventions of their released code)."""

import jax.numpy as jnp
from jax.scipy.special import betaln, xlog1py, xlogy

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def beta_density(*, maximum: float = 1e6) -> AdvantageTransform:
    """Aᵢ ← Aᵢ · min(1 / Beta(p; α, β), maximum),  p the mean reward of the prompt's valid answers, rewards in [0, 1].

    α = max(1 + km/3, 1), β = max(1 + k(1-m)/3, 1), k = m(1-m)/v - 1, with m and v (ddof 1) the mean and variance of
    p over the prompts of this batch that have a valid answer. Where p is 0 or 1 the weight is 1: all rewards are
    then equal and a centred advantage is 0. One prompt, or v = 0 (undefined in the released code): weight 1.
    """

    def fn(advantage, rollout):
        present = jnp.any(rollout.valid, axis=-1, keepdims=True)
        p = masked.mean(rollout.reward, rollout.valid, axis=-1, keepdims=True)
        m, v = masked.mean(p, present), masked.variance(p, present, ddof=1)
        k = jnp.where(v > 0, m * (1 - m) / jnp.where(v > 0, v, 1) - 1, 0)
        alpha, beta = jnp.maximum(1 + k * m / 3, 1), jnp.maximum(1 + k * (1 - m) / 3, 1)
        inside = (p > 0) & (p < 1)
        safe = jnp.where(inside, p, 0.5)
        log_weight = betaln(alpha, beta) - xlogy(alpha - 1, safe) - xlog1py(beta - 1, -safe)
        weight = jnp.where(inside, jnp.minimum(jnp.exp(log_weight), maximum), 1).astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage * weight, 0)

    return stateless(fn, Traits(unbiased="no", uses_self=True, minimum_group=2))
