"""The methods that the others are compared with."""

from jaxrl_llm.advantages import (
    beta_density,
    chain,
    group_mean,
    leave_one_out,
    moving_average,
    no_baseline,
    per_token,
)
from jaxrl_llm.losses import Objective, answer_mean, answer_sum, clipped, fixed_divisor, k1, k3
from jaxrl_llm.losses import reinforce as log_prob
from jaxrl_llm.recipes._base import Recipe, called
from jaxrl_llm.recipes._parts import kl_if_any, standardised


def reinforce(baseline: bool = False, decay: float = 0.9) -> Recipe:
    """REINFORCE (Williams, 1992): A = r, or r less a moving average of past rewards; A · log π, summed over tokens.

    Verified: exact enumeration, with and without a baseline that has seen other batches.
    """
    credit = moving_average(decay=decay) if baseline else no_baseline()
    return Recipe(
        spec=called(reinforce, locals()),
        advantage=per_token(credit),
        objective=Objective(surrogate=log_prob(), aggregate=answer_sum()),
    )


def rloo(kl_coefficient: float = 0.0) -> Recipe:
    """RLOO (Ahmadian et al., 2024): leave-one-out baseline, A · log π summed over tokens, KL (k1) in the reward.

    Verified: exact enumeration; rows of TRL, verl and SkyRL.
    """
    penalties = kl_if_any(k1, kl_coefficient, "reward")
    return Recipe(
        spec=called(rloo, locals()),
        advantage=per_token(leave_one_out()),
        objective=Objective(surrogate=log_prob(), aggregate=answer_sum(), penalties=penalties),
    )


def grpo(low: float = 0.2, high: float = 0.2, kl_coefficient: float = 0.04, ddof: int = 1, eps: float = 1e-4) -> Recipe:
    """GRPO (Shao et al., 2024): (r - mean)/(std + eps), clipped ratio, mean over tokens, then answers, k3 in the loss.

    The paper states neither ddof nor eps; these are TRL's.

    Verified: rows of TRL, verl and open-instruct; exact enumeration of its weight F'(p).
    """
    penalties = kl_if_any(k3, kl_coefficient, "loss")
    return Recipe(
        spec=called(grpo, locals()),
        advantage=per_token(standardised(ddof=ddof, eps=eps)),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=answer_mean(), penalties=penalties),
    )


def dr_grpo(divisor: float = 100.0, low: float = 0.2, high: float = 0.2) -> Recipe:
    """Dr. GRPO (Liu et al., 2025): r - mean, clipped ratio, a fixed divisor in place of each answer's length, no KL.

    Verified: exact enumeration; row of oat.
    """
    return Recipe(
        spec=called(dr_grpo, locals()),
        advantage=per_token(group_mean()),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=fixed_divisor(divisor=divisor)),
    )


def bnpo(low: float = 0.2, high: float = 0.28, dual: float = 10.0) -> Recipe:
    """BNPO (Xiao et al., 2025): (r - mean) / Beta(p; α, β) fitted to the batch, dual-clipped ratio, sum over tokens.

    Verified: golden batch of the released code; its Beta density against scipy; reductions to REINFORCE and GRPO.
    """
    return Recipe(
        spec=called(bnpo, locals()),
        advantage=per_token(chain(group_mean(), beta_density())),
        objective=Objective(surrogate=clipped(low=low, high=high, dual=dual), aggregate=answer_sum()),
    )
