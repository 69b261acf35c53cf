"""Mean of the whole batch as the baseline (REINFORCE++ before its division, arXiv 2501.03262)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def batch_mean() -> AdvantageTransform:
    """Aᵢ = rᵢ - mean of r over all N valid answers to all prompts, the answer itself included.

    Its expectation is (N-1)/N of the gradient, N = PG. It pays where prompts are about equally hard; where they are
    not, their spread adds to the variance. A batch of one answer gets 0, an all-equal group does not.
    """

    def fn(advantage, rollout):
        mean = masked.mean(advantage, rollout.valid, axis=(0, 1), keepdims=True)
        return jnp.where(rollout.valid, advantage - mean, 0)

    scale = lambda p, g: 1 - 1 / (p * g)  # noqa: E731
    return stateless(fn, Traits(unbiased="scaled", batch_wide=True, scale=scale, uses_self=True, keeps_zero=False))
