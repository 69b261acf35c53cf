"""Methods of single papers: signs, difficulty, rewards, selections and second networks."""

from jaxrl_llm import masked
from jaxrl_llm.advantages import at_end, chain, leave_one_out, no_baseline, per_token
from jaxrl_llm.advantages.baselines.pool_mean import pool_mean
from jaxrl_llm.advantages.baselines.role_mean import role_mean
from jaxrl_llm.advantages.tokens.oreal_token_weights import oreal_token_weights
from jaxrl_llm.advantages.tokens.prime import prime as prime_credit
from jaxrl_llm.advantages.tokens.token_whiten import token_whiten
from jaxrl_llm.advantages.weights.beta_density_components import beta_density_components
from jaxrl_llm.advantages.weights.duration_weight import duration_weight
from jaxrl_llm.advantages.weights.negative_only import negative_only
from jaxrl_llm.advantages.weights.oreal_shaping import oreal_shaping
from jaxrl_llm.advantages.weights.positive_only import positive_only
from jaxrl_llm.advantages.weights.selected import selected
from jaxrl_llm.advantages.weights.sigma_filter import sigma_filter
from jaxrl_llm.advantages.weights.weighted_signs import weighted_signs
from jaxrl_llm.anchors import moving_average
from jaxrl_llm.losses import (
    Objective,
    answer_mean,
    answer_sum,
    class_denominators,
    clipped,
    entropy_bonus,
    k1,
    k3,
    kl,
    log_ratio_clamped,
    reinforce,
    token_mean,
)
from jaxrl_llm.recipes._base import Recipe, called
from jaxrl_llm.recipes._parts import kl_if_any
from jaxrl_llm.rollouts.select import reinforce_ada as ada
from jaxrl_llm.rollouts.select.down_selection import keep_random, mark_one_pair
from jaxrl_llm.rollouts.select.dynamic_sampling import dynamic_sampling
from jaxrl_llm.rollouts.select.instance_filter import in_band
from jaxrl_llm.rollouts.select.plan import Plan


def bnpo_components(low: float = 0.2, high: float = 0.28, dual: float = 10.0) -> Recipe:
    """BNPO by components (Xiao et al., 2025): the mean over reward components of each one's (r - mean)/Beta(p; α, β).

    Verified: equal components give BNPO; golden batch.
    """
    return Recipe(
        spec=called(bnpo_components, locals()),
        advantage=per_token(beta_density_components()),
        objective=Objective(surrogate=clipped(low=low, high=high, dual=dual), aggregate=answer_sum()),
    )


def psr() -> Recipe:
    """PSR (arXiv 2506.01347): 1 for right answers, 0 for wrong ones, clipped ratio, mean over tokens.

    Wrong answers stay in the denominator; the released code deletes them.

    Verified: exact enumeration; PSR + NSR = REINFORCE on signs.
    """
    return Recipe(
        spec=called(psr, locals()),
        advantage=per_token(positive_only()),
        objective=Objective(surrogate=clipped(), aggregate=token_mean()),
    )


def nsr() -> Recipe:
    """NSR (arXiv 2506.01347): 0 for right answers, -1 for wrong ones, clipped ratio, mean over tokens.

    Right answers stay in the denominator; the released code deletes them.

    Verified: exact enumeration; PSR + NSR = REINFORCE on signs.
    """
    return Recipe(
        spec=called(nsr, locals()),
        advantage=per_token(negative_only()),
        objective=Objective(surrogate=clipped(), aggregate=token_mean()),
    )


def w_reinforce(positive: float = 0.1) -> Recipe:
    """W-REINFORCE (arXiv 2506.01347): `positive` for right answers, -1 for wrong ones, clipped ratio, mean over tokens.

    Verified: exact enumeration of F'(p) = 1 + positive.
    """
    return Recipe(
        spec=called(w_reinforce, locals()),
        advantage=per_token(weighted_signs(positive=positive)),
        objective=Objective(surrogate=clipped(), aggregate=token_mean()),
    )


