"""What other libraries compute under a name, at a stated version: credit, ratio, clip, aggregation, KL.

Each follows the defaults of that version unless an argument or the docstring says otherwise. What a denominator counts
is always the whole batch here, where some of them count a micro-batch.
"""

from jaxrl_llm.advantages import AdvantageTransform, at_end, chain, group_mean, group_std, leave_one_out, no_baseline
from jaxrl_llm.advantages import per_token as tokens
from jaxrl_llm.advantages.baselines.length_weighted import length_weighted
from jaxrl_llm.advantages.scales.batch_std import batch_std
from jaxrl_llm.advantages.scales.batch_whiten import batch_whiten
from jaxrl_llm.advantages.scales.gpg_scale import gpg_scale
from jaxrl_llm.advantages.scales.leave_one_out_std import leave_one_out_std
from jaxrl_llm.advantages.tokens.reward_to_go import reward_to_go
from jaxrl_llm.advantages.tokens.token_whiten import token_whiten
from jaxrl_llm.advantages.weights.gdpo import gdpo
from jaxrl_llm.advantages.weights.grpo_pass_at_k import grpo_pass_at_k
from jaxrl_llm.advantages.weights.maxrl_centred import maxrl_centred
from jaxrl_llm.losses import (
    Aggregate,
    Correction,
    Objective,
    Penalty,
    Surrogate,
    answer_mean,
    answer_sum,
    cispo,
    clipped,
    clipped_answer,
    fixed_divisor,
    gspo,
    k1,
    k3,
    proximal,
    reinforce,
    token_mean,
    truncated_answer,
)
from jaxrl_llm.recipes._base import Recipe, called
from jaxrl_llm.recipes._parts import kl_if_any, standardised

VERL_CLIP = clipped(dual=3.0)


def _preset(
    spec: str,
    advantage: AdvantageTransform,
    surrogate: Surrogate,
    aggregate: Aggregate,
    *parts: Penalty | Correction,
) -> Recipe:
    penalties = tuple(part for part in parts if isinstance(part, Penalty))
    corrections = tuple(part for part in parts if isinstance(part, Correction))
    objective = Objective(surrogate=surrogate, aggregate=aggregate, penalties=penalties, corrections=corrections)
    return Recipe(spec=spec, advantage=advantage, objective=objective)


def grpo_as_in_trl(scale_rewards: str = "group", kl_coefficient: float = 0.0) -> Recipe:
    """GRPO as in TRL (f2cd577): (r - mean)/(std + 1e-4), ddof 1, clip 0.2, mean over tokens, no KL.

    scale_rewards "group", "batch" (std of the raw rewards of the batch) or "none".

    Verified: rows of the group and the batch form.
    """
    scales = {"group": group_std(ddof=1, eps=1e-4), "batch": batch_std(ddof=1, eps=1e-4), "none": no_baseline()}
    if scale_rewards not in scales:
        raise ValueError(f"scale_rewards must be one of {', '.join(scales)}, not {scale_rewards!r}")
    penalties = kl_if_any(k3, kl_coefficient, "loss")
    credit = group_mean() if scale_rewards == "none" else chain(group_mean(), scales[scale_rewards])
    return _preset(called(grpo_as_in_trl, locals()), tokens(credit), clipped(), token_mean(), *penalties)


def gdpo_as_in_trl() -> Recipe:
    """GDPO as in TRL (f2cd577): z-scores of each reward component in its group, summed, whitened over answers.

    Verified: values by hand.
    """
    credit = chain(gdpo(ddof=1, eps=1e-4), batch_whiten(ddof=1, eps=1e-4, guard="deviation"))
    return _preset(called(gdpo_as_in_trl, locals()), tokens(credit), clipped(), token_mean())


def rloo_as_in_trl(kl_coefficient: float = 0.05) -> Recipe:
    """RLOO as in TRL (f2cd577): k1 in the reward, leave-one-out, clip 0.2 of the ratio of the whole answer.

    Verified: row of the reference; order of KL and baseline.
    """
    penalties = kl_if_any(k1, kl_coefficient, "reward")
    return _preset(
        called(rloo_as_in_trl, locals()), tokens(leave_one_out()), clipped_answer(), answer_sum(), *penalties
    )


