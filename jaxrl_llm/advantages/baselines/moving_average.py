"""Exponential moving average of past rewards as the baseline (Williams, 1992)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits


def moving_average(*, decay: float = 0.9) -> AdvantageTransform:
    """Aᵢ = rᵢ - b,  b = Σₛ decayᵗ⁻¹⁻ˢ r̄ₛ / Σₛ decayᵗ⁻¹⁻ˢ over the steps s < t already seen; b = 0 at the first.

    Unbiased, because b knows only earlier batches; r̄ₛ is the mean over all valid answers of step s. A step without a
    valid answer leaves b as it is. State: (Σ decay… r̄ₛ, Σ decay…), two float32 scalars.
    """

    def update(advantage, state, rollout):
        weighted, weight = state
        baseline = jnp.where(weight > 0, weighted / jnp.where(weight > 0, weight, 1), 0).astype(advantage.dtype)
        mean = masked.mean(advantage, rollout.valid).astype(weighted.dtype)
        seen = jnp.any(rollout.valid)
        state = (jnp.where(seen, decay * weighted + mean, weighted), jnp.where(seen, decay * weight + 1, weight))
        return jnp.where(rollout.valid, advantage - baseline, 0), state

    traits = Traits(unbiased="yes", keeps_zero=False, f_prime=lambda p, g: 1.0)
    return AdvantageTransform(lambda: (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)), update, traits)
