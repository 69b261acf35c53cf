"""Whitening of the credit over the answers of the batch (REINFORCE++, Hu, arXiv 2501.03262)."""

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import Guard, z_scores


def batch_whiten(*, ddof: int, eps: float, guard: Guard) -> AdvantageTransform:
    """Aᵢ ← (Aᵢ - Ā) / σ,  Ā and σ² = Σ (Aⱼ - Ā)² / (N - ddof) over the N valid answers of the batch.

    `guard` says where eps goes: "deviation" σ + eps (TRL, ddof 1, 1e-4), "variance" √(σ² + eps) (verl, ddof 1, 1e-8),
    "floor" √max(σ², eps) (OpenRLHF, ddof 0, 1e-8); there is no default. Every answer counts once, whatever its length:
    libraries that weigh by tokens get other numbers, and a group of equal rewards another credit. 0 where σ = 0. After
    `group_mean` this is the group form of REINFORCE++; a credit of 0 then stays 0 but for rounding. Biased.
    """

    def fn(advantage, rollout):
        return z_scores(advantage, rollout.valid, ddof=ddof, eps=eps, guard=guard)

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True, keeps_zero=False))
