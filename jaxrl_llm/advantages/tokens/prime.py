"""Implicit process rewards beside the outcome (PRIME, Cui et al., 2025)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens, leave_one_out_of, prime_process, to_go


def prime(
    *, scale_by_batch_max: bool, process_coefficient: float | int = 5.0, outcome_coefficient: float | int = 5.0
) -> AdvantageTransform:
    """Aₜ = Σ_{u>=t} (c₁·aᵤ + c₂·oᵤ),  aₜ = n/(n-1) · (qₜ - mean over answers of q̄ⱼ),  o: leave-one-out at the end.

    q is `extras["process_score"]` [P G T] (log π_φ - log π_ref), divided by the batch maximum of |Σ_{u>=t} qᵤ| if
    scale_by_batch_max; q̄ⱼ its mean over an answer; what comes in is the outcome reward, lifted by `at_end`. n counts
    the valid answers with an acted token; n = 1 gets 0. a is not exact leave-one-out: it differs by (qₜ - q̄ᵢ)/(n-1).
    In the first release c₁ had no effect, the recipe has 5 and 5. `token_whiten` comes after it. arXiv 2502.01456.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        q = rollout.extras["process_score"].astype(advantage.dtype)
        process = jnp.where(where, to_go(prime_process(q, where, scale_by_batch_max), where, 1.0), 0)
        return process_coefficient * process + outcome_coefficient * leave_one_out_of(advantage, where)

    rest = {"uses_self": outcome_coefficient != 1, "minimum_group": 2, "keeps_zero": False}
    return stateless(fn, Traits(unbiased="no", batch_wide=scale_by_batch_max, needs=("process_score",), **rest))
