"""Whitening over the tokens of the batch (REINFORCE++, Hu et al., 2025)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens


def token_whiten(*, ddof: int, eps: float | int, inside_root: bool) -> AdvantageTransform:
    """Aₜ ← (Aₜ - μ) / σ,  σ = √(v + eps) if inside_root, else √v + eps;  v = Σ (Aₜ - μ)² / (n - ddof).

    μ and v are over the n acted tokens of all valid answers, so long answers weigh more, and a group without a signal
    gets -μ/σ, not 0. Where v = 0 (all tokens equal, n <= ddof) nothing is divided. verl 1dda039: 1, 1e-8, inside;
    OpenRLHF: ddof 0 and v no smaller than 1e-8, which is 0, 0 unless v is that small. Biased. arXiv 2501.03262.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        advantage = jnp.where(where, advantage, 0)
        v = masked.variance(advantage, where, ddof=ddof)
        some = v > 0
        v = jnp.where(some, v, 1)
        sigma = jnp.where(some, jnp.sqrt(v + eps) if inside_root else jnp.sqrt(v) + eps, 1)
        return jnp.where(where, (advantage - masked.mean(advantage, where)) / sigma, 0)

    return stateless(fn, Traits(unbiased="no", uses_self=True, keeps_zero=False))
