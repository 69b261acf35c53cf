"""A baseline lowered by a constant (AsymRE; arXiv 2509.24203 for its relation to a forward KL penalty)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def shift(*, amount: float) -> AdvantageTransform:
    """Aᵢ ← Aᵢ + amount: what was subtracted before is lowered by `amount`; after `group_mean` it is r - r̄ + amount.

    On-policy it changes no expectation: the gradient of the sum is that of the maximum-likelihood penalty
    -amount · log π(y), of mean 0. Off-policy it changes the objective. An invalid answer gets 0, any other group at
    least `amount` more than before, so an all-equal group is pushed up (amount > 0) or down.
    """
    return stateless(
        lambda advantage, rollout: jnp.where(rollout.valid, advantage + amount, 0),
        Traits(unbiased="yes", keeps_zero=amount == 0, f_prime=lambda p, g: 1.0),
    )
