"""Presets against the numbers of the libraries they are named after.

The groups A ... F with lengths 2, 5, 3, 4 and the loss matrix 1 ... 12 are one exercise put to every library. Literal
numbers follow the formula of the version that stands beside them; gradients follow a formula in numpy below.
"""

import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm.advantages import bare_rollout
from jaxrl_llm.losses import Tokens, bare_tokens
from jaxrl_llm.recipes import presets

PUBLIC = [name for name, f in inspect.getmembers(presets, inspect.isfunction) if "_as_in_" in name]
VERSIONS = {
    "trl": "f2cd577",
    "verl": "1dda039",
    "openrlhf": "3c3be62",
    "open_instruct": "e6c3044",
    "nemo": "7ea279a",
    "oat": "c1a074c",
    "skyrl": "a956457",
}


def cited(name) -> str:
    """The name of a preset with the version of the library; other values as they are."""
    if not isinstance(name, str):
        return str(name)
    return f"{name}@{VERSIONS[name.partition('_as_in_')[2].partition('(')[0]]}"


every_preset = pytest.mark.parametrize("name", PUBLIC, ids=cited)


# Credit

A, B, C = [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]
D, E, F = [0, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.5, 0.9, 0.4]
GROUPS = np.array([A, B, C, D, E, F], np.float32)
LENGTHS = np.array([2, 5, 3, 4])
NONE = [0, 0, 0, 0]

