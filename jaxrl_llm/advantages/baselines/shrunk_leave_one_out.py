"""Leave-one-out baseline shrunk towards 0 (own derivation)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._stats import leave_one_out_mean


def shrunk_leave_one_out(*, factor: float) -> AdvantageTransform:
    """Aᵢ = rᵢ - factor · mean of r over the other valid answers to the prompt.

    Unbiased for every fixed factor: 0 is no baseline, 1 is leave-one-out. An answer without another has no baseline and
    keeps its reward, which is unbiased too. The factor of least variance is, with V and v the mean and variance of the
    reward, F the mean squared norm of the score, M = E[r |s|²] and g the gradient,
        V M / ((V² + v/(G-1)) F + |g|²/(G-1)).
    A factor fitted on the group itself leaks; take it from earlier batches or from other prompts.
    """

    def fn(advantage, rollout):
        mean, exists = leave_one_out_mean(advantage, rollout.valid)
        return jnp.where(rollout.valid, advantage - jnp.where(exists, factor * mean, 0), 0)

    return stateless(fn, Traits(unbiased="yes", needs_iid=True, f_prime=lambda p, g: 1.0))
