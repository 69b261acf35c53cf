"""No baseline (Williams, 1992)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def no_baseline() -> AdvantageTransform:
    """Aᵢ = rᵢ.

    Unbiased, and of high variance: a group whose answers all earn 1 still pushes all of them up. An invalid answer
    gets 0.
    """
    traits = Traits(unbiased="yes", f_prime=lambda p, g: 1.0)
    return stateless(lambda advantage, rollout: jnp.where(rollout.valid, advantage, 0), traits)
