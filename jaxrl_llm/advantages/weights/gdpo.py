"""Each reward component normalised in its group, then summed (GDPO; `normalize_then_sum` of TRL)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def gdpo(*, ddof: int, eps: float, weights: tuple[float, ...] | None = None) -> AdvantageTransform:
    """Aᵢ = Σₖ wₖ (cᵢₖ - c̄ₖ) / (σₖ + eps),  c the reward components [P G K], c̄ₖ and σₖ over the prompt's valid answers.

    `weights` are 1 if not given. Libraries whiten the sum afterwards: TRL (ddof 1, 1e-4) over answers, that is
    `batch_whiten(ddof=1, eps=1e-4, guard="deviation")`, verl over tokens. It reads the components and not the credit
    that comes in: it belongs at the head of a chain. Where σₖ = 0 the component adds 0. Rescaling one component changes
    nothing; in a sum that is divided once it does.
    """

    def fn(advantage, rollout):
        c = rollout.components
        valid = jnp.broadcast_to(rollout.valid[..., None], c.shape)
        mean = masked.mean(c, valid, axis=1, keepdims=True)
        sigma = masked.std(c, valid, axis=1, ddof=ddof, keepdims=True)
        scores = jnp.where(valid, c - mean, 0) / jnp.where(sigma > 0, sigma + eps, 1)
        factor = jnp.ones(c.shape[-1:], c.dtype) if weights is None else jnp.asarray(weights, c.dtype)
        return jnp.sum(scores * factor[None, None], axis=-1).astype(advantage.dtype)

    return stateless(fn, Traits(unbiased="no", uses_self=True, minimum_group=2, keeps_zero=False))
