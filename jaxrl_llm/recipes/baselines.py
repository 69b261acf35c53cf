"""Methods that differ in what is subtracted from a reward, on one policy gradient: A · log π summed over tokens."""

from jaxrl_llm.advantages import (
    AdvantageTransform,
    at_end,
    batch_leave_one_out,
    beta_tracker,
    chain,
    empirical_bayes,
    energy_tracker,
    gae,
    greedy,
    group_mean,
    group_quantile,
    james_stein,
    james_stein_deployed,
    kalman,
    length_weighted,
    no_baseline,
    optimal_token_baseline,
    per_token,
    reward_to_go,
    shrunk_leave_one_out,
    token_whiten,
)
from jaxrl_llm.losses import Objective, answer_mean, answer_sum, clipped, k1, k2, reinforce, token_mean
from jaxrl_llm.recipes._base import Recipe, called
from jaxrl_llm.recipes._parts import kl_if_any


def _policy_gradient(spec: str, advantage: AdvantageTransform, **parts) -> Recipe:
    objective = Objective(surrogate=reinforce(), aggregate=answer_sum())
    return Recipe(spec=spec, advantage=advantage, objective=objective, **parts)


def remax() -> Recipe:
    """ReMax (Li et al., 2023): r - r(greedy answer), A · log π, summed over tokens.

    Verified: exact enumeration; reference vectors.
    """
    return _policy_gradient(called(remax, locals()), per_token(greedy()))


def opo(leave_one_out: bool = False) -> Recipe:
    """OPO (Hao et al., 2025): r - Σ L r / Σ L over the group, A · log π, summed over tokens.

    The published baseline holds the own answer; with `leave_one_out` it does not, and is unbiased.

    Verified: row of verl; exact enumeration; reference vectors.
    """
    return _policy_gradient(called(opo, locals()), per_token(length_weighted(leave_one_out=leave_one_out)))


def otb(leave_one_out: bool = False, zero_tail: bool = True) -> Recipe:
    """OTB (arXiv 2602.07078): rₜ - Σ W r / Σ W at each position, W the energy so far, A · log π, summed over tokens.

    Verified: exact expectations over sequences, with and without the own answer; reference vectors.
    """
    token = optimal_token_baseline(leave_one_out=leave_one_out, zero_tail=zero_tail)
    credit = chain(at_end(no_baseline()), reward_to_go(discount=1.0), token)
    return _policy_gradient(called(otb, locals()), credit)


def spo(minimum_decay: float = 0.875, maximum_decay: float = 0.96) -> Recipe:
    """SPO (arXiv 2509.13232): r - α/(α+β) of a Beta tracker of each prompt, read first, then whitened over tokens.

    The released tracker forgets faster the more the policy has moved on the prompt; here it forgets at
    `maximum_decay`, because no drift is measured: the trainer gives 0. The whitening includes the own answer.

    Verified: trace of the tracker in the reference vectors; exact enumeration of the tracker.
    """
    tracker = beta_tracker(minimum_decay=minimum_decay, maximum_decay=maximum_decay)
    credit = chain(per_token(tracker), token_whiten(ddof=1, eps=1e-8, guard="variance"))
    return _policy_gradient(called(spo, locals()), credit)


def rloo_shrunk(factor: float = 0.8) -> Recipe:
    """Shrunk RLOO (own derivation): r - factor · leave-one-out mean, A · log π, summed over tokens.

    Verified: exact enumeration; reference vectors at the best factor.
    """
    return _policy_gradient(called(rloo_shrunk, locals()), per_token(shrunk_leave_one_out(factor=factor)))


def rloo_batch() -> Recipe:
    """Batch RLOO (Kool et al., 2019): r - mean of all other answers of the batch, A · log π, summed over tokens.

    Verified: exact enumeration; reference vectors.
    """
    return _policy_gradient(called(rloo_batch, locals()), per_token(batch_leave_one_out()))


def rloo_james_stein(deployed: bool = False, smoothing: float = 0.9) -> Recipe:
    """James-Stein RLOO (arXiv 2511.03710): r - (1-λ) · leave-one-out - λ · mean of the other prompts.

    λ and its anchor leave the own prompt out; `deployed` is the released form, smoothed over steps and leaky.

    Verified: exact enumeration, which also shows the leak; reference vectors.
    """
    baseline = james_stein_deployed(smoothing=smoothing) if deployed else james_stein()
    return _policy_gradient(called(rloo_james_stein, locals()), per_token(baseline))


