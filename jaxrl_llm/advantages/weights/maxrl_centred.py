"""Centred reward divided by the pass rate (MaxRL, arXiv 2602.02710; the form of the released code)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import in_units_of_the_largest


def maxrl_centred(*, eps: float) -> AdvantageTransform:
    """Aᵢ = (rᵢ - r̄) / (r̄ + eps),  r̄ the mean over the valid answers to the prompt; 0 where r̄ <= 0. For rewards >= 0.

    A group of one, an all-equal group and a group of failures get exactly 0. Dropping the groups of failures costs the
    last term of the series: it ascends Σ pass@k / k over k = 1..G-1, not G (`maxrl_centred_full` keeps it). `eps` has
    no default: 0 in prime-rl, 1e-6 in SkyRL.
    """

    def fn(advantage, rollout):
        x, unit = in_units_of_the_largest(advantage, rollout.valid)
        mean = masked.mean(x, rollout.valid, axis=-1, keepdims=True)
        divisor = jnp.where(mean > 0, mean + eps / unit, 1)
        # The difference in the units that came in: only there is it exactly 0, however a compiler divides.
        known = jnp.where(rollout.valid, advantage, 0)
        apart = (known - masked.mean(known, rollout.valid, axis=-1, keepdims=True)) / unit
        return jnp.where(rollout.valid & (mean > 0), apart / divisor, 0)

    f_prime = lambda p, g: float(sum((1 - p) ** k for k in range(g - 1)))  # noqa: E731  (1 - (1-p)^(G-1)) / p
    claim = {"uses_self": True, "minimum_group": 2, "centred": True, "domain": "unit"}
    return stateless(fn, Traits(unbiased="no", f_prime=None if eps else f_prime, **claim))