CENTRED = [
    [0.75, -0.25, -0.25, -0.25],
    [0.25, 0.25, 0.25, -0.75],
    [0.5, 0.5, -0.5, -0.5],
    NONE,
    NONE,
    [-0.3, 0, 0.4, -0.1],
]
SCORES = [  # ddof 1, eps of 1e-6 and less
    [1.5, -0.5, -0.5, -0.5],
    [0.5, 0.5, 0.5, -1.5],
    [0.86603, 0.86603, -0.86603, -0.86603],
    NONE,
    NONE,
    [-1.01905, 0, 1.35873, -0.33968],
]
SCORES_OF_TRL = [  # ddof 1, eps 1e-4
    [1.4997, -0.4999, -0.4999, -0.4999],
    [0.4999, 0.4999, 0.4999, -1.4997],
    [0.86588, 0.86588, -0.86588, -0.86588],
    NONE,
    NONE,
    [-1.0187, 0, 1.35827, -0.33957],
]
LEAVE_ONE_OUT = [
    [1, -1 / 3, -1 / 3, -1 / 3],
    [1 / 3, 1 / 3, 1 / 3, -1],
    [2 / 3, 2 / 3, -2 / 3, -2 / 3],
    NONE,
    NONE,
    [-0.4, 0, 0.53333, -0.13333],
]
# Spelling of a preset -> its credit on A ... F, the same at every token of an answer.
CREDIT = {
    "grpo_as_in_trl": SCORES_OF_TRL,
    "grpo_as_in_trl(scale_rewards=batch)": [
        [1.56798, -0.52266, -0.52266, -0.52266],
        [0.52266, 0.52266, 0.52266, -1.56798],
        [1.04532, 1.04532, -1.04532, -1.04532],
        NONE,
        NONE,
        [-0.62719, 0, 0.83626, -0.20906],
    ],
    "grpo_as_in_trl(scale_rewards=none)": CENTRED,
    "cispo_as_in_trl": SCORES_OF_TRL,
    "rloo_as_in_trl": LEAVE_ONE_OUT,
    "grpo_as_in_verl": SCORES,
    "gspo_as_in_verl": SCORES,
    "dr_grpo_as_in_verl": CENTRED,
    "rloo_as_in_verl": LEAVE_ONE_OUT,
    "opo_as_in_verl": [  # baselines 2/14, 10/14, 7/14, 0, 1, 7.2/14
        [0.85714, -0.14286, -0.14286, -0.14286],
        [0.28571, 0.28571, 0.28571, -0.71429],
        [0.5, 0.5, -0.5, -0.5],
        NONE,
        NONE,
        [-0.31429, -0.014286, 0.38571, -0.11429],
    ],
    "gpg_as_in_verl": [  # 24 answers, 14 of them with a reward
        [1.28571, -0.42857, -0.42857, -0.42857],
        [0.42857, 0.42857, 0.42857, -1.28571],
        [0.85714, 0.85714, -0.85714, -0.85714],
        NONE,
        NONE,
        [-0.51429, 0, 0.68571, -0.17143],
    ],
    "grpo_pass_at_k_as_in_verl": [[2, 0, 0, 0], NONE, NONE, NONE, NONE, [0, 0, 1.35873, 0]],
    "reinforce_pp_as_in_verl": [
        [1.1147, -1.02308, -1.02308, -1.02308],
        [1.1147, 1.1147, 1.1147, -1.02308],
        [1.1147, 1.1147, -1.02308, -1.02308],
        [-1.02308] * 4,
        [1.1147] * 4,
        [-0.59553, 0.045814, 0.90092, -0.16797],
    ],
    "reinforce_pp_baseline_as_in_verl": [
        [2.3543, -0.69757, -0.69757, -0.69757],
        [0.82836, 0.82836, 0.82836, -2.2235],
        [1.59133, 1.59133, -1.46054, -1.46054],
        [0.065397] * 4,
        [0.065397] * 4,
        [-0.85016, 0.065397, 1.28614, -0.23979],
    ],
    "grpo_as_in_openrlhf": SCORES,
    "reinforce_pp_as_in_openrlhf": [
        [1.1214, -1.02923, -1.02923, -1.02923],
        [1.1214, 1.1214, 1.1214, -1.02923],
        [1.1214, 1.1214, -1.02923, -1.02923],
        [-1.02923] * 4,
        [1.1214] * 4,
        [-0.5991, 0.046088, 0.90633, -0.16898],
    ],
    "grpo_as_in_open_instruct": CENTRED,
    "grpo_as_in_open_instruct(standard=True)": [
        [1.73205, -0.57735, -0.57735, -0.57735],
        [0.57735, 0.57735, 0.57735, -1.73205],
        [1, 1, -1, -1],
        NONE,
        NONE,
        [-1.1767, 0, 1.56893, -0.39223],
    ],
    "grpo_as_in_nemo": [  # where the others agree nothing is divided
        [1, -0.57735, -0.57735, -0.57735],
        [0.57735, 0.57735, 0.57735, -1],
        [1.1547, 1.1547, -1.1547, -1.1547],
        NONE,
        NONE,
        [-1.51185, 0, 3.49146, -0.37966],
    ],
    "grpo_as_in_nemo(leave_one_out_baseline=False)": SCORES,
    "dr_grpo_as_in_oat": CENTRED,
    "grpo_as_in_oat": SCORES,
    "maxrl_as_in_skyrl": [
        [3, -1, -1, -1],
        [1 / 3, 1 / 3, 1 / 3, -1],
        [1, 1, -1, -1],
        NONE,
        NONE,
        [-0.6, 0, 0.8, -0.2],
    ],
}
# Credit of a reward of one millionth in a group of failures: deviation 5e-7, so the eps of every library shows.
MILLIONTH = {
    "grpo_as_in_trl": 0.0074627,
    "cispo_as_in_trl": 0.0074627,
    "grpo_as_in_verl": 0.5,
    "gspo_as_in_verl": 0.5,
    "grpo_pass_at_k_as_in_verl": 1 / 1.5,
    "grpo_as_in_oat": 1.470588,
    "grpo_as_in_openrlhf": 1.497006,
    "grpo_as_in_open_instruct(standard=True)": 1.692955,
    "grpo_as_in_nemo(leave_one_out_baseline=False)": 0.5,
    "maxrl_as_in_skyrl": 0.6,
    "reinforce_pp_as_in_verl": 0.00857137,
    "reinforce_pp_baseline_as_in_verl": 0.00857137,
    "reinforce_pp_as_in_openrlhf": 0.00857143,
}


