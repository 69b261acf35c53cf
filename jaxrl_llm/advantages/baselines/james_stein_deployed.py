"""James-Stein baseline in the form that is released (arXiv 2511.03710): it leaks."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits
from jaxrl_llm.advantages._stats import leave_one_out_mean, prompt_moments, shrinkage


def james_stein_deployed(*, smoothing: float) -> AdvantageTransform:
    """Aᵢ = rᵢ - (1-λₜ) · mean of the prompt's others - λₜ · m,  λₜ = smoothing · λₜ₋₁ + (1 - smoothing) · u/(u+s).

    u, s and m are as in `james_stein` but of all prompts, the own one included, so the credit is biased. λ of the first
    step is not smoothed. smoothing: unverified, and so is that λₜ holds the present batch. A prompt with one valid
    answer gets r - m. State: λ and the number of steps seen with a valid answer, two float32 scalars.
    """

    def update(advantage, state, rollout):
        old, steps = state
        mean, variance, there, measured = prompt_moments(advantage, rollout.valid)
        n = jnp.maximum(masked.count(rollout.valid, axis=-1), 1).astype(advantage.dtype)
        now = shrinkage(masked.mean(variance / n, measured), masked.variance(mean, there, ddof=0)).astype(old.dtype)
        new = jnp.where(jnp.any(there), jnp.where(steps > 0, smoothing * old + (1 - smoothing) * now, now), old)
        own, exists = leave_one_out_mean(advantage, rollout.valid)
        share = jnp.where(exists, new.astype(advantage.dtype), 1)
        credit = advantage - (1 - share) * own - share * masked.mean(mean, there)
        return jnp.where(rollout.valid, credit, 0), (new, steps + jnp.any(there).astype(steps.dtype))

    traits = Traits(unbiased="no", batch_wide=True, uses_self=True, keeps_zero=False)
    return AdvantageTransform(lambda: (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)), update, traits)
