"""Centred reward times a power of the failure rate (in the manner of the focal loss, Lin et al., 2017)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import pass_rate, weight_on_pass_rate


def focal(*, gamma: float | int) -> AdvantageTransform:
    """Aᵢ = (1-m)^gamma · (rᵢ - m),  m the mean reward of the prompt's valid answers, rewards in [0, 1], gamma >= 0.

    It ascends -(1-p)^(gamma+1) / (gamma+1) as G grows; gamma = 0 is the group mean. An all-equal group gets exactly 0.
    """

    def fn(advantage, rollout):
        known = jnp.where(rollout.valid, advantage, 0)
        failure = pass_rate(1 - known, rollout.valid)
        some = failure > 0
        weight = jnp.where(some, jnp.where(some, failure, 1) ** gamma, 0.0**gamma)
        return jnp.where(rollout.valid, (known - pass_rate(known, rollout.valid)) * weight, 0)

    right = lambda c, g: (1 - c / g) ** (gamma + 1)  # noqa: E731
    f_prime = weight_on_pass_rate(right=right, wrong=lambda c, g: -((1 - c / g) ** gamma) * c / g)
    claim = {"uses_self": True, "minimum_group": 2, "centred": True, "domain": "unit"}
    plain = {"unbiased": "scaled", "scale": lambda p, g: (g - 1) / g} if gamma == 0 else {"unbiased": "no"}
    return stateless(fn, Traits(f_prime=f_prime, **plain, **claim))