def preset(spelling: str):
    """`name` or `name(key=value)`."""
    name, _, rest = spelling.rstrip(")").partition("(")
    key, _, value = rest.partition("=")
    words = {"True": True, "False": False}
    return getattr(presets, name)(**({key: words.get(value, value)} if rest else {}))


def credit_of(recipe, reward, components=None, lengths=LENGTHS):
    """Credit [P G T], and the acted tokens."""
    reward = jnp.asarray(reward, jnp.float32)
    acted = np.broadcast_to(np.arange(lengths.max()) < lengths[:, None], (*reward.shape, lengths.max()))
    rollout = bare_rollout(reward, acted=jnp.asarray(acted))
    if components is not None:
        fields = {name: getattr(rollout, name) for name in rollout.__dataclass_fields__}
        rollout = type(rollout)(**fields | {"components": jnp.asarray(components, jnp.float32)})
    update = tiny.jit(lambda r: recipe.advantage.update(r.reward, recipe.advantage.init(), r)[0])
    return np.asarray(update(rollout)), acted


def test_every_preset_has_golden_credit():
    assert {name.partition("(")[0] for name in CREDIT} | {"gdpo_as_in_trl"} == set(PUBLIC)


@pytest.mark.parametrize("spelling", CREDIT, ids=cited)
def test_credit_on_the_groups_a_to_f(spelling):
    credit, acted = credit_of(preset(spelling), GROUPS)
    expected = np.where(acted, np.asarray(CREDIT[spelling], np.float32)[..., None], 0)
    # Five decimals; an eps of 1e-6 beside a mean of 1/4 is not in them.
    np.testing.assert_allclose(credit, expected, rtol=5e-6, atol=6e-6)


@pytest.mark.parametrize("spelling", MILLIONTH, ids=cited)
def test_eps_of_each_library_shows_in_rewards_of_a_millionth(spelling):
    credit, _ = credit_of(preset(spelling), np.array([[1e-6, 0, 0, 0]]))
    np.testing.assert_allclose(credit[0, 0, 0], MILLIONTH[spelling], rtol=1e-5)


def test_gdpo_of_trl_on_two_components():
    """TRL f2cd577, normalize_then_sum: the second component pays answers 1 and 3 in all groups but C and F."""
    second = np.array([1, 1, 0, 1, 1, 0])[:, None] * np.array([1, 0, 1, 0])
    credit, acted = credit_of(presets.gdpo_as_in_trl(), GROUPS + second, np.stack([GROUPS, second], -1))
    expected = [
        [2.0402, -1.17792, 0.31564, -1.17792],
        [1.17792, -0.31564, 1.17792, -2.0402],
        [0.74678, 0.74678, -0.74678, -0.74678],
        [0.74678, -0.74678, 0.74678, -0.74678],
        [0.74678, -0.74678, 0.74678, -0.74678],
        [-0.87858, 0, 1.17144, -0.29286],
    ]
    np.testing.assert_allclose(credit, np.where(acted, np.asarray(expected)[..., None], 0), rtol=0, atol=1e-5)


def test_maxrl_of_skyrl_on_its_own_vectors():
    """SkyRL a956457: (6, 3) and (9, 12) by their means of 4.5 and 10.5."""
    credit, _ = credit_of(presets.maxrl_as_in_skyrl(), [[6, 3], [9, 12]], lengths=np.array([1, 1]))
    expected = [[1.5 / 4.5, -1.5 / 4.5], [-1.5 / 10.5, 1.5 / 10.5]]
    np.testing.assert_allclose(credit[..., 0], expected, rtol=1e-5)


