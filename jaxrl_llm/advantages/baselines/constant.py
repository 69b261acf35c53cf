"""A constant baseline (Williams, 1992; the best constant: Weaver and Tao, 2001)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def constant(*, value: float) -> AdvantageTransform:
    """Aᵢ = rᵢ - value.

    Unbiased for every value. The one of least variance is E[r e] / E[e], e the squared norm of the answer's score; it
    is the mean reward only where r and e do not vary together. Rewards coded -1 and 1 are twice 0 and 1 at value 1/2.
    """
    return stateless(
        lambda advantage, rollout: jnp.where(rollout.valid, advantage - value, 0),
        Traits(unbiased="yes", keeps_zero=value == 0, f_prime=lambda p, g: 1.0),
    )
