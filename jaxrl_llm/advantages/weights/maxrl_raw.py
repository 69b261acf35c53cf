"""Division of the reward by the pass rate (MaxRL, arXiv 2602.02710, without its baseline)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import in_units_of_the_largest


def maxrl_raw() -> AdvantageTransform:
    """Aᵢ = rᵢ / r̄,  r̄ the mean over the valid answers to the prompt; 0 where r̄ <= 0. For rewards of at least 0.

    With 0/1 rewards the right answers share a weight of G, however few they are: the mean score of the successes. It
    ascends Σ pass@k / k over k = 1..G, which is log p cut after G terms. A group of one right answer gets 1.
    """

    def fn(advantage, rollout):
        x, _ = in_units_of_the_largest(advantage, rollout.valid)
        mean = masked.mean(x, rollout.valid, axis=-1, keepdims=True)
        return jnp.where(rollout.valid & (mean > 0), x / jnp.where(mean > 0, mean, 1), 0)

    f_prime = lambda p, g: float(sum((1 - p) ** k for k in range(g)))  # noqa: E731  (1 - (1-p)^G) / p
    return stateless(fn, Traits(unbiased="no", uses_self=True, domain="unit", f_prime=f_prime))
