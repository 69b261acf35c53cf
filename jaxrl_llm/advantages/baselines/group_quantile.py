"""Quantile of the group as the baseline (QAE, arXiv 2509.22611)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._stats import quantile_rank, quantile_weight


def group_quantile(*, level: float) -> AdvantageTransform:
    """Aᵢ = rᵢ - the reward of rank ⌈level · n⌉, counted from the lowest, among the prompt's n valid answers.

    Inverted distribution function, 0 < level <= 1; the product is exact for a decimal level, so 0.6 of 5 is rank 3.
    Biased. For 0/1 rewards it gates: groups with r̄ <= 1 - level move only right answers, the others only wrong ones,
    and F'(p) = 1 - C(G-1, c) pᶜ (1-p)^(G-1-c), c = G - ⌈level · G⌉. A group of one and an all-equal group get 0.
    """
    rank = quantile_rank(level)

    def fn(advantage, rollout):
        ordered = jnp.sort(jnp.where(rollout.valid, advantage, jnp.inf), axis=-1)
        ranks = jnp.asarray([rank(n) for n in range(advantage.shape[-1] + 1)])
        place = jnp.maximum(ranks[jnp.sum(rollout.valid, axis=-1, keepdims=True)] - 1, 0)
        return jnp.where(rollout.valid, advantage - jnp.take_along_axis(ordered, place, axis=-1), 0)

    claim = {"unbiased": "no", "f_prime": lambda p, g: quantile_weight(p, g, rank(g))}
    return stateless(fn, Traits(**claim, uses_self=True, minimum_group=2, centred=True))
