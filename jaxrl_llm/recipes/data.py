"""Methods that differ in the data: which problems are asked, in which order, and how many answers each gets."""

from jaxrl_llm.advantages import leave_one_out, per_token
from jaxrl_llm.advantages.baselines.pool_root_rate import pool_root_rate
from jaxrl_llm.advantages.weights.maxrl_raw import maxrl_raw
from jaxrl_llm.losses import Objective, answer_mean, clipped, prompt_answer_sum, reinforce, token_mean
from jaxrl_llm.recipes._base import Recipe, called
from jaxrl_llm.recipes._parts import standardised
from jaxrl_llm.rollouts.curriculum import easy_to_hard, hard_to_easy, near_half
from jaxrl_llm.rollouts.screening import Screening
from jaxrl_llm.rollouts.select.allocation import estimated_allocation, gvm_allocation, neyman_allocation
from jaxrl_llm.rollouts.select.instance_filter import solvable
from jaxrl_llm.rollouts.select.plan import Plan

ORDERS = {"easy_to_hard": easy_to_hard, "hard_to_easy": hard_to_easy, "near_half": near_half, "random": None}


def rif_rft(attempts: int = 8, at_least: int = 1) -> Recipe:
    """RIF-RFT (arXiv 2507.05386): GRPO without the problems that the policy before RL never solves.

    attempts, at_least: unverified, the paper's numbers are not known; a port takes 8 attempts.

    Verified: the problems that stay by hand; a problem left out carries no centred gradient.
    """
    return Recipe(
        spec=called(rif_rft, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6)),
        objective=Objective(surrogate=clipped(), aggregate=answer_mean()),
        screening=Screening(attempts=attempts, keep=lambda correct: solvable(correct, at_least)),
    )


def sari(order: str = "easy_to_hard", attempts: int = 8, tiers: int = 0) -> Recipe:
    """SARI (arXiv 2504.15900): GRPO on the problems that are ever solved, easy ones first.

    `order` is easy_to_hard, hard_to_easy, near_half or random; `tiers` cuts the order into steps, 0: one a rate.
    attempts and tiers: unverified, no paper states them.

    Verified: the order by hand; each epoch holds every problem once.
    """
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, not {order!r}")
    by_rate = ORDERS[order]
    return Recipe(
        spec=called(sari, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6)),
        objective=Objective(surrogate=clipped(), aggregate=answer_mean()),
        screening=Screening(
            attempts=attempts,
            keep=solvable,
            # A rate k / S takes S + 1 values, so finer tiers than the rates themselves say nothing.
            order=by_rate and (lambda rate: by_rate(rate, min(tiers, len(rate)) or None)),
        ),
    )


def gvm_raft(first: int = 8, most: int = 4, alpha: float = 1e-3, beta: float = 2.0) -> Recipe:
    """GVM-RAFT (arXiv 2505.02391): mean log π of the right answers, of which rare ones are drawn oftener: n ∝ 1/√p.

    p is the rate of the `first` answers to each prompt, which are not trained on; on the average a prompt gets G others
    and at most `most` · G. The norms of scores, which would stand above √p, are all taken to be 1: they would need a
    backward pass for each first answer. Prompts that the first answers do not solve get none.

    Verified: the released code's numbers; the optimum by a numeric search; the budget of a batch.
    """
    plan = lambda prompts, answers: Plan(  # noqa: E731
        select=gvm_allocation(first, prompts * answers, most * answers, 0.5, alpha=alpha, beta=beta),
        answers=first + most * answers,
    )
    return Recipe(
        spec=called(gvm_raft, locals()),
        advantage=per_token(maxrl_raw()),
        objective=Objective(surrogate=reinforce(), aggregate=prompt_answer_sum()),
        plan=plan,
        gives=("budget",),
    )


def vip(first: int = 8, most: int = 4, floor: float = 0.05) -> Recipe:
    """VIP (arXiv 2602.01601): leave-one-out, more answers to prompts of uncertain outcome: n ∝ √(p (1-p)) + floor.

    p is the rate of the `first` answers to each prompt, which are not trained on; on the average a prompt gets G others
    and at most `most` · G. The paper predicts p from other prompts, and solves for whole numbers and prices of its own.
    floor: unverified there, 0.05 is that of SPO's sampler.

    Verified: the optimum by a numeric search; the budget of a batch.
    """
    plan = lambda prompts, answers: Plan(  # noqa: E731
        select=neyman_allocation(first, prompts * answers, most * answers, floor), answers=first + most * answers
    )
    return Recipe(
        spec=called(vip, locals()),
        advantage=per_token(leave_one_out()),
        objective=Objective(surrogate=reinforce(), aggregate=prompt_answer_sum()),
        plan=plan,
        gives=("budget",),
    )


def reinforce_ada_est(first: int = 4, least: int = 4, most: int = 32, eps: float = 1e-2) -> Recipe:
    """Ada-Est (arXiv 2510.04996): (r - m)/√(m + eps) on n ∝ 1/√(p + eps) answers a prompt; together log p.

    p is the rate of the `first` answers to each prompt, which are not trained on; a prompt gets G others on average.
    first, least, most and eps: unverified, the paper's own estimate of p and its bounds are known second-hand.

    Verified: budgets by a numeric search; the credit by exact enumeration.
    """
    plan = lambda prompts, answers: Plan(  # noqa: E731
        select=estimated_allocation(first, prompts * answers, min(least, answers), max(most, answers), eps),
        answers=first + max(most, answers),
    )
    return Recipe(
        spec=called(reinforce_ada_est, locals()),
        advantage=per_token(pool_root_rate(eps=eps)),
        objective=Objective(surrogate=clipped(high=0.28, dual=10.0), aggregate=token_mean()),
        plan=plan,
        gives=("budget", "pool_mean"),
    )
