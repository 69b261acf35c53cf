"""James-Stein baseline, each prompt left out of its own shrinkage (after arXiv 2511.03710)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._stats import leave_one_out_mean, others, prompt_moments, shrinkage, spread_over_others


def james_stein() -> AdvantageTransform:
    """Aᵢ = rᵢ - (1-λ) · mean of the prompt's other answers - λ · m,  λ = u/(u+s), 0 for 0/0; from other prompts only:
    m the mean of their means, s the variance of those (ddof 0), u the mean of (variance of an answer, ddof 1)/n.

    Unbiased. A prompt with one valid answer gets r - m; the only prompt with a valid answer gets leave-one-out, the
    only answer of a batch its reward. With two prompts s = 0, so λ = 1 wherever u > 0; for few prompts λ is noisy.
    """

    def fn(advantage, rollout):
        mean, variance, there, measured = prompt_moments(advantage, rollout.valid)
        noise = variance / jnp.maximum(masked.count(rollout.valid, axis=-1), 1).astype(advantage.dtype)
        seen, means = others(there), spread_over_others(mean)
        u = masked.mean(spread_over_others(noise), others(measured), axis=-1, keepdims=True)
        share = shrinkage(u, masked.variance(means, seen, axis=-1, ddof=0, keepdims=True))
        own, exists = leave_one_out_mean(advantage, rollout.valid)
        share = jnp.where(exists, share, 1)
        baseline = (1 - share) * jnp.where(exists, own, 0) + share * masked.mean(means, seen, axis=-1, keepdims=True)
        return jnp.where(rollout.valid, advantage - baseline, 0)

    claims = {"batch_wide": True, "needs_iid": True, "keeps_zero": False}
    return stateless(fn, Traits(unbiased="yes", f_prime=lambda p, g: 1.0, **claims))
