"""Wrong answers alone push (NSR, Zhu et al., arXiv 2506.01347)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def negative_only() -> AdvantageTransform:
    """Aᵢ = rᵢ - 1: -1 for a wrong answer, 0 for a right one, without any statistic of the group. Rewards of 0 and 1.

    REINFORCE with the constant baseline 1, hence unbiased: on fresh answers the mean direction is that of
    `positive_only`. A group of failures gets -1, unlike with a centred credit. A reward between 0 and 1 counts in
    part. In their code right answers leave the batch before the update; here they stay, with credit 0, and in every
    denominator.
    """
    traits = Traits(unbiased="yes", keeps_zero=False, domain="unit", f_prime=lambda p, g: 1.0)
    return stateless(lambda advantage, rollout: jnp.where(rollout.valid, advantage - 1, 0), traits)
