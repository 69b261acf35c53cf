"""Centred reward divided by p(1-p): ascent of the log-odds of the pass rate (Davis and Recht, arXiv 2510.13651)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import in_units_of_the_largest, pass_rate


def log_odds() -> AdvantageTransform:
    """Aᵢ = (rᵢ - m) / (m (1-m)),  m the mean reward of the prompt's valid answers, rewards in [0, 1].

    With 0/1 rewards: 1/m for a right answer, -1/(1-m) for a wrong one, so that both classes carry the same total. It
    ascends log(p / (1-p)) as G grows. A group with m = 0 or m = 1, and any all-equal group, gets exactly 0.
    """

    def fn(advantage, rollout):
        x, unit = in_units_of_the_largest(advantage, rollout.valid)
        m = masked.mean(x, rollout.valid, axis=-1, keepdims=True)
        wrong = pass_rate(1 - jnp.where(rollout.valid, advantage, 1), rollout.valid)
        mixed = (m > 0) & (wrong > 0)
        # The difference in the units that came in: only there is it exactly 0, however a compiler divides.
        known = jnp.where(rollout.valid, advantage, 0)
        apart = (known - pass_rate(known, rollout.valid)) / unit
        return jnp.where(rollout.valid & mixed, apart / jnp.where(mixed, m * wrong, 1), 0)

    f_prime = lambda p, g: float(sum((1 - p) ** k + p**k for k in range(g - 1)))  # noqa: E731  (1-pᴳ-qᴳ) / pq
    claim = {"uses_self": True, "minimum_group": 2, "centred": True, "domain": "unit"}
    return stateless(fn, Traits(unbiased="no", f_prime=f_prime, **claim))
