"""Methods that ascend another function of the pass rate, or weigh tokens, lengths and prompts in another way."""

from jaxrl_llm.advantages import (
    chain,
    focal,
    gpg_scale,
    group_mean,
    leave_one_out,
    log_odds,
    maxrl_centred,
    maxrl_centred_full,
    maxrl_raw,
    pass_at_k,
    per_token,
    top_gap,
)
from jaxrl_llm.losses import (
    Objective,
    answer_mean,
    answer_sum,
    clip_cov,
    clipped,
    kl_cov,
    reinforce,
    token_mean,
    variance_reduced_length,
)
from jaxrl_llm.recipes._base import Recipe, called
from jaxrl_llm.recipes._parts import standardised
from jaxrl_llm.rollouts.select.down_selection import max_variance
from jaxrl_llm.rollouts.select.dynamic_sampling import dynamic_sampling, reroll_until_mixed
from jaxrl_llm.rollouts.select.plan import Plan


def _of_groups(spec: str, credit) -> Recipe:
    objective = Objective(surrogate=reinforce(), aggregate=answer_sum())
    return Recipe(spec=spec, advantage=per_token(credit), objective=objective)


def maxrl(kind: str = "centred") -> Recipe:
    """MaxRL (arXiv 2602.02710): (r - mean) / mean, A · log π, summed over tokens; log p cut after G-1 terms.

    kind "raw" is r / mean and "full" keeps groups of failures at -1: both are cut after G terms.

    Verified: exact enumeration of F'(p); row of prime-rl.
    """
    forms = {"centred": lambda: maxrl_centred(eps=0.0), "raw": maxrl_raw, "full": maxrl_centred_full}
    if kind not in forms:
        raise ValueError(f"kind must be one of {', '.join(forms)}, not {kind!r}")
    return _of_groups(called(maxrl, locals()), forms[kind]())


def pkpo(k: int = 2) -> Recipe:
    """PKPO (arXiv 2505.15201): the exact gradient of pass@k from G answers, A · log π, summed over tokens.

    Verified: exact enumeration of F'(p) = k (1-p)^(k-1).
    """
    return _of_groups(called(pkpo, locals()), pass_at_k(k=k))


def pass_at_group() -> Recipe:
    """Top gap (own derivation): G · (best - second best) on the best answer, A · log π; the gradient of pass@G.

    Verified: exact enumeration of F'(p) = G (1-p)^(G-1).
    """
    return _of_groups(called(pass_at_group, locals()), top_gap())


def log_odds_reward() -> Recipe:
    """Log-odds (Davis and Recht, arXiv 2510.13651): (r - m) / (m (1-m)), A · log π; ascends log(p / (1-p)).

    Verified: exact enumeration of F'(p).
    """
    return _of_groups(called(log_odds_reward, locals()), log_odds())


def focal_reward(gamma: float = 2.0) -> Recipe:
    """Focal weight (Davis and Recht, arXiv 2510.13651): (1-m)^gamma · (r - m), A · log π; hard prompts weigh more.

    Verified: exact enumeration of F'(p).
    """
    return _of_groups(called(focal_reward, locals()), focal(gamma=gamma))


def gpg() -> Recipe:
    """GPG (Chu et al., 2025): (r - mean) · answers / answers with a reward, A · log π, mean over tokens.

    Verified: row of verl.
    """
    return Recipe(
        spec=called(gpg, locals()),
        advantage=per_token(chain(group_mean(), gpg_scale())),
        objective=Objective(surrogate=reinforce(), aggregate=token_mean()),
    )


def dapo(low: float = 0.2, high: float = 0.28, oversampling: int = 2, ddof: int = 1, eps: float = 1e-6) -> Recipe:
    """DAPO (Yu et al., 2025): mixed groups only, (r - mean)/(std + eps), higher upper clip, mean over tokens.

    `oversampling` times the prompts are drawn, and the first whose groups are mixed are kept; 1 keeps all prompts.

    Verified: exact enumeration of filter and refill; aggregation matrix of verl.
    """
    keep = lambda prompts, answers: Plan(select=dynamic_sampling(prompts), prompts=oversampling)  # noqa: E731
    return Recipe(
        spec=called(dapo, locals()),
        advantage=per_token(standardised(ddof=ddof, eps=eps)),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=token_mean()),
        plan=keep if oversampling > 1 else None,
    )


def reroll(blocks: int = 4) -> Recipe:
    """Same-prompt re-roll (own name): groups are drawn again until mixed, RLOO on the first mixed one.

    Verified: exact enumeration of its weight 1/(1 - p^G - (1-p)^G).
    """
    plan = lambda prompts, answers: Plan(select=reroll_until_mixed(answers), answers=blocks * answers)  # noqa: E731
    return Recipe(
        spec=called(reroll, locals()),
        advantage=per_token(leave_one_out()),
        objective=Objective(surrogate=reinforce(), aggregate=answer_sum()),
        plan=plan,
    )


def pods(factor: int = 4, low: float = 0.2, high: float = 0.2, ddof: int = 1, eps: float = 1e-4) -> Recipe:
    """PODS (arXiv 2504.13818): of factor · G answers the G of largest reward variance, then GRPO on them.

    Verified: the subset against brute force.
    """
    plan = lambda prompts, answers: Plan(select=max_variance(answers), answers=factor * answers)  # noqa: E731
    return Recipe(
        spec=called(pods, locals()),
        advantage=per_token(standardised(ddof=ddof, eps=eps)),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=answer_mean()),
        plan=plan,
    )


def vl_norm(alpha: float = 1.0) -> Recipe:
    """VL-Norm (arXiv 2509.07558): leave-one-out, A · log π, answers weighed by L^-alpha over its mean.

    Verified: exact enumeration over sequences; reference vectors.
    """
    return Recipe(
        spec=called(vl_norm, locals()),
        advantage=per_token(leave_one_out()),
        objective=Objective(surrogate=reinforce(), aggregate=variance_reduced_length(alpha=alpha)),
    )


def clip_cov_grpo(fraction: float = 2e-4, low: float = 1.0, high: float = 5.0) -> Recipe:
    """Clip-Cov (Cui et al., 2025): GRPO without the gradient of random tokens whose covariance lies in [low, high].

    Verified: selection by hand; the same tokens for any accumulation and mesh.
    """
    return Recipe(
        spec=called(clip_cov_grpo, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6)),
        objective=Objective(
            surrogate=clipped(),
            aggregate=token_mean(),
            corrections=(clip_cov(fraction=fraction, low=low, high=high),),
        ),
    )


def kl_cov_grpo(fraction: float = 2e-4, coefficient: float = 0.1) -> Recipe:
    """KL-Cov (Cui et al., 2025): GRPO with a KL to the sampler at the tokens of largest covariance.

    Verified: selection by hand; the same tokens for any accumulation and mesh.
    """
    return Recipe(
        spec=called(kl_cov_grpo, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6)),
        objective=Objective(
            surrogate=clipped(),
            aggregate=token_mean(),
            penalties=(kl_cov(fraction=fraction, coefficient=coefficient),),
        ),
    )
