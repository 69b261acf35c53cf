"""Beta tracker of each prompt's pass rate as the baseline (SPO, arXiv 2509.13232, without its whitening)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits
from jaxrl_llm.advantages._stats import beta_prior, slot_total, tracker_decay


def beta_tracker(
    *, minimum_decay: float, maximum_decay: float = 0.96, half_life: float = 0.06, slots: int = 65536, rate: float = 0.5
) -> AdvantageTransform:
    """Aᵢ = rᵢ - α/(α+β), read first; then α ← ρα + Σ r, β ← ρβ + Σ (1-r) over the prompt's valid answers.

    ρ = 2^(-drift/half_life) cut to [minimum_decay, maximum_decay], `drift` [P] >= 0 the mean change of log-probability.
    It starts at α + β = 1/(1 - minimum_decay), α/(α+β) = rate: (s + 1/2)/(n + 1) of n answers drawn beforehand in the
    paper, here one for all. Prompts of equal prompt_id modulo `slots` share a tracker, which decays once a step.
    """
    prior = beta_prior(rate, (minimum_decay, maximum_decay))

    def update(advantage, state, rollout):
        slot = rollout.prompt_id % slots
        a, b = (x[slot] for x in state)
        won, lost = (masked.total(x, rollout.valid, axis=-1).astype(a.dtype) for x in (advantage, 1 - advantage))
        decay = tracker_decay(rollout, half_life, (minimum_decay, maximum_decay), slots)
        new = state[0] * decay + slot_total(slots, slot, won), state[1] * decay + slot_total(slots, slot, lost)
        return jnp.where(rollout.valid, advantage - (a / (a + b))[:, None].astype(advantage.dtype), 0), new

    traits = Traits(unbiased="yes", domain="unit", keeps_zero=False, needs=("drift",), f_prime=lambda p, g: 1.0)
    return AdvantageTransform(lambda: tuple(jnp.full(slots, x, jnp.float32) for x in prior), update, traits)
