"""Beta normalisation with a density that is given instead of fitted (BNPO, Xiao et al., arXiv 2506.02864)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import inverse_density, inverse_density_at, pass_rate, weight_on_pass_rate


def fixed_beta_density(*, alpha: float | int, beta: float | int, maximum: float = 1e6) -> AdvantageTransform:
    """Aᵢ ← Aᵢ · min(1 / Beta(p; α, β), maximum),  p the mean reward of the prompt's valid answers, rewards in [0, 1].

    (1, 1) changes nothing; (3/2, 3/2) after the group mean is π/8 of GRPO with the population deviation. The weight is
    1 where p is 0 or 1: a centred credit is 0 there.
    """

    def fn(advantage, rollout):
        p = pass_rate(rollout.reward, rollout.valid)
        weight = inverse_density(p, alpha, beta, maximum).astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage, 0) * weight

    right = lambda c, g: inverse_density_at(c / g, alpha, beta, maximum)  # noqa: E731
    plain = alpha == 1 and beta == 1
    f_prime = weight_on_pass_rate(right=right, wrong=lambda c, g: 0.0)
    return stateless(fn, Traits(unbiased="yes" if plain else "no", uses_self=not plain, domain="unit", f_prime=f_prime))
