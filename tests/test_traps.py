"""Index of the traps: what released code does and its paper does not say, each with the tests named after it.

Numbers are those in the names of tests. Here are the tests that belong to no single file, and the check that the index
is whole.
"""

import ast
import functools
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import advantages, recipes
from jaxrl_llm.advantages import beta_density, chain, group_mean
from jaxrl_llm.losses import Penalty, bare_tokens

TESTS = pathlib.Path(__file__).parent


class Trap(NamedTuple):
    """What it is, and the tests, each as file::name."""

    title: str
    tests: tuple[str, ...]


class NotBuilt(NamedTuple):
    """A trap of a method that is not here yet, and words that would be in the name of its recipe."""

    title: str
    paper: str
    words: tuple[str, ...]


# Estimators, rewards and samplers.
TRAPS = {
    1: Trap(
        "BNPO is NaN where all prompts are equally hard, and its weights do not average 1",
        (
            "advantages/test_weights.py::test_trap_1_bnpo_components_are_finite_where_all_prompts_are_equally_hard",
            "advantages/test_goldens.py::test_bnpo_is_the_group_mean_where_nothing_can_be_fitted",
            "test_traps.py::test_trap_1_the_weights_of_bnpo_do_not_average_1",
        ),
    ),
    2: Trap(
        "the pool that Reinforce-Ada stops by its rewards has a biased mean, keeps the earliest, holds failures",
        (
            "rollouts/select/test_reinforce_ada.py::"
            "test_trap_2_stopped_pools_are_biased_keep_the_earliest_and_hold_all_wrong_prompts",
            "advantages/test_baselines.py::test_trap_2_the_pool_of_a_balancing_sampler_is_biased",
        ),
    ),
    3: Trap(
        "GVM starves prompts without a right answer and divides by a total of zero",
        (
            "rollouts/select/test_allocation.py::"
            "test_trap_3_prompts_without_a_right_answer_starve_and_nothing_is_divided_by_zero",
        ),
    ),
    4: Trap(
        "PSR and NSR delete the rows of a class, which changes the denominator, and keep an entropy bonus on",
        (
            "advantages/test_weights.py::test_trap_4_the_other_class_keeps_its_place_with_credit_0",
            "losses/test_corrections.py::test_trap_deleted_rows_change_the_denominator",
            "test_traps.py::test_trap_4_no_penalty_is_on_that_nobody_asked_for",
        ),
    ),
    5: Trap(
        "OREAL doubles credit by rewards of ±1, multiplies positives by it, and has its divergence on both classes",
        (
            "advantages/test_weights.py::test_trap_5_signs_double_the_leave_one_out_credit_and_both_classes_carry_it",
            "advantages/test_tokens.py::test_trap_rewards_of_plus_and_minus_1_double_leave_one_out",
            "losses/test_corrections.py::test_trap_rewards_of_plus_minus_1_double_the_credit",
            "rollouts/select/test_down_selection.py::test_trap_5_rewards_of_one_and_minus_one_weigh_a_pair_steeply",
            "test_traps.py::test_trap_5_the_divergence_of_oreal_is_on_both_classes",
        ),
    ),
    6: Trap(
        "the outlier filter of R1-Reward is centred on the raw mean, and a verifier that raises pays in full",
        (
            "advantages/test_weights.py::test_trap_6_the_released_outlier_filter_is_centred_on_the_raw_mean",
            "rewards/transforms/test_reward_transforms.py::"
            "test_consistent_result_golden_and_trap_6_a_verifier_that_raises_pays_nothing",
        ),
    ),
    7: Trap(
        "GUI-G1 divides by 64, whatever the length limit is",
        ("test_traps.py::test_trap_7_the_divisor_of_gui_g1_is_not_the_length_limit",),
    ),
    8: Trap(
        "the entropy-adaptive branch of Light-IF cannot be reached",
        ("advantages/test_tokens.py::test_trap_the_entropy_adaptive_bonus_can_be_reached",),
    ),
    9: Trap(
        "a multiplier of all rewards is cancelled by the group's deviation, and a hypervolume can be negative",
        (
            "rewards/transforms/test_reward_controllers.py::"
            "test_trap_9_the_multiplier_has_no_effect_under_a_group_std_and_has_one_without",
            "rewards/transforms/test_reward_controllers.py::"
            "test_trap_9_released_hypervolume_can_be_negative_and_ours_cannot",
        ),
    ),
    10: Trap(
        "Observe-R1 pays its bonus to the first answer of a group of failures",
        (
            "rewards/transforms/test_reward_transforms.py::"
            "test_trap_10_released_bonus_goes_to_the_first_answer_of_an_all_wrong_group",
            "advantages/test_weights.py::test_trap_10_a_bonus_in_a_group_of_failures_dies_with_the_weight",
        ),
    ),
    11: Trap(
        "HPT adds a sum over rows to a mean over rows, a weight that nobody sees",
        ("losses/test_unified.py::test_trap_a_sum_beside_a_mean_hides_a_weight",),
    ),
    12: Trap(
        "groups of one break Trinity's REC, and its TOPR is of tokens",
        (
            "advantages/test_weights.py::test_trap_12_red_drop_of_a_group_of_one_is_0",
            "losses/test_ratio_surrogates.py::test_trap_topr_is_of_answers_in_the_paper_and_of_tokens_in_a_port",
        ),
    ),
    13: Trap(
        "what TRL calls bnpo is a token mean",
        (
            "advantages/test_weights.py::test_trap_13_bnpo_is_beta_normalisation_and_not_an_aggregation_of_tokens",
            "losses/test_losses.py::test_trap_the_bnpo_of_trl_is_a_token_mean",
        ),
    ),
    14: Trap(
        "ToolRL takes nothing off for calls that nobody asked for, and its matching depends on an order",
        (
            "rewards/transforms/test_reward_texts.py::"
            "test_trap_14_tool_calls_that_nobody_asked_for_cost_no_correctness",
            "rewards/transforms/test_reward_texts.py::"
            "test_trap_14_tool_greedy_matching_depends_on_the_reference_order_when_names_repeat",
        ),
    ),
    15: Trap(
        "RewardAnything scores 1 where fewer than two ids are common",
        (
            "rewards/transforms/test_reward_texts.py::"
            "test_trap_15_fewer_than_two_common_ids_scores_one_and_coverage_tells",
        ),
    ),
}
# Where a trainer as released and the described method part ways.
DISCREPANCIES = {
    1: NotBuilt("the sign of the meta-gradient is reversed", "AMFT", ("amft",)),
    2: NotBuilt("clamp bounds in reverse order take the advantage out", "ThinkTuning", ("think_tuning", "thinktuning")),
    3: NotBuilt("a broadcast removes the mask of right answers", "CARFT", ("carft",)),
    4: NotBuilt("the switch of the deviation is not read", "Critique-GRPO", ("critique_grpo",)),
    5: NotBuilt("a tier of hints is off, labels are shifted", "Scaf-GRPO", ("scaf",)),
    6: NotBuilt("sampled under a scaffold, trained as if on-policy", "RuscaRL", ("rusca",)),
    7: Trap(
        "the process channel of PRIME is not leave-one-out, and one of its coefficients is not used",
        (
            "advantages/test_tokens.py::test_trap_the_process_channel_of_prime_is_not_leave_one_out",
            "advantages/test_tokens.py::test_trap_both_coefficients_of_prime_count",
        ),
    ),
    8: NotBuilt("the ramp of confidence jumps tenfold", "Weak-to-strong generalisation", ("weak_to_strong",)),
    9: NotBuilt("defaults are not those of the paper's scripts", "ReFT, iTool, C3PO", ("reft", "itool", "c3po")),
    10: Trap(
        "HPT, ReLIFT and Critique-GRPO sum by a constant and do not divide by the answers",
        (
            "losses/test_losses.py::test_trap_the_fixed_divisor_of_peers_is_not_divided_by_the_answers",
            "recipes/test_presets.py::test_differs_from_verl_of_january_the_fixed_divisor_divides_by_answers",
        ),
    ),
    11: NotBuilt("the logarithm of zero visits; pairs compare sums", "iTool", ("itool",)),
    12: NotBuilt("averages over those queries alone that keep something", "B-STaR", ("b_star", "bstar")),
}
BUILT = [trap for trap in (*TRAPS.values(), *DISCREPANCIES.values()) if isinstance(trap, Trap)]
MISSING = [trap for trap in DISCREPANCIES.values() if isinstance(trap, NotBuilt)]


