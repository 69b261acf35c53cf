"""Standard score against every answer drawn for the prompt (Reinforce-Ada with its division, arXiv 2510.04996)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def pool_standard_score(*, eps: float) -> AdvantageTransform:
    """Aᵢ = (rᵢ - `pool_mean`) / (`pool_std` + eps),  both [P] of the rollout's extras, over all answers drawn.

    The released code has eps 1e-6 and this off; there the std has ddof 1 and is at least 1e-6, and a pool of none or
    one has mean 0 and std 1. Where pool_std + eps is 0 nothing is divided. Biased as `pool_mean` is, and by the std.
    """

    def fn(advantage, rollout):
        mean, std = (rollout.extras[name][:, None].astype(advantage.dtype) for name in ("pool_mean", "pool_std"))
        divisor = std + eps
        return jnp.where(rollout.valid, (advantage - mean) / jnp.where(divisor > 0, divisor, 1), 0)

    return stateless(fn, Traits(unbiased="no", uses_self=True, keeps_zero=False, needs=("pool_mean", "pool_std")))
