"""Weight that grows with the credit itself (RED-Weight, arXiv 2509.24203)."""

import math

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def exponential_weight(*, temperature: float | int, maximum: float = 1e6) -> AdvantageTransform:
    """Aᵢ ← Aᵢ · min(exp(Aᵢ / temperature), maximum).

    After the group mean, at temperature 1, RED-Weight: good answers count more, bad ones less, without normalisation.
    The cap is ours, against overflow. A large temperature changes nothing. A credit of 0 stays 0; the result moves
    with the scale of the rewards.
    """

    def fn(advantage, rollout):
        a = jnp.where(rollout.valid, advantage, 0)
        return a * jnp.exp(jnp.minimum(a / temperature, math.log(maximum)))

    f_prime = lambda p, g: math.exp(min(1 / temperature, math.log(maximum)))  # noqa: E731
    return stateless(fn, Traits(unbiased="no", uses_self=True, f_prime=f_prime))