def reinforce_ada(target: str = "balanced", round_size: int = 8, rounds: int = 4) -> Recipe:
    """Reinforce-Ada (arXiv 2510.04996): answers are drawn until enough are right and wrong, r - mean of all drawn.

    target "balanced" wants half of each kind, "positive" one right answer, "sequential" half right. All rounds are
    drawn at once, and the answers that a sequential sampler would not have drawn are left out.

    Verified: exact tables of E[drawn], E[pool mean] and weight; a sequential sampler on random pools.
    """
    exits = {
        "balanced": lambda keep: ada.balanced(keep, round_size, rounds),
        "positive": lambda keep: ada.positive_first(keep, round_size, rounds),
        "sequential": lambda keep: ada.until_positives(keep // 2, keep, round_size, rounds),
    }
    if target not in exits:
        raise ValueError(f"target must be one of {', '.join(exits)}, not {target!r}")
    return Recipe(
        spec=called(reinforce_ada, locals()),
        advantage=per_token(pool_mean()),
        objective=Objective(surrogate=clipped(high=0.28, dual=10.0), aggregate=token_mean()),
        plan=lambda prompts, answers: Plan(select=exits[target](answers), answers=rounds * round_size),
        gives=("pool_mean", "pool_std", "drawn"),
    )


def oreal(kl_coefficient: float = 0.01, token_model: bool = False, token_learning_rate: float = 1e-3) -> Recipe:
    """OREAL (arXiv 2502.06781): one right and one wrong answer a prompt, ±1 leave-one-out, a mean for each class, k3.

    `token_model` trains a token reward model, whose logits weigh the tokens of each class; until it tells right from
    wrong nothing else is learned.

    Verified: golden groups; weight on ∇p by enumeration; class means for any accumulation.
    """

    def model(policy):
        from jaxrl_llm.companions import token_reward_model  # flax and optax: not needed to name a recipe

        return token_reward_model(policy, learning_rate=token_learning_rate)

    credit = per_token(chain(oreal_shaping(), selected()))
    objective = Objective(
        surrogate=reinforce(),
        aggregate=token_mean(),
        corrections=(class_denominators(),),
        penalties=(kl(k3, kl_coefficient, "loss"),),
    )
    return Recipe(
        spec=called(oreal, locals()),
        advantage=chain(credit, oreal_token_weights()) if token_model else credit,
        objective=objective,
        plan=lambda prompts, answers: Plan(select=mark_one_pair(0.5)),
        companion=model if token_model else None,
        gives=("selected", "token_score"),
    )


def stable_reinforce(k: float = 3.0, low: float = 0.2, high: float = 0.2, kl_coefficient: float = 1e-3) -> Recipe:
    """StableReinforce (arXiv 2505.02835): whitened r without what is beyond k σ, clip of a clamped log-ratio, k1.

    Verified: both goldens of the filter; finite at log-ratios of 10⁴; equality with PPO inside the clamp.
    """
    penalties = kl_if_any(k1, kl_coefficient, "reward")
    return Recipe(
        spec=called(stable_reinforce, locals()),
        advantage=per_token(sigma_filter(k=k, ddof=0, eps=1e-8, guard="floor")),
        objective=Objective(
            surrogate=log_ratio_clamped(low=low, high=high), aggregate=answer_mean(), penalties=penalties
        ),
    )


def t1(oversampling: int = 4, decay: float = 0.99, kl_coefficient: float = 0.01, entropy: float = 0.001) -> Recipe:
    """T1 (arXiv 2501.11651): oversampled answers, entropy bonus, k3 to a reference that is a moving average.

    The leave-one-out credit and all four numbers are unverified: no training code is public, and the paper's values
    were not at hand.

    Verified: limits of the anchor; its decay by hand.
    """
    plan = lambda prompts, answers: Plan(select=keep_random(answers), answers=oversampling * answers)  # noqa: E731
    penalties = (kl(k3, kl_coefficient, "loss"), entropy_bonus(entropy))
    return Recipe(
        spec=called(t1, locals()),
        advantage=per_token(leave_one_out()),
        objective=Objective(surrogate=reinforce(), aggregate=answer_sum(), penalties=penalties),
        plan=plan if oversampling > 1 else None,
        anchor=moving_average(decay=decay),
    )


def prime(oversampling: int = 2, low: float = 0.2, high: float = 0.8, reward_learning_rate: float = 1e-4) -> Recipe:
    """PRIME (arXiv 2502.01456): leave-one-out outcome and implicit process reward, whitened over tokens, PPO's clip.

    The process reward is log π_φ - log π_ref with φ trained online on outcomes; prompts are kept whose accuracy lies in
    [low, high]. The paper's rate for φ is 1e-6, for a large model.

    Verified: identities of the channels; whitened RLOO where φ is the reference.
    """

    def process(policy):
        from jaxrl_llm.companions import implicit_process_reward  # flax and optax: not needed to name a recipe

        return implicit_process_reward(policy, learning_rate=reward_learning_rate, beta=0.05)

    def middling(reward, valid):
        return in_band(masked.mean(reward, valid, axis=-1), low, high)

    keep = lambda prompts, answers: Plan(select=dynamic_sampling(prompts, middling), prompts=oversampling)  # noqa: E731
    credit = chain(
        at_end(no_baseline()), prime_credit(scale_by_batch_max=True), token_whiten(ddof=1, eps=1e-8, guard="variance")
    )
    return Recipe(
        spec=called(prime, locals()),
        advantage=credit,
        objective=Objective(surrogate=clipped(), aggregate=token_mean()),
        plan=keep,
        companion=process,
        reference=True,
        gives=("process_score",),
    )


def duration_aware() -> Recipe:
    """Duration-aware gradient (arXiv 2509.01684): leave-one-out times the answer's duration over the mean duration.

    The duration of an answer is its number of decoding steps, unless the task gives `duration`.

    Verified: two-action bandit under a deadline.
    """
    return Recipe(
        spec=called(duration_aware, locals()),
        advantage=per_token(chain(leave_one_out(), duration_weight())),
        objective=Objective(surrogate=clipped(), aggregate=answer_sum()),
    )


def advevo_marl(roles: int = 2, leave_one_out: bool = False) -> Recipe:
    """AdvEvo-MARL (arXiv 2510.01586): r - mean over the answers of the same role, clipped ratio, mean over tokens.

    Roles are `Rollout.extras["role"]`; no task here gives more than one, and then the mean is that of the group. The
    set that the mean runs over, and that nothing is divided by a deviation: unverified, no training code is public.

    Verified: exact enumeration; equality with the group mean where all have one role.
    """
    return Recipe(
        spec=called(advevo_marl, locals()),
        advantage=per_token(role_mean(roles=roles, leave_one_out=leave_one_out)),
        objective=Objective(surrogate=clipped(), aggregate=token_mean()),
    )
