"""Whitened credit without its outliers (StableReinforce, Zhang et al., arXiv 2505.02835; as in the paper)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import Guard, z_scores


def sigma_filter(*, k: float | int, ddof: int, eps: float, guard: Guard) -> AdvantageTransform:
    """Aᵢ ← zᵢ where |zᵢ| <= k, else 0,  z the credit whitened over the valid answers of the batch.

    An outlier is dropped, not clipped. k is 3 in the paper; z is `batch_whiten` with the same ddof, eps and guard, so
    shifting and stretching the rewards changes nothing (`sigma_filter_released` is another rule). Answers count once,
    whatever their length. A batch of equal credits gets 0.
    """

    def fn(advantage, rollout):
        z = z_scores(advantage, rollout.valid, ddof=ddof, eps=eps, guard=guard)
        return jnp.where(jnp.abs(z) <= k, z, 0)

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True, keeps_zero=False))
