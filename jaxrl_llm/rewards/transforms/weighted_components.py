"""A fixed weighted sum of reward components."""

import jax.numpy as jnp

from jaxrl_llm.rewards._base import RewardTransform, stateless


def weighted_components(weights: tuple[float | int, ...]) -> RewardTransform:
    """r = Σₖ wₖ cₖ  over the first K components, K the number of weights.

    The weights need not sum to one. A component whose weight is 0 is left out even if it holds NaN.
    """
    if not weights:
        raise ValueError("weighted_components needs at least one weight")

    def fn(rollout):
        parts = rollout.components[..., : len(weights)]
        used = jnp.asarray([w != 0 for w in weights])[None, None]
        scale = jnp.asarray(weights, parts.dtype)[None, None]
        return jnp.sum(jnp.where(used, parts, 0) * scale, axis=-1)

    return stateless(fn, components=len(weights))
