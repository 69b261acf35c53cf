"""Tokens that the policy is wrong and sure about (Entropy-SFT of Light-IF, 2025)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens, top_fraction


def confident_error_weights(*, fraction: float | int, entropy_factor: float | int) -> AdvantageTransform:
    """Aₜ ← Aₜ where Dₜ = -log π(yₜ) - entropy_factor · Hₜ is among the k highest of the batch, else 0.

    k = max(⌊fraction · n⌋, 1) of the n acted tokens of valid answers; ties with the k-th are all kept. log π is
    `policy_logp`, H `extras["entropy"]` [P G T]. fraction 1 keeps every token; entropy_factor 0 picks the hardest.
    On own samples E[Dₜ] = (1 - entropy_factor) · Hₜ. Their command has 0.8 and 0.8, their code 0.2 and 1.0 by default.
    The paper uses it on supervised answers, and divides by k; here the aggregation divides. arXiv 2508.03178.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        surplus = -rollout.policy_logp - entropy_factor * rollout.extras["entropy"]
        return jnp.where(top_fraction(surplus, where, fraction), advantage, 0)

    return stateless(fn, Traits(unbiased="no", uses_self=True, needs=("entropy",)))
