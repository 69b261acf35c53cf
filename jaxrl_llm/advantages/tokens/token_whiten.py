"""Whitening over the tokens of the batch (REINFORCE++, Hu et al., 2025)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import Guard
from jaxrl_llm.advantages._tokens import acted_tokens


def token_whiten(*, ddof: int, eps: float | int, guard: Guard) -> AdvantageTransform:
    """Aₜ ← (Aₜ - μ) / σ,  v = Σ (Aₜ - μ)² / (n - ddof), over the n acted tokens of all valid answers; 0 where v = 0.

    `guard` says where eps goes: "variance" σ = √(v + eps) (verl 1dda039: ddof 1, 1e-8), "floor" √max(v, eps)
    (OpenRLHF: ddof 0, 1e-8), "deviation" √v + eps. Long answers weigh more, so μ need not be 0 after a group baseline,
    and a group without a signal then gets -μ/σ. Biased. arXiv 2501.03262.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        x, v = jnp.where(where, advantage, 0), masked.variance(advantage, where, ddof=ddof)
        safe = jnp.where(v > 0, v, 1)
        inside = {"deviation": safe, "variance": safe + eps, "floor": jnp.maximum(safe, eps)}[guard]
        sigma = jnp.sqrt(inside) + (eps if guard == "deviation" else 0)
        return jnp.where(where & (v > 0), (x - masked.mean(x, where)) / sigma, 0)

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True, keeps_zero=False))