def cispo_as_in_trl(epsilon_high: float = 5.0) -> Recipe:
    """CISPO as in TRL (f2cd577): GRPO's credit, min(ratio, epsilon_high) detached · A · log π, mean over tokens.

    `epsilon_high` is the bound itself; there is no lower one. Its documentation recommends 5.

    Verified: equality with verl's form.
    """
    credit = tokens(standardised(ddof=1, eps=1e-4))
    return _preset(called(cispo_as_in_trl, locals()), credit, cispo(low=None, high=epsilon_high - 1), token_mean())


def grpo_as_in_verl(kl_coefficient: float = 0.001) -> Recipe:
    """GRPO as in verl (1dda039): (r - mean)/(std + 1e-6), ddof 1, dual clip 0.2 and 3, mean over tokens, k3.

    verl keeps the raw reward of a group of one; here it gets 0.

    Verified: row of the reference.
    """
    penalties = kl_if_any(k3, kl_coefficient, "loss")
    credit = tokens(standardised(ddof=1, eps=1e-6))
    return _preset(called(grpo_as_in_verl, locals()), credit, VERL_CLIP, token_mean(), *penalties)


def dr_grpo_as_in_verl(divisor: float = 1024.0) -> Recipe:
    """Dr. GRPO as in verl (1dda039): r - mean, dual clip, sum over tokens by the response length, mean over answers.

    In the snapshot b178a3c there is no division by the number of answers.

    Verified: row of the credit; matrix of the aggregation.
    """
    aggregate = fixed_divisor(divisor=divisor)
    return _preset(called(dr_grpo_as_in_verl, locals()), tokens(group_mean()), VERL_CLIP, aggregate)


def rloo_as_in_verl() -> Recipe:
    """RLOO as in verl (1dda039): leave-one-out, dual clip of token ratios, mean over tokens.

    Verified: row of the reference.
    """
    return _preset(called(rloo_as_in_verl, locals()), tokens(leave_one_out()), VERL_CLIP, token_mean())


def opo_as_in_verl() -> Recipe:
    """OPO as in verl (1dda039): r - length-weighted mean, own answer included, dual clip, mean over tokens.

    Verified: row of the reference.
    """
    credit = tokens(length_weighted(leave_one_out=False))
    return _preset(called(opo_as_in_verl, locals()), credit, VERL_CLIP, token_mean())


def gpg_as_in_verl() -> Recipe:
    """GPG as in verl (1dda039): (r - mean) · answers / answers with a reward, A · log π, mean over tokens.

    Verified: row of the reference.
    """
    credit = tokens(chain(group_mean(), gpg_scale()))
    return _preset(called(gpg_as_in_verl, locals()), credit, reinforce(), token_mean())


def grpo_pass_at_k_as_in_verl() -> Recipe:
    """GRPO-passk as in verl (1dda039): (best - second best)/(std + 1e-6) on the best answer alone, dual clip.

    Verified: row of the reference.
    """
    credit = tokens(grpo_pass_at_k(ddof=1, eps=1e-6))
    return _preset(called(grpo_pass_at_k_as_in_verl, locals()), credit, VERL_CLIP, token_mean())


def reinforce_pp_as_in_verl(discount: float = 1.0) -> Recipe:
    """REINFORCE++ as in verl (1dda039): returns whitened over tokens (ddof 1, √(v + 1e-8)), dual clip.

    Verified: row of the reference, dead groups included.
    """
    credit = chain(
        at_end(no_baseline()), reward_to_go(discount=discount), token_whiten(ddof=1, eps=1e-8, guard="variance")
    )
    return _preset(called(reinforce_pp_as_in_verl, locals()), credit, VERL_CLIP, token_mean())


def reinforce_pp_baseline_as_in_verl() -> Recipe:
    """REINFORCE++-baseline as in verl (1dda039): r - mean, whitened over tokens (ddof 1, √(v + 1e-8)), dual clip.

    Verified: row of the reference, dead groups included.
    """
    credit = chain(tokens(group_mean()), token_whiten(ddof=1, eps=1e-8, guard="variance"))
    return _preset(called(reinforce_pp_baseline_as_in_verl, locals()), credit, VERL_CLIP, token_mean())


def gspo_as_in_verl() -> Recipe:
    """GSPO as in verl (1dda039): GRPO's credit, clip 3e-4 and 4e-4 of the answer's mean ratio, mean over answers.

    Verified: golden value of the surrogate.
    """
    credit = tokens(standardised(ddof=1, eps=1e-6))
    return _preset(called(gspo_as_in_verl, locals()), credit, gspo(), answer_mean())


