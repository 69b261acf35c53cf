"""Mean of the group as the baseline (Shao et al., 2024, without their division)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def group_mean() -> AdvantageTransform:
    """Aᵢ = rᵢ - mean of r over all valid answers to the prompt, the answer itself included.

    Its expectation is (G-1)/G of the gradient: the own reward sits in the baseline. A group of one and an all-equal
    group get exactly 0.
    """

    def fn(advantage, rollout):
        mean = masked.mean(advantage, rollout.valid, axis=-1, keepdims=True)
        return jnp.where(rollout.valid, advantage - mean, 0)

    shrinkage = lambda p, g: (g - 1) / g  # noqa: E731
    claim = {"unbiased": "scaled", "scale": shrinkage, "f_prime": shrinkage}
    return stateless(fn, Traits(**claim, uses_self=True, minimum_group=2, centred=True))
