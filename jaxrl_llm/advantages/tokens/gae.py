"""Generalised advantage estimation (Schulman et al., 2016)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens, following, to_go


def gae(*, discount: float | int, decay: float | int) -> AdvantageTransform:
    """Aₜ = Σ_k (discount·decay)ᵏ δₜ₊ₖ,  δₜ = xₜ + discount · V(next acted token) - Vₜ,  V = 0 after the last one.

    V is `extras["value"]` [P G T], the value of the prefix before token t; x the token rewards. Holes are skipped, as
    verl and slime do: neither their reward nor their value is read. decay 1: the discounted return less V; decay 0: δ.
    With discount 1 it is unbiased for any V where decay = 1, and for any decay where V is exact; else the errors of V
    stay in the credit, so only (1, 1) claims it. V must not have seen the answer beyond t. arXiv 1506.02438.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        value = jnp.where(where, rollout.extras["value"].astype(advantage.dtype), 0)
        delta = jnp.where(where, advantage, 0) + discount * following(value, where) - value
        return jnp.where(where, to_go(delta, where, discount * decay), 0)

    exact = discount == 1 and decay == 1
    return stateless(fn, Traits(unbiased="yes" if exact else "no", keeps_zero=False, needs=("value",)))