def ebpo(leave_one_out: bool = True) -> Recipe:
    """EBPO (arXiv 2602.05165): r less the group mean shrunk to a running global mean by within/between variance.

    Verified: exact enumeration. The ratio itself is unverified: only the abstract was at hand.
    """
    return _policy_gradient(called(ebpo, locals()), per_token(empirical_bayes(leave_one_out=leave_one_out)))


def krpo(process_variance: float = 1e-3, noise_variance: float = 0.25, mean: float = 0.0) -> Recipe:
    """KRPO (arXiv 2505.07527): r less a Kalman-filtered mean of past rewards, A · log π, summed over tokens.

    Verified: exact enumeration of the causal form. Its numbers are unverified: the paper's were not at hand.
    """
    credit = kalman(process_variance=process_variance, noise_variance=noise_variance, mean=mean, variance=1.0)
    return _policy_gradient(called(krpo, locals()), per_token(credit))


def reinforce_energy(decay: float = 0.9) -> Recipe:
    """Energy tracker (own derivation): r - EMA(r e)/EMA(e), e the squared norm of an answer's score in the logits.

    Verified: exact enumeration with a state of other batches.
    """
    return _policy_gradient(called(reinforce_energy, locals()), per_token(energy_tracker(decay=decay)))


def qae(level: float = 0.6) -> Recipe:
    """QAE (arXiv 2509.22611): r - quantile of the group's rewards, clipped ratio, mean over tokens, then answers.

    Verified: exact enumeration of its F'(p); reference vectors.
    """
    return Recipe(
        spec=called(qae, locals()),
        advantage=per_token(group_quantile(level=level)),
        objective=Objective(surrogate=clipped(), aggregate=answer_mean()),
    )


def reinforce_pp(low: float = 0.2, high: float = 0.2, kl_coefficient: float = 0.0) -> Recipe:
    """REINFORCE++ (Hu, 2025): return whitened over the tokens of the batch, clipped ratio, mean over tokens.

    Verified: row of verl, dead groups included; vector of SkyRL.
    """
    credit = chain(at_end(no_baseline()), reward_to_go(discount=1.0), token_whiten(ddof=1, eps=1e-8, guard="variance"))
    penalties = kl_if_any(k1, kl_coefficient, "reward")
    return Recipe(
        spec=called(reinforce_pp, locals()),
        advantage=credit,
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=token_mean(), penalties=penalties),
    )


def reinforce_pp_baseline(low: float = 0.2, high: float = 0.2, kl_coefficient: float = 0.0) -> Recipe:
    """REINFORCE++-baseline (Hu, 2025): r - group mean, whitened over tokens, clipped ratio, mean over tokens, k2.

    Verified: row of verl, dead groups included.
    """
    penalties = kl_if_any(k2, kl_coefficient, "loss")
    return Recipe(
        spec=called(reinforce_pp_baseline, locals()),
        advantage=chain(per_token(group_mean()), token_whiten(ddof=1, eps=1e-8, guard="variance")),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=token_mean(), penalties=penalties),
    )


def ppo(
    low: float = 0.2, high: float = 0.2, discount: float = 1.0, decay: float = 0.95, value_learning_rate: float = 1e-3
) -> Recipe:
    """PPO (Schulman et al., 2017): generalised advantage of a value network, whitened, clipped ratio, mean over tokens.

    Verified: exact expectations over sequences, with the exact value and a wrong one; vectors of verl and slime.
    """

    def value(policy):
        from jaxrl_llm.companions import value_network  # flax and optax: not needed to name a recipe

        return value_network(policy, learning_rate=value_learning_rate, discount=discount)

    credit = chain(
        at_end(no_baseline()), gae(discount=discount, decay=decay), token_whiten(ddof=1, eps=1e-8, guard="variance")
    )
    return Recipe(
        spec=called(ppo, locals()),
        advantage=credit,
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=token_mean()),
        companion=value,
        gives=("value",),
    )
