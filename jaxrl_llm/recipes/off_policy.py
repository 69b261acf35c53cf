"""Methods that differ in what they do once the policy has left the one that sampled: `--epochs 2` or stale data."""

from jaxrl_llm.advantages import AdvantageTransform, chain, group_mean, leave_one_out, no_baseline, per_token
from jaxrl_llm.advantages.baselines.shift import shift
from jaxrl_llm.advantages.weights.exponential_weight import exponential_weight
from jaxrl_llm.advantages.weights.red_drop import red_drop
from jaxrl_llm.losses import (
    Correction,
    Objective,
    Surrogate,
    answer_mean,
    answer_sum,
    cispo,
    clipped,
    geo_mean,
    gspo,
    masked_outside_token,
    opmd,
    proximal,
    reinforce,
    sapo,
    self_normalised_group,
    token_mean,
    topr,
    topr_token,
    truncated_answer,
    truncated_token,
    vespo,
)
from jaxrl_llm.losses.surrogates.rec_pieces import importance, no_regulariser, no_weight, one_side, rec, ring, two_side
from jaxrl_llm.recipes._base import Recipe, called
from jaxrl_llm.recipes._parts import standardised
from jaxrl_llm.rewards._base import stateless

SIGNS = stateless(lambda rollout: 2 * rollout.reward - 1)  # +1 and -1 in the place of 1 and 0


def _recipe(spec: str, credit: AdvantageTransform, surrogate: Surrogate, aggregate, *corrections: Correction, **parts):
    objective = Objective(surrogate=surrogate, aggregate=aggregate, corrections=corrections)
    return Recipe(spec=spec, advantage=per_token(credit), objective=objective, **parts)


def topr_reinforce(baseline: float = 0.0, token_level: bool = False) -> Recipe:
    """TOPR (arXiv 2503.14286): rewards +1 and -1, right answers at ratio 1, wrong ones at min(ratio, 1), detached.

    `baseline` shifts the share of right answers that counts; `token_level` is the port of Trinity-RFT.

    Verified: cases by hand; effective share of right answers; bias that depends on the baseline by enumeration.
    """
    surrogate = topr_token() if token_level else topr()
    credit = chain(no_baseline(), shift(amount=-baseline)) if baseline else no_baseline()
    return _recipe(called(topr_reinforce, locals()), credit, surrogate, answer_mean(), reward=SIGNS)


def rec_one_side(weighted: bool = True, low: float = 0.2, high: float = 0.2, scaled: bool = False) -> Recipe:
    """REC-OneSide (arXiv 2509.24203): r - mean, tokens that PPO's clip leaves alive, with or without the ratio.

    Verified: mask table; its gradient with the ratio is that of PPO's clipped surrogate; bandit of the paper.
    """
    credit = standardised(ddof=0, eps=1e-6) if scaled else group_mean()
    weight = importance if weighted else no_weight
    surrogate = rec(mask=one_side(low=low, high=high), weight=weight, regulariser=no_regulariser)
    return _recipe(called(rec_one_side, locals()), credit, surrogate, token_mean())


def rec_two_side(low: float = 0.2, high: float = 0.2) -> Recipe:
    """REC-TwoSide (arXiv 2509.24203): r - mean, only tokens with a ratio in [1 - low, 1 + high], times the ratio.

    Verified: mask table.
    """
    surrogate = rec(mask=two_side(low=low, high=high), weight=importance, regulariser=no_regulariser)
    return _recipe(called(rec_two_side, locals()), group_mean(), surrogate, token_mean())


def rec_ring(low: float = 0.2, high: float = 0.2, far_low: float = 0.6, far_high: float = 2.0) -> Recipe:
    """REC-Ring (arXiv 2509.24203): r - mean, tokens near ratio 1 or far on the harmless side, without the ratio.

    Verified: mask table.
    """
    mask = ring(low=low, high=high, far_low=far_low, far_high=far_high)
    surrogate = rec(mask=mask, weight=no_weight, regulariser=no_regulariser)
    return _recipe(called(rec_ring, locals()), group_mean(), surrogate, token_mean())


def opmd_reinforce(coefficient: float = 0.1) -> Recipe:
    """OPMD (Kimi k1.5; arXiv 2509.24203): r - mean, A log π - c (log π - log μ)², mean over tokens.

    Verified: reductions to REINFORCE at ratio 1 and at c = 0.
    """
    return _recipe(called(opmd_reinforce, locals()), group_mean(), opmd(coefficient=coefficient), token_mean())