def grpo_as_in_openrlhf() -> Recipe:
    """GRPO as in OpenRLHF (3c3be62, group_norm): (r - mean)/(std + 1e-9), ddof 1, clip 0.2, mean over tokens.

    Its KL in the reward is left out.

    Verified: row of the credit.
    """
    credit = tokens(standardised(ddof=1, eps=1e-9))
    return _preset(called(grpo_as_in_openrlhf, locals()), credit, clipped(), token_mean())


def reinforce_pp_as_in_openrlhf(discount: float = 1.0, kl_coefficient: float = 0.0) -> Recipe:
    """REINFORCE++ as in OpenRLHF (3c3be62, reinforce): returns whitened over tokens (ddof 0, √max(v, 1e-8)).

    The KL is k1 in the reward. Here its sum is subtracted from the reward of the answer, which is paid at the last
    token: every token has the divergence of all. OpenRLHF subtracts it token by token: a return has the divergence of
    its own and of later tokens, discounted from where they stand. With discount 1 the difference before the whitening,
    the divergence of earlier tokens, has mean 0 against the score of the token: noise. At coefficient 0 there is none.

    Verified: population whitening by hand.
    """
    penalties = kl_if_any(k1, kl_coefficient, "reward")
    credit = chain(
        at_end(no_baseline()), reward_to_go(discount=discount), token_whiten(ddof=0, eps=1e-8, guard="floor")
    )
    return _preset(called(reinforce_pp_as_in_openrlhf, locals()), credit, clipped(), token_mean(), *penalties)


def grpo_as_in_open_instruct(standard: bool = False, kl_coefficient: float = 0.05) -> Recipe:
    """GRPO as in open-instruct (e6c3044): r - mean, clip 0.2 and 0.272, correction cut at 2, k3, mean over tokens.

    `standard` divides by std + 1e-8, ddof 0.

    Verified: rows of both forms.
    """
    credit = standardised(ddof=0, eps=1e-8) if standard else group_mean()
    penalties = kl_if_any(k3, kl_coefficient, "loss")
    parts = (*penalties, truncated_answer(maximum=2.0))
    surrogate = proximal(clipped(high=0.272))
    return _preset(called(grpo_as_in_open_instruct, locals()), tokens(credit), surrogate, token_mean(), *parts)


def grpo_as_in_nemo(leave_one_out_baseline: bool = True) -> Recipe:
    """GRPO as in NeMo-RL (7ea279a): (r - mean of the others)/(std of the others + 1e-6), clip 0.2, mean over tokens.

    The credit of a group does not sum to 0, and explodes where the others nearly agree. Its KL is left out.

    Verified: rows of both forms.
    """
    others = chain(leave_one_out(), leave_one_out_std(eps=1e-6))
    credit = others if leave_one_out_baseline else standardised(ddof=1, eps=1e-6)
    return _preset(called(grpo_as_in_nemo, locals()), tokens(credit), clipped(), token_mean())


def dr_grpo_as_in_oat(divisor: float = 1024.0) -> Recipe:
    """Dr. GRPO as in oat (c1a074c): r - mean, clip 0.2, sum over tokens by the generation length, mean over answers.

    oat counts fully masked answers in the mean, which are not there here.

    Verified: row of the credit; matrix of the aggregation.
    """
    aggregate = fixed_divisor(divisor=divisor)
    return _preset(called(dr_grpo_as_in_oat, locals()), tokens(group_mean()), clipped(), aggregate)


def grpo_as_in_oat() -> Recipe:
    """GRPO as in oat (c1a074c): (r - mean)/(std + 1e-8), ddof 1, clip 0.2, mean over tokens, then answers.

    Verified: row of the credit.
    """
    credit = tokens(standardised(ddof=1, eps=1e-8))
    return _preset(called(grpo_as_in_oat, locals()), credit, clipped(), answer_mean())


def maxrl_as_in_skyrl() -> Recipe:
    """MaxRL as in SkyRL (a956457): (r - mean)/(mean + 1e-6), clip 0.2, mean over tokens.

    Verified: vectors of SkyRL.
    """
    return _preset(called(maxrl_as_in_skyrl, locals()), tokens(maxrl_centred(eps=1e-6)), clipped(), token_mean())
