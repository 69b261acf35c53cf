"""Beta normalisation of each reward component by itself (BNPO's decomposition, Xiao et al., arXiv 2506.02864)."""

import jax
import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import inverse_fitted_density, pass_rate


def beta_density_components(*, maximum: float = 1e6) -> AdvantageTransform:
    """Aᵢ = mean over k of (cᵢₖ - c̄ₖ) · min(1 / Beta(c̄ₖ; αₖ, βₖ), maximum),  c the reward components [P G K] in [0, 1].

    c̄ₖ is the mean over the valid answers to the prompt; αₖ, βₖ are fitted as in `beta_density`, for each component over
    the batch. It reads the components and not the credit that comes in: it belongs at the head of a chain. Equal
    components give what one of them gives. A component that is all equal in the group adds exactly 0.
    """

    def fn(advantage, rollout):
        def credit(component):
            weight = inverse_fitted_density(component, rollout.valid, maximum)
            return jnp.where(rollout.valid, component - pass_rate(component, rollout.valid), 0) * weight

        each = jax.vmap(credit, in_axes=-1, out_axes=-1)(rollout.components)
        return jnp.mean(each, axis=-1).astype(advantage.dtype)

    claim = {"uses_self": True, "minimum_group": 2, "keeps_zero": False, "domain": "unit"}
    return stateless(fn, Traits(unbiased="no", batch_wide=True, **claim))
