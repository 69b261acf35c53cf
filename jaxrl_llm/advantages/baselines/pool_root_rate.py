"""Reward above the pool's mean, divided by the root of that mean (Ada-Est of Reinforce-Ada, arXiv 2510.04996)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def pool_root_rate(*, eps: float) -> AdvantageTransform:
    """Aᵢ = (rᵢ - m) / √(m + eps),  m the `pool_mean` [P] of the rollout's extras, rewards in [0, 1].

    With a number of answers drawn in proportion to 1/√p, the other half of the weight 1/p of E[log p]. eps: unverified,
    the paper's value is not known. Nothing is divided where m + eps <= 0. Biased by the division, and as `pool_mean`.
    """

    def fn(advantage, rollout):
        mean = rollout.extras["pool_mean"][:, None].astype(advantage.dtype)
        rate = mean + eps
        return jnp.where(rollout.valid, (advantage - mean) / jnp.sqrt(jnp.where(rate > 0, rate, 1)), 0)

    traits = Traits(unbiased="no", uses_self=True, domain="unit", keeps_zero=False, needs=("pool_mean",))
    return stateless(fn, traits)