def asymre(amount: float = 0.1) -> Recipe:
    """AsymRE (in arXiv 2509.24203): r - mean + amount, A · log π, mean over tokens; right answers weigh more.

    Verified: equality with a forward-KL penalty of the same coefficient.
    """
    credit = chain(group_mean(), shift(amount=amount))
    return _recipe(called(asymre, locals()), credit, reinforce(), token_mean())


def red_drop_reinforce() -> Recipe:
    """RED-Drop (arXiv 2509.24203): random wrong answers beyond the number of right ones are dropped, then r - mean.

    Verified: golden group; its expectation over the draw is 1/(2(1-p)) times the undropped credit.
    """
    return _recipe(called(red_drop_reinforce, locals()), red_drop(), reinforce(), token_mean())


def red_weight(temperature: float = 1.0) -> Recipe:
    """RED-Weight (arXiv 2509.24203): (r - mean) · exp((r - mean)/temperature), A · log π, mean over tokens.

    Verified: values by hand; limit of a high temperature.
    """
    credit = chain(group_mean(), exponential_weight(temperature=temperature))
    return _recipe(called(red_weight, locals()), credit, reinforce(), token_mean())


def cispo_grpo(high: float = 0.28, low: float = 1.0) -> Recipe:
    """CISPO (MiniMax-M1, arXiv 2506.13585): GRPO's credit, detached clipped ratio · A · log π, mean over tokens.

    low 1 is no lower bound.

    Verified: verl's and TRL's forms give one gradient; bias by enumeration.
    """
    credit = standardised(ddof=1, eps=1e-6)
    return _recipe(called(cispo_grpo, locals()), credit, cispo(low=low, high=high), token_mean())


def gspo_grpo(low: float = 3e-4, high: float = 4e-4) -> Recipe:
    """GSPO (arXiv 2507.18071): GRPO's credit, clip of the geometric mean of an answer's ratios, mean over answers.

    Verified: golden value of Trinity-RFT; equality with PPO for answers of one token.
    """
    credit = standardised(ddof=1, eps=1e-6)
    return _recipe(called(gspo_grpo, locals()), credit, gspo(low=low, high=high), answer_mean())


def gmpo(low: float = 0.4, high: float = 0.4) -> Recipe:
    """GMPO (arXiv 2507.20673): GRPO's credit times the geometric mean of clipped ratios, mean over answers.

    Verified: values by hand.
    """
    credit = standardised(ddof=1, eps=1e-6)
    return _recipe(called(gmpo, locals()), credit, geo_mean(low=low, high=high), answer_mean())


def sapo_grpo(positive: float = 1.0, negative: float = 1.05) -> Recipe:
    """SAPO (arXiv 2511.20347): GRPO's credit, a sigmoid of the ratio in the place of the clip, mean over answers.

    Verified: values and slopes by hand.
    """
    credit = standardised(ddof=1, eps=1e-6)
    return _recipe(called(sapo_grpo, locals()), credit, sapo(positive=positive, negative=negative), answer_mean())


def vespo_reinforce() -> Recipe:
    """VESPO (arXiv 2602.10693): leave-one-out, detached e^l w^k e^(-l w) of the answer's ratio · A · log π.

    Verified: reference vectors; bias by enumeration.
    """
    return _recipe(called(vespo_reinforce, locals()), leave_one_out(), vespo(), answer_sum())


def snis() -> Recipe:
    """Self-normalised importance sampling (Owen, 2013): leave-one-out, ratios over their mean in the group.

    Verified: reference vectors.
    """
    return _recipe(called(snis, locals()), leave_one_out(), reinforce(), answer_sum(), self_normalised_group())


def tis_grpo(maximum: float = 2.0, answer_level: bool = False) -> Recipe:
    """Truncated correction (Yao et al., 2025): GRPO against the policy that sampled, times min(π_old/μ, maximum).

    Where μ is not π_old: another temperature, top-p, another engine.

    Verified: values by hand; the same for any accumulation and mesh.
    """
    correction = truncated_answer(maximum=maximum) if answer_level else truncated_token(maximum=maximum)
    credit = standardised(ddof=1, eps=1e-6)
    return _recipe(called(tis_grpo, locals()), credit, proximal(clipped()), token_mean(), correction)


def icepop(low: float = 0.5, high: float = 5.0) -> Recipe:
    """IcePop (Ling team, 2025): GRPO against the policy that sampled, tokens outside low <= π_old/μ <= high left out.

    Verified: vector of verl.
    """
    correction = masked_outside_token(low=low, high=high)
    credit = standardised(ddof=1, eps=1e-6)
    return _recipe(called(icepop, locals()), credit, proximal(clipped()), token_mean(), correction)