def test_grpo_of_nemo_on_its_own_vectors():
    """NeMo-RL 7ea279a: rewards 1 ... 6, baselines 2.5, 2, 1.5, 5.5, 5, 4.5, deviations √½, √2, √½ of the others."""
    credit, _ = credit_of(presets.grpo_as_in_nemo(), [[1, 2, 3], [4, 5, 6]], lengths=np.array([1, 1, 1]))
    np.testing.assert_allclose(credit[..., 0], np.array([[-1.5, 0, 1.5]] * 2) / np.sqrt(0.5), rtol=1e-5, atol=1e-6)


# Gradients


class Case(NamedTuple):
    """A loss whose derivative in logp is weigh · (-pull + beta (1 - π_ref/π)).

    pull       ((ratio of the token, of the answer, geometric mean), A) -> derivative of the surrogate
    weigh      (lengths [B 1], mask [B T]) -> weights of tokens
    beta       coefficient of k3 in the loss
    corrected  min(π_old/μ of the answer, 2) is a factor on `pull`
    """

    pull: Callable
    weigh: Callable
    beta: float = 0.0
    corrected: bool = False


def clip(low=0.2, high=0.2, dual=np.inf, which=0):
    """Derivative ratio · A where the clipped term is not the smaller one; `which` ratio: token, answer, mean."""

    def pull(ratios, credit):
        ratio = ratios[which]
        dead = (credit > 0) & (ratio > 1 + high) | (credit < 0) & ((ratio < 1 - low) | (ratio > dual))
        return np.where(dead, 0, ratio * credit)

    return pull


def by_tokens(length, where):
    return np.ones_like(length) / np.sum(where)


def by_answers_and_tokens(length, where):
    return 1 / (np.maximum(length, 1) * len(length))


def by_answers(length, where):
    return np.ones_like(length) / len(length)


def by_1024(length, where):
    return np.ones_like(length) / (1024 * len(length))


VERL = clip(dual=3.0)
CASES = {
    "grpo_as_in_trl": Case(clip(), by_tokens),
    "gdpo_as_in_trl": Case(clip(), by_tokens),
    "cispo_as_in_trl": Case(lambda ratios, credit: np.minimum(ratios[0], 5) * credit, by_tokens),
    "rloo_as_in_trl": Case(clip(which=1), by_answers),
    "grpo_as_in_verl": Case(VERL, by_tokens, beta=0.001),
    "dr_grpo_as_in_verl": Case(VERL, by_1024),
    "rloo_as_in_verl": Case(VERL, by_tokens),
    "opo_as_in_verl": Case(VERL, by_tokens),
    "gpg_as_in_verl": Case(lambda ratios, credit: credit * np.ones_like(ratios[0]), by_tokens),
    "grpo_pass_at_k_as_in_verl": Case(VERL, by_tokens),
    "reinforce_pp_as_in_verl": Case(VERL, by_tokens),
    "reinforce_pp_baseline_as_in_verl": Case(VERL, by_tokens),
    "gspo_as_in_verl": Case(clip(3e-4, 4e-4, which=2), by_answers_and_tokens),
    "grpo_as_in_openrlhf": Case(clip(), by_tokens),
    "reinforce_pp_as_in_openrlhf": Case(clip(), by_tokens),
    "grpo_as_in_open_instruct": Case(clip(high=0.272), by_tokens, beta=0.05, corrected=True),
    "grpo_as_in_nemo": Case(clip(), by_tokens),
    "dr_grpo_as_in_oat": Case(clip(), by_1024),
    "grpo_as_in_oat": Case(clip(), by_answers_and_tokens),
    "maxrl_as_in_skyrl": Case(clip(), by_tokens),
}

