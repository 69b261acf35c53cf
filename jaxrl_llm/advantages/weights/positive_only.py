"""Right answers alone push (PSR, Zhu et al., arXiv 2506.01347)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def positive_only() -> AdvantageTransform:
    """Aᵢ = rᵢ: 1 for a right answer, 0 for a wrong one, without any statistic of the group. Rewards of 0 and 1.

    REINFORCE with the constant baseline 0, hence unbiased. A reward between 0 and 1 counts in part. In their code a
    reward other than 0 and 1 is of neither class, and wrong answers leave the batch before the update: every
    denominator and the number of updates shrink with the class. Here they stay, with credit 0.
    """
    traits = Traits(unbiased="yes", domain="unit", f_prime=lambda p, g: 1.0)
    return stateless(lambda advantage, rollout: jnp.where(rollout.valid, advantage, 0), traits)