@functools.cache
def functions(file: str) -> dict[str, ast.FunctionDef]:
    """Name -> definition, of the functions at the top of a test file."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def checks_something(definition: ast.FunctionDef) -> bool:
    """Whether there is an assertion in it."""
    calls = [node.func for node in ast.walk(definition) if isinstance(node, ast.Call)]
    named = [func.attr for func in calls if isinstance(func, ast.Attribute)]
    asserts = any(isinstance(node, ast.Assert) for node in ast.walk(definition))
    return asserts or any(name == "raises" or name.startswith("assert_") for name in named)


def test_the_index_is_whole():
    assert list(TRAPS) == list(range(1, 16))
    assert list(DISCREPANCIES) == list(range(1, 13))
    assert all(trap.tests for trap in BUILT)


@pytest.mark.parametrize("node", [test for trap in BUILT for test in trap.tests])
def test_every_trap_has_the_tests_that_the_index_names(node):
    file, name = node.split("::")
    assert name.startswith("test_")
    assert name in functions(file), f"{file} has no test {name}"
    assert checks_something(functions(file)[name]), f"{node} checks nothing"


def test_every_test_named_after_a_trap_is_in_the_index():
    files = [str(path.relative_to(TESTS)) for path in sorted(TESTS.rglob("test_*.py"))]
    found = {
        f"{file}::{name}" for file in files for name in functions(file) if "trap_" in name and "every_t" not in name
    }
    indexed = {test for trap in BUILT for test in trap.tests}
    assert not found - indexed, "give these a place in the index"


@pytest.mark.parametrize("trap", MISSING, ids=lambda trap: trap.paper)
def test_what_the_index_calls_not_built_is_not_built(trap):
    built = [name for name in recipes.__all__ if any(word in name for word in trap.words)]
    assert not built, f"{built}: write the test of the trap ({trap.title}) and name it in the index"


# Traps of whole recipes


def test_trap_1_the_weights_of_bnpo_do_not_average_1():
    """Pass rates 1/4, 1/2, 3/4 fit Beta(3/2, 3/2), whose weights π/8 / √(p(1-p)) have the mean 0.8664, not 1: a step of
    another size than that of the group mean, and nothing here puts it back."""
    reward = jnp.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]], jnp.float32)
    ratio = advantages.apply(chain(group_mean(), beta_density()), reward) / advantages.apply(group_mean(), reward)
    p = np.array([0.25, 0.5, 0.75])
    np.testing.assert_allclose(ratio[:, 0], np.pi / 8 / np.sqrt(p * (1 - p)), rtol=1e-5)
    np.testing.assert_allclose(np.mean(ratio[:, 0]), 0.8664, atol=5e-5)


@pytest.mark.parametrize("name", ["psr", "nsr", "w_reinforce"])
def test_trap_4_no_penalty_is_on_that_nobody_asked_for(name):
    """The released configuration leaves an entropy coefficient of 0.001 on. Here entropy has no pull, and no penalty is
    in the loss."""
    objective = getattr(recipes, name)().objective
    assert objective.penalties == ()

    def loss(entropy):
        tokens = bare_tokens(jnp.ones((1, 2, 3), bool), entropy=entropy, advantage=jnp.ones((1, 2, 3)))
        return objective.loss(objective.aggregate(tokens.where), tokens)

    np.testing.assert_array_equal(jax.grad(loss)(jnp.ones((1, 2, 3))), 0)


def slopes(recipe, advantage, logp, reference):
    """d loss / d logp of answers of one token."""
    shape = (1, len(advantage), 1)
    fields = {"advantage": advantage, "behaviour_logp": logp, "policy_logp": logp, "reference_logp": reference}
    tokens = {name: jnp.asarray(x, jnp.float32).reshape(shape) for name, x in fields.items()}

    def loss(x):
        given = bare_tokens(jnp.ones(shape, bool), logp=x, **tokens)
        return recipe.objective.loss(recipe.objective.aggregate(given.where), given)

    return np.asarray(jax.grad(loss)(tokens["policy_logp"])).ravel()


def test_trap_5_the_divergence_of_oreal_is_on_both_classes():
    """The release sets it to 0 for right answers and then overwrites that. Here: 0.01 (1 - π_ref/π) by all tokens, for
    right answers, for wrong ones and for those that are not trained on."""
    credit, logp, reference = [1.5, -0.5, 0.0, 1.0], [-1.0, -2.0, -1.5, -0.5], [-1.4, -1.2, -1.0, -0.5]
    with_it, without = (slopes(recipes.oreal(kl_coefficient=c), credit, logp, reference) for c in (0.01, 0.0))
    expected = 0.01 * (1 - np.exp(np.subtract(reference, logp))) / 4
    np.testing.assert_allclose(with_it - without, expected, rtol=1e-3, atol=1e-8)
    assert all(isinstance(p, Penalty) and p.placement == "loss" for p in recipes.oreal().objective.penalties)


def test_trap_7_the_divisor_of_gui_g1_is_not_the_length_limit():
    """64 beside a limit of 128: an answer of full length weighs 2 where Dr. GRPO with the limit as divisor gives it 1,
    and a limit of another length changes no weight."""

    def answer(recipe, limit):
        where = jnp.broadcast_to(jnp.arange(limit) < 128, (1, 4, limit))
        return np.sum(np.asarray(recipe.objective.aggregate(where)), axis=-1) * 4

    np.testing.assert_allclose(answer(recipes.gui_g1(), 128), 2, rtol=1e-5)
    np.testing.assert_allclose(answer(recipes.gui_g1(), 512), 2, rtol=1e-5)
    np.testing.assert_allclose(answer(recipes.dr_grpo(divisor=128.0), 128), 1, rtol=1e-5)
