"""Leave-one-out baseline (Kool et al., 2019; RLOO of Ahmadian et al., 2024)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def leave_one_out() -> AdvantageTransform:
    """Aᵢ = rᵢ - mean of r over the other valid answers to the prompt = n/(n-1) · (rᵢ - r̄), n valid answers.

    Unbiased. A group with one valid answer has no baseline and gets 0; an all-equal group gets exactly 0.
    """

    def fn(advantage, rollout):
        n = masked.count(rollout.valid, axis=-1, keepdims=True)
        mean = masked.mean(advantage, rollout.valid, axis=-1, keepdims=True)
        scale = n.astype(advantage.dtype) / jnp.maximum(n - 1, 1).astype(advantage.dtype)
        return jnp.where(rollout.valid & (n > 1), (advantage - mean) * scale, 0)

    return stateless(
        fn, Traits(unbiased="yes", minimum_group=2, needs_iid=True, centred=True, f_prime=lambda p, g: 1.0)
    )
