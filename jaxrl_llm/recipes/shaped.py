"""Methods that differ in the reward and in the data: its form, its length, diagnostic rewards, several objectives."""

from jaxrl_llm.advantages import chain, group_mean, group_std, per_token
from jaxrl_llm.advantages.weights.difficulty_weight import difficulty_weight
from jaxrl_llm.losses import Objective, answer_mean, clipped, entropy_bonus, fixed_divisor, k3, kl, token_mean
from jaxrl_llm.recipes._base import UNCHANGED, Recipe, called
from jaxrl_llm.recipes._parts import standardised
from jaxrl_llm.rewards import _base as rewards
from jaxrl_llm.rewards.controllers.dynamic_hypervolume import dynamic_hypervolume
from jaxrl_llm.rewards.controllers.gradient_influence import gradient_influence
from jaxrl_llm.rewards.transforms import diagnostics, majority_vote
from jaxrl_llm.rewards.transforms.conciseness import conciseness
from jaxrl_llm.rewards.transforms.formats import additive_format, gated_format, simplerl_independent
from jaxrl_llm.rewards.transforms.shortest_correct import shortest_correct_bonus
from jaxrl_llm.rewards.transforms.weighted_components import weighted_components
from jaxrl_llm.rollouts.curriculum import easy_to_hard
from jaxrl_llm.rollouts.screening import Screening
from jaxrl_llm.rollouts.select.dynamic_sampling import dynamic_sampling
from jaxrl_llm.rollouts.select.plan import Plan


def spurious(kind: str = "random", probability: float = 0.5) -> Recipe:
    """Spurious rewards (arXiv 2508.21188): GRPO on a diagnostic reward; `kind` says which.

    random, inverted, format, majority, entropy, or gated: right and well-formed, the honest one.

    Verified: a random reward has no expected gradient on-policy, and one under clipping; inverted is minus accuracy.
    """
    kinds = {
        "random": lambda: diagnostics.random_reward(probability, format=1),
        "inverted": lambda: diagnostics.inverted(format=1),
        "format": diagnostics.format_only,
        "majority": lambda: majority_vote.majority_vote(format=1),
        "entropy": diagnostics.mean_log_probability,
        "gated": gated_format,
    }
    if kind not in kinds:
        raise ValueError(f"kind must be one of {', '.join(kinds)}, not {kind!r}")
    return Recipe(
        spec=called(spurious, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6)),
        objective=Objective(surrogate=clipped(high=0.28), aggregate=token_mean()),
        reward=kinds[kind](),
    )


def simplerl_zoo(independent: bool = False, kl_coefficient: float = 1e-3, entropy: float = 1e-3) -> Recipe:
    """SimpleRL-Zoo (arXiv 2503.18892): correctness alone, GRPO with a mean over tokens, k3 in the loss, entropy bonus.

    `independent` is the reward with a penalty on the form (1, 1/2, -1/2, -1), which weak models do not survive.

    Verified: table of rewards.
    """
    return Recipe(
        spec=called(simplerl_zoo, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6)),
        objective=Objective(
            surrogate=clipped(),
            aggregate=token_mean(),
            penalties=(kl(k3, kl_coefficient, "loss"), entropy_bonus(entropy)),
        ),
        reward=simplerl_independent() if independent else UNCHANGED,
    )


def observe_r1(
    sigma: float = 1.8, bonus: float = 0.2, longer_than: int = 100, format_weight: float = 0.5, ladder: int = 0
) -> Recipe:
    """Observe-R1 (arXiv 2505.12432): right + form + bonus of the shortest, GRPO's credit times 4σ d(1-d).

    ladder   attempts at each problem before RL, by which easy problems come first; 0: uniform order. Its smoothing, a
             tenth of the table, is unverified: it is known second-hand only.

    Verified: both goldens; the trap of all-wrong groups.
    """
    reward = rewards.chain(additive_format(format_weight), shortest_correct_bonus(bonus, longer_than, 0))
    credit = chain(group_mean(), group_std(ddof=1, eps=1e-9), difficulty_weight(sigma=sigma))
    return Recipe(
        spec=called(observe_r1, locals()),
        advantage=per_token(credit),
        objective=Objective(surrogate=clipped(), aggregate=answer_mean()),
        reward=reward,
        screening=Screening(attempts=ladder, order=lambda rate: easy_to_hard(rate, width=0.1)) if ladder else None,
    )


def critique_coder(low: float = 0.2, high: float = 0.3, oversampling: int = 2) -> Recipe:
    """Critique-Coder (arXiv 2509.22824): GRPO on mixed groups, higher upper clip, mean over tokens, no KL.

    Its fifth of critique items is the task: `--task critique:addition`.

    Verified: parts of DAPO; balanced labels of the task.
    """
    keep = lambda prompts, answers: Plan(select=dynamic_sampling(prompts), prompts=oversampling)  # noqa: E731
    return Recipe(
        spec=called(critique_coder, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6)),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=token_mean()),
        plan=keep if oversampling > 1 else None,
    )


def gui_g1(divisor: float = 64.0, low: float = 0.2, high: float = 0.2) -> Recipe:
    """GUI-G1 (arXiv 2505.15810): r - mean, clipped ratio, sum over tokens by a constant that is not the length limit.

    The weight of a prompt by its difficulty is `prompt_weight`; the released data have 1 throughout.

    Verified: equality with Dr. GRPO up to the divisor.
    """
    return Recipe(
        spec=called(gui_g1, locals()),
        advantage=per_token(group_mean()),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=fixed_divisor(divisor=divisor)),
    )


def hypervolume_weighting(scaled: bool = False) -> Recipe:
    """Hypervolume weighting (arXiv 2509.11452): reward times 0.5 + 1.5 tanh of the gain in hypervolume, r - mean.

    Objectives are correctness, form and brevity, a third of the reward each; the point of a step is its batch mean,
    where the paper validates. `scaled` divides by the group's deviation, which cancels the multiplier: the default of
    the release.

    Verified: golden volumes; the multiplier has no effect once credit is divided by a deviation.
    """
    reward = rewards.chain(conciseness(), weighted_components((1 / 3,) * 3), dynamic_hypervolume((True,) * 3))
    return Recipe(
        spec=called(hypervolume_weighting, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6) if scaled else group_mean()),
        objective=Objective(surrogate=clipped(), aggregate=token_mean(), penalties=(kl(k3, 1e-3, "loss"),)),
        reward=reward,
    )


def gradient_weighting(learning_rate: float = 1e-6, mu: float = 1e-5) -> Recipe:
    """Gradient weighting (arXiv 2509.11452): weights of correctness and form follow the influence of their gradients.

    w ← softmax(log w + learning_rate · I / mu), I_k = Σ_j ⟨g_k, g_j⟩, each gradient that of GRPO on one component. One
    backward pass a component more. The release takes the gradients of some layers, here of all.

    Verified: identities of the controller; inner products against the gradients themselves.
    """
    return Recipe(
        spec=called(gradient_weighting, locals()),
        advantage=per_token(standardised(ddof=1, eps=1e-6)),
        objective=Objective(surrogate=clipped(), aggregate=token_mean(), penalties=(kl(k3, 1e-3, "loss"),)),
        reward=gradient_influence((0.5, 0.5), learning_rate, mu),
    )