# Eight answers: a credit, and the ratio of each token to the policy that sampled. Ratios lie below, between and above
# all bounds: 0.8, 1.2, 1.272, the dual 3 and TRL's 5 for tokens, 0.8 and 1.2 for products, 1 - 3e-4 and 1 + 4e-4 for
# geometric means.
STALE = [
    (1.5, [1.1, 1.25, 0.5, 8.0]),
    (-0.5, [0.9, 1.25, 4.0]),
    (-1.0, [0.5, 1.0]),
    (0.5, [1.05]),
    (1.0, [1.0001, 1.0002, 1.0]),
    (-1.0, [0.9995, 0.9994]),
    (0.0, [1.3, 0.7]),
    (-2.0, [1.3]),
]
# Ratio of the policy that sampled to the distribution that was sampled: products 3, 0.5, 1.44, and 1 for the rest.
ENGINE = [[1.5, 2, 1, 1], [0.5, 1, 1], [1.2, 1.2], [1], [1, 1, 1], [1, 1], [1, 1], [1]]


def ragged(rows):
    """Rows [8] of up to 4 numbers as [8 4], with 1 where nothing is."""
    return np.array([[*row, *[1.0] * (4 - len(row))] for row in rows], np.float64)


def batch(stale: bool, engine: bool) -> tuple[Tokens, np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [2 4 4], and the ratios π/π_old, π_old/μ and the mask, [8 4]."""
    where = np.arange(4) < np.array([len(row) for _, row in STALE])[:, None]
    ratio = ragged([row for _, row in STALE]) if stale else np.ones((8, 4))
    sampled = ragged(ENGINE) if engine else np.ones((8, 4))
    policy = -np.linspace(0.5, 2.5, 32).reshape(8, 4)
    logp = policy + np.log(ratio)
    fields = {
        "logp": logp,
        "policy_logp": policy,
        "behaviour_logp": policy - np.log(sampled),
        "reference_logp": logp + np.resize([0.3, -0.2, 0.7, -0.9, 0.0], (8, 4)),
        "advantage": np.array([credit for credit, _ in STALE])[:, None] * np.ones((8, 4)),
    }
    arrays = {name: jnp.asarray(x.reshape(2, 4, 4), jnp.float32) for name, x in fields.items()}
    return bare_tokens(jnp.asarray(where.reshape(2, 4, 4)), **arrays), ratio, sampled, where


def slope_by_hand(case: Case, tokens: Tokens, ratio, sampled, where):
    """d loss / d logp [8 4]."""
    length = where.sum(-1, keepdims=True)
    whole = np.prod(np.where(where, ratio, 1), -1, keepdims=True) * np.ones_like(ratio)
    credit = np.asarray(tokens.advantage, np.float64).reshape(8, 4)
    pull = case.pull((ratio, whole, whole ** (1 / length)), credit)
    if case.corrected:
        pull = pull * np.minimum(np.prod(np.where(where, sampled, 1), -1, keepdims=True), 2)
    log_ratio = np.asarray(tokens.reference_logp - tokens.logp, np.float64).reshape(8, 4)
    weights = case.weigh(length.astype(float), where)
    return np.where(where, weights * (-pull + case.beta * (1 - np.exp(log_ratio))), 0)


def slope_of(objective, tokens: Tokens):
    def loss(logp):
        fields = {name: getattr(tokens, name) for name in tokens.__dataclass_fields__}
        moved = Tokens(**fields | {"logp": logp})
        return objective.loss(objective.aggregate(tokens.where), moved)

    return np.asarray(tiny.jit(jax.grad(loss))(tokens.logp)).reshape(8, 4)


def test_every_preset_has_a_gradient_by_hand():
    assert set(CASES) == set(PUBLIC)


@pytest.mark.parametrize("stale", [False, True], ids=["on-policy", "off-policy"])
@every_preset
def test_gradient_of_the_loss_is_the_formula_of_the_library(name, stale):
    case = CASES[name]
    tokens, *given = batch(stale, engine=case.corrected)
    actual = slope_of(getattr(presets, name)().objective, tokens)
    np.testing.assert_allclose(actual, slope_by_hand(case, tokens, *given), rtol=1e-5, atol=1e-9)


def test_the_batch_tells_the_surrogates_apart():
    """Every bound decides about some token, so no two of the clips above have the same gradient."""
    pulls = [clip(), clip(high=0.272), VERL, clip(which=1), clip(3e-4, 4e-4, which=2), CASES["cispo_as_in_trl"].pull]
    tokens, *given = batch(stale=True, engine=False)
    slopes = [slope_by_hand(Case(pull, by_tokens), tokens, *given) for pull in pulls]
    for i, one in enumerate(slopes):
        assert all(np.abs(one - other).max() > 0.01 for other in slopes[i + 1 :])


@pytest.mark.parametrize(
    ("name", "ratio", "credit", "golden"),
    [
        ("rloo_as_in_verl", [0.5, 1, 10], [1, -1, -4], 12.5 / 3),
        ("grpo_as_in_nemo", [0.5, 1, 1.5], [1, -1, 2], -0.633333),
        ("grpo_as_in_trl", [0.5, 1, 10], [1, -1, -4], 40.5 / 3),
    ],
    ids=["dual clip of SkyRL@a956457", "clip of NeMo-RL@7ea279a", "no dual clip of TRL@f2cd577"],
)
def test_loss_on_the_vectors_of_the_libraries(name, ratio, credit, golden):
    objective = getattr(presets, name)().objective
    tokens = bare_tokens(
        jnp.ones((3, 1, 1), bool),
        logp=jnp.log(jnp.asarray(ratio, jnp.float32)).reshape(3, 1, 1) - 3,
        behaviour_logp=jnp.full((3, 1, 1), -3.0),
        policy_logp=jnp.full((3, 1, 1), -3.0),
        advantage=jnp.asarray(credit, jnp.float32).reshape(3, 1, 1),
    )
    np.testing.assert_allclose(objective.loss(objective.aggregate(tokens.where), tokens), golden, rtol=1e-5)


@pytest.mark.parametrize("name", ["grpo_as_in_trl", "grpo_as_in_verl", "grpo_as_in_open_instruct"])
def test_the_coefficient_of_k3_is_the_given_one(name):
    """β (1 - π_ref/π) at every token, added to the gradient without it; the correction is not on it."""
    tokens, *given = batch(stale=True, engine=CASES[name].corrected)
    actual = slope_of(getattr(presets, name)(kl_coefficient=0.3).objective, tokens)
    expected = slope_by_hand(CASES[name]._replace(beta=0.3), tokens, *given)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-9)


# Divergence in the reward

KL_LOGP = np.array([[[-1.0, -1.0], [-1.0, -1.0]]], np.float32)
KL_REFERENCE = np.array([[[-1.1, -1.3], [-2.0, -2.0]]], np.float32)


def shaped_credit(recipe):
    """Credit of rewards (1, 0) whose answers diverge by (0.1, 0.3) and (1, 1) at their two tokens, [2 2]."""
    acted = jnp.ones((1, 2, 2), bool)
    tokens = bare_tokens(acted, logp=jnp.asarray(KL_LOGP), reference_logp=jnp.asarray(KL_REFERENCE))
    reward = recipe.objective.shaped_reward(jnp.array([[1.0, 0.0]]), tokens)
    update = recipe.advantage.update(reward, recipe.advantage.init(), bare_rollout(reward, acted=acted))
    return np.asarray(update[0])[0]


def test_rloo_of_trl_subtracts_the_divergence_before_the_baseline():
    """TRL f2cd577: rewards 1 - 0.05 · 0.4 and -0.05 · 2, then ±1.08. After the baseline it would be 0.98 and -1.1."""
    np.testing.assert_allclose(shaped_credit(presets.rloo_as_in_trl()), [[1.08] * 2, [-1.08] * 2], rtol=1e-5)
    tokens, *_ = batch(stale=True, engine=False)
    free, dear = (slope_of(presets.rloo_as_in_trl(c).objective, tokens) for c in (0.0, 5.0))
    np.testing.assert_array_equal(free, dear)  # nothing of it in the loss


def test_differs_from_openrlhf_divergence_of_earlier_tokens_counts_too():
    """OpenRLHF 3c3be62 pays the divergence token by token, so that a return holds only that of later tokens: before
    whitening 1 - 0.1 · (0.4, 0.3) and -0.1 · (2, 1). Here the reward of the answer has it: 0.96 and -0.2 throughout."""

    def whitened(x):
        return (x - np.mean(x)) / np.std(x)

    ours = shaped_credit(presets.reinforce_pp_as_in_openrlhf(kl_coefficient=0.1))
    np.testing.assert_allclose(ours, whitened(np.array([[0.96, 0.96], [-0.2, -0.2]])), rtol=1e-5)
    assert np.abs(ours - whitened(np.array([[0.96, 0.97], [-0.2, -0.1]]))).max() > 0.05


# Aggregation, and where the conventions here are other ones

MATRIX = np.arange(1, 13, dtype=np.float32).reshape(3, 1, 4)
MASK = np.arange(4) < np.array([4, 2, 0]).reshape(3, 1, 1)
# The loss matrix 1 ... 12 with row masks 1111, 1100, 0000; divisor 4.
AGGREGATED = {
    by_tokens: 3.5,
    by_answers_and_tokens: 4.0,
    by_answers: 10.5,
    by_1024: 2.625,
}


def aggregated(name):
    recipe = getattr(presets, name)(**({"divisor": 4.0} if CASES[name].weigh is by_1024 else {}))
    return float(np.sum(np.asarray(recipe.objective.aggregate(jnp.asarray(MASK))) * MATRIX))


@every_preset
def test_aggregation_of_the_loss_matrix(name):
    np.testing.assert_allclose(aggregated(name), AGGREGATED[CASES[name].weigh], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("grpo_as_in_oat", 8 / 3), ("dr_grpo_as_in_oat", 1.75)],
    ids=cited,
)
def test_differs_from_oat_fully_masked_rows_do_not_count(name, theirs):
    """oat, TRL and SkyRL divide by the 3 rows, of which 2 have a token."""
    np.testing.assert_allclose(aggregated(name) * 2 / 3, theirs, rtol=1e-6)


def test_differs_from_verl_of_january_the_fixed_divisor_divides_by_answers():
    """verl b178a3c: 21/4 = 5.25, whatever the number of answers; since 1dda039 that by the two answers."""
    np.testing.assert_allclose(aggregated("dr_grpo_as_in_verl"), 5.25 / 2, rtol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "grpo_as_in_verl",
        "gspo_as_in_verl",
        "dr_grpo_as_in_verl",
        "rloo_as_in_verl",
        "opo_as_in_verl",
        "gpg_as_in_verl",
        "maxrl_as_in_skyrl",
    ],
    ids=cited,
)
def test_differs_from_verl_and_skyrl_a_group_of_one_gets_0(name):
    """They keep its raw reward, as if the mean were 0 and the deviation 1 (verl's two forms of RLOO disagree)."""
    credit, _ = credit_of(getattr(presets, name)(), [[1.0], [0.7]], lengths=np.array([2]))
    np.testing.assert_array_equal(credit, 0)


@pytest.mark.parametrize(
    "name", ["grpo_as_in_trl", "cispo_as_in_trl", "grpo_as_in_openrlhf", "grpo_as_in_oat", "grpo_pass_at_k_as_in_verl"]
)
def test_differs_from_libraries_that_refuse_a_group_of_one_or_give_nan(name):
    credit, _ = credit_of(getattr(presets, name)(), [[1.0], [0.7]], lengths=np.array([2]))
    np.testing.assert_array_equal(credit, 0)
