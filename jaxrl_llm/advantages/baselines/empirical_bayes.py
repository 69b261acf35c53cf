"""Group mean shrunk to a running mean of all prompts (EBPO, arXiv 2602.05165)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits
from jaxrl_llm.advantages._stats import leave_one_out_mean, merged, noise_of_mean, prompt_moments, shrinkage, zeros


def empirical_bayes(*, leave_one_out: bool) -> AdvantageTransform:
    """Aᵢ = rᵢ - S mₓ - (1-S) μ,  S = 1 - min(noise/v, 1),  mₓ the prompt's mean (of the others, if leave_one_out).

    From earlier batches: μ and v (ddof 0) are mean and variance of prompts' means, noise the mean of (variance of an
    answer, ddof 1)/n. Before two prompts and one pair of answers, and for 0/0, S = 1. Unverified: this ratio and this
    start, which the abstract does not state. Leave-one-out is unbiased; else the scale is 1 - S/G, (G-1)/G at first.
    Without another answer mₓ is μ, 0 at first. State: (count, mean, squared deviations) of means and of noises.
    """

    def update(advantage, state, rollout):
        (prompts, mu, squares), (pairs, noise, _) = state
        mean, variance, there, measured = prompt_moments(advantage, rollout.valid)
        new = merged(state[0], mean, there), merged(state[1], noise_of_mean(variance, rollout.valid), measured)
        share = shrinkage(noise, jnp.maximum(squares / jnp.maximum(prompts, 1) - noise, 0))
        share = jnp.where((prompts > 1) & (pairs > 0), share, 0)
        own, exists = leave_one_out_mean(advantage, rollout.valid) if leave_one_out else (mean[:, None], there[:, None])
        share, mu = jnp.where(exists, share, 1).astype(advantage.dtype), mu.astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage - (1 - share) * own - share * mu, 0), new

    unbiased, scaled = {"unbiased": "yes", "needs_iid": True}, {"unbiased": "scaled", "scale": lambda p, g: (g - 1) / g}
    claim = unbiased if leave_one_out else scaled | {"uses_self": True, "minimum_group": 2}
    return AdvantageTransform(lambda: (zeros(3), zeros(3)), update, Traits(**claim, keeps_zero=False))
