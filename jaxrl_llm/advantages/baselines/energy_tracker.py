"""Moving ratio of energy-weighted reward to energy as the baseline: the best constant, learnt from earlier batches."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits


def energy_tracker(*, decay: float) -> AdvantageTransform:
    """Aᵢ = rᵢ - b,  b = Σₛ decayᵗ⁻¹⁻ˢ (r e)ₛ / Σₛ decayᵗ⁻¹⁻ˢ eₛ over the steps s < t, (·)ₛ a mean over valid answers.

    `energy` e [P G] >= 0 is the squared norm of the answer's score, or a proxy. b = 0 before any energy is seen.

    Unbiased, because b knows only earlier batches; it goes to E[r e]/E[e], the constant of least variance, and needs no
    second answer. A step without a valid answer leaves b as it is. State: the two sums, float32 scalars.
    """

    def update(advantage, state, rollout):
        rewarded, energy = state
        baseline = jnp.where(energy > 0, rewarded / jnp.where(energy > 0, energy, 1), 0).astype(advantage.dtype)
        fresh = jnp.where(rollout.valid, rollout.extras["energy"], 0).astype(energy.dtype)
        product = jnp.where(rollout.valid, advantage, 0).astype(energy.dtype) * fresh
        old = jnp.where(jnp.any(rollout.valid), decay, 1)
        state = old * rewarded + masked.mean(product, rollout.valid), old * energy + masked.mean(fresh, rollout.valid)
        return jnp.where(rollout.valid, advantage - baseline, 0), state

    traits = Traits(unbiased="yes", keeps_zero=False, needs=("energy",), f_prime=lambda p, g: 1.0)
    return AdvantageTransform(lambda: (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32)), update, traits)
