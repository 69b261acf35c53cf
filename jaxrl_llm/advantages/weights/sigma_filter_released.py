"""Whitened credit without its outliers (StableReinforce, arXiv 2505.02835; as in the code, r1_reward 3693413)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import z_scores


def sigma_filter_released(*, k: float | int = 3.0, maximum: float | int = 10.0) -> AdvantageTransform:
    """Aᵢ ← zᵢ where Ā - k <= zᵢ <= Ā + k and |zᵢ| <= maximum, else 0,  z = (A - Ā) / √max(σ², 1e-8), σ with ddof 0.

    Ā is the mean before whitening, while z has mean 0: the band sits right only where Ā = 0, and adding a constant to
    all rewards changes what is dropped. Kept to repeat their numbers; `sigma_filter` is the rule of the paper. The 1e-8
    that they add to z is left out; answers count once, where theirs count by tokens.
    """

    def fn(advantage, rollout):
        mean = masked.mean(advantage, rollout.valid)
        z = z_scores(advantage, rollout.valid, ddof=0, eps=1e-8, guard="floor")
        return jnp.where((jnp.abs(z - mean) <= k) & (jnp.abs(z) <= maximum), z, 0)

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True, keeps_zero=False))
