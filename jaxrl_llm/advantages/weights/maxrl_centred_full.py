"""Centred reward divided by the pass rate, groups of failures included (MaxRL, arXiv 2602.02710)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import in_units_of_the_largest


def maxrl_centred_full() -> AdvantageTransform:
    """Aᵢ = rᵢ / r̄ - 1,  r̄ the mean over the valid answers to the prompt; -1 for every answer where r̄ <= 0.

    `maxrl_raw` with the constant baseline 1: the same expectation, log p cut after G terms, with less noise. What a
    group of failures gets is no nuisance but the last of these terms. An all-equal group of another reward gets 0. For
    rewards of at least 0.
    """

    def fn(advantage, rollout):
        x, _ = in_units_of_the_largest(advantage, rollout.valid)
        mean = masked.mean(x, rollout.valid, axis=-1, keepdims=True)
        return jnp.where(rollout.valid, jnp.where(mean > 0, (x - mean) / jnp.where(mean > 0, mean, 1), -1), 0)

    f_prime = lambda p, g: float(sum((1 - p) ** k for k in range(g)))  # noqa: E731  (1 - (1-p)^G) / p
    return stateless(fn, Traits(unbiased="no", uses_self=True, keeps_zero=False, domain="binary", f_prime=f_prime))
