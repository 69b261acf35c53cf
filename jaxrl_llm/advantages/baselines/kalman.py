"""Kalman filter of the reward as the baseline (after KRPO, arXiv 2505.07527), read before it sees the batch."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits
from jaxrl_llm.advantages._stats import shrinkage, slot_total


def kalman(*, process_variance: float, noise_variance: float, mean: float, variance: float, slots: int = 1):
    """Aᵢ = rᵢ - x;  then x ← x + K (r̄ - x), v ← (1-K) v⁺,  v⁺ = v + process_variance, K = v⁺/(v⁺ + noise_variance/n).

    r̄ is the mean of the n valid answers of the slot, prompt_id modulo `slots`: 1 is one filter for all. Unbiased, as x
    knows only earlier batches. All four numbers (mean and variance start x and v) are unverified, and so is whether
    the paper's filter sees the own reward first; that would leak. A slot without a valid answer stays. 0/0 gives 0.
    """

    def update(advantage, state, rollout):
        x, v = state
        slot = rollout.prompt_id % slots
        won, n = masked.total(advantage, rollout.valid, axis=-1), masked.count(rollout.valid, axis=-1)
        won, n = (slot_total(slots, slot, y.astype(x.dtype)) for y in (won, n))
        ahead = v + process_variance
        gain = shrinkage(ahead * n, jnp.full_like(v, noise_variance))
        new = x + gain * (won / jnp.maximum(n, 1) - x), jnp.where(n > 0, (1 - gain) * ahead, v)
        return jnp.where(rollout.valid, advantage - x[slot][:, None].astype(advantage.dtype), 0), new

    init = lambda: (jnp.full(slots, mean, jnp.float32), jnp.full(slots, variance, jnp.float32))  # noqa: E731
    return AdvantageTransform(init, update, Traits(unbiased="yes", keeps_zero=False, f_prime=lambda p, g: 1.0))
