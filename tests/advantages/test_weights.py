"""Weights: the objective that each of them ascends, the golden numbers of its paper, and traps of released code."""

import dataclasses
import functools
import itertools
import math

import instances_weights
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from scipy import stats

from jaxrl_llm import advantages
from jaxrl_llm.advantages import bare_rollout, beta_density, chain, group_mean, group_std, leave_one_out, no_baseline
from jaxrl_llm.advantages.scales.batch_whiten import batch_whiten
from jaxrl_llm.advantages.scales.fixed_beta_density import fixed_beta_density
from jaxrl_llm.advantages.scales.gpg_scale import gpg_scale
from jaxrl_llm.advantages.scales.leave_one_out_std import leave_one_out_std
from jaxrl_llm.advantages.weights.beta_density_components import beta_density_components
from jaxrl_llm.advantages.weights.difficulty_weight import difficulty_weight
from jaxrl_llm.advantages.weights.duration_weight import duration_weight
from jaxrl_llm.advantages.weights.exponential_weight import exponential_weight
from jaxrl_llm.advantages.weights.focal import focal
from jaxrl_llm.advantages.weights.gdpo import gdpo
from jaxrl_llm.advantages.weights.grpo_pass_at_k import grpo_pass_at_k
from jaxrl_llm.advantages.weights.log_odds import log_odds
from jaxrl_llm.advantages.weights.maxrl_centred import maxrl_centred
from jaxrl_llm.advantages.weights.maxrl_centred_full import maxrl_centred_full
from jaxrl_llm.advantages.weights.maxrl_raw import maxrl_raw
from jaxrl_llm.advantages.weights.negative_only import negative_only
from jaxrl_llm.advantages.weights.oreal_shaping import oreal_shaping
from jaxrl_llm.advantages.weights.pass_at_k import pass_at_k
from jaxrl_llm.advantages.weights.positive_only import positive_only
from jaxrl_llm.advantages.weights.power_weight import power_weight
from jaxrl_llm.advantages.weights.prompt_weight import prompt_weight
from jaxrl_llm.advantages.weights.red_drop import red_drop
from jaxrl_llm.advantages.weights.sigma_filter import sigma_filter
from jaxrl_llm.advantages.weights.sigma_filter_released import sigma_filter_released
from jaxrl_llm.advantages.weights.top_gap import top_gap
from jaxrl_llm.advantages.weights.weighted_signs import weighted_signs

A, B, C = [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]
D, E, F = [0, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.5, 0.9, 0.4]
GROUPS = np.array([A, B, C, D, E, F], np.float32)
BINARY = GROUPS[:5]
GRPO = chain(group_mean(), group_std(ddof=0, eps=0.0))
GRPO_SAMPLE = chain(group_mean(), group_std(ddof=1, eps=0.0))


@functools.cache
def compiled(transform):
    return tiny.jit(lambda reward, valid, extras: advantages.apply(transform, reward, valid, **extras))


def apply(transform, reward, valid=None, **extras):
    return np.asarray(compiled(transform)(jnp.asarray(reward), valid, extras))


def of_components(transform, components):
    """Credit for components [P G K] whose sum is the reward."""

    def credit(components):
        rollout = dataclasses.replace(bare_rollout(jnp.sum(components, -1)), components=components)
        return transform.update(rollout.reward, transform.init(), rollout)[0]

    return np.asarray(tiny.jit(credit)(jnp.asarray(components)))


# The weight on the gradient of the pass rate, F'(p): for 0/1 rewards the mean of (1/G) Σ A · score is F'(p) · ∇p.


WIDTH = 8


@functools.cache
def credit_of_binary_groups(transform, width):
    """Credit [width+1, width+1, width], float64, of groups with G valid answers (first axis) and c right ones."""
    place, size = np.arange(width), np.arange(width + 1)[None, :, None]
    groups = np.arange(width + 1)[:, None, None] if width <= WIDTH else np.array([[[width]]])
    right = np.broadcast_to(place < size, (len(groups), width + 1, width))
    valid = np.broadcast_to(place < groups, right.shape)
    noise = np.broadcast_to(np.random.default_rng(0).permutation(width) / width, right.shape)
    flat = lambda x: jnp.asarray(x.reshape(-1, width))  # noqa: E731
    with jax.enable_x64(True):
        credit = apply(transform, flat(right.astype(float)), flat(valid), noise=flat(noise))
    return right, credit.reshape(right.shape)


def by_successes(transform, group):
    """Mean credit of right answers in groups with 1..G of them, and of wrong ones in groups with 0..G-1 right ones."""
    right, credit = credit_of_binary_groups(transform, max(group, WIDTH))
    right, credit = (x[group if group <= WIDTH else 0, : group + 1, :group] for x in (right, credit))
    c = np.arange(group + 1)
    totals = (np.where(where, credit, 0).sum(1) for where in (right, ~right))
    return [total[part] / n[part] for total, n, part in zip(totals, (c, group - c), (c > 0, c < group), strict=True)]


def weight(transform, p, group):
    """Σⱼ C(G-1, j) pʲ (1-p)^(G-1-j) (A₊(j+1) - A₋(j)): seen from one answer, j of the others are right."""
    right, wrong = by_successes(transform, group)
    return float(np.sum(stats.binom.pmf(np.arange(group), group - 1, p) * (right - wrong)))


# scheme -> transform, F'(p, G) as the catalogue writes it
def mean_over_groups(inner):
    """E over c ~ Bin(G, p) of inner(c / G), over pq."""

    def f_prime(p, g):
        c = np.arange(1, g)
        return float(np.sum(stats.binom.pmf(c, g, p) * inner(c / g)) / (p * (1 - p)))

    return f_prime


def grpo_f_prime(p, g):
    c = range(1, g)
    return sum(math.comb(g, k) * math.sqrt(k * (g - k)) * p ** (k - 1) * (1 - p) ** (g - k - 1) for k in c) / g


CATALOGUE = {
    "no baseline": (no_baseline(), lambda p, g: 1.0),
    "group mean": (group_mean(), lambda p, g: 1 - 1 / g),
    "leave one out": (leave_one_out(), lambda p, g: 1.0),
    "GRPO, ddof 0": (GRPO, grpo_f_prime),
    "GRPO, ddof 1": (GRPO_SAMPLE, lambda p, g: grpo_f_prime(p, g) * math.sqrt((g - 1) / g)),
    "MaxRL raw": (maxrl_raw(), lambda p, g: (1 - (1 - p) ** g) / p),
    "MaxRL centred": (maxrl_centred(eps=0.0), lambda p, g: (1 - (1 - p) ** (g - 1)) / p),
    "MaxRL centred, failures kept": (maxrl_centred_full(), lambda p, g: (1 - (1 - p) ** g) / p),
    "pass@2": (pass_at_k(k=2), lambda p, g: 2 * (1 - p)),
    "top gap": (top_gap(), lambda p, g: g * (1 - p) ** (g - 1)),
    "PSR": (positive_only(), lambda p, g: 1.0),
    "NSR": (negative_only(), lambda p, g: 1.0),
    "W-REINFORCE": (weighted_signs(positive=0.1), lambda p, g: 1.1),
    "log-odds": (log_odds(), lambda p, g: (1 - p**g - (1 - p) ** g) / (p * (1 - p))),
    "BNPO (3/2, 3/2)": (
        chain(group_mean(), fixed_beta_density(alpha=1.5, beta=1.5)),
        mean_over_groups(lambda m: m * (1 - m) / stats.beta.pdf(m, 1.5, 1.5)),
    ),
    "BNPO (2, 3)": (
        chain(group_mean(), fixed_beta_density(alpha=2, beta=3)),
        mean_over_groups(lambda m: m * (1 - m) / stats.beta.pdf(m, 2, 3)),
    ),
    "focal 2": (focal(gamma=2), mean_over_groups(lambda m: (1 - m) ** 3 * m)),
    "Observe-R1": (
        chain(GRPO_SAMPLE, difficulty_weight(sigma=1.8)),
        lambda p, g: mean_over_groups(lambda m: 7.2 * (m * (1 - m)) ** 1.5)(p, g) * math.sqrt((g - 1) / g),
    ),
    "RED-Drop": (red_drop(), mean_over_groups(lambda m: m * (1 - m) / np.maximum(2 * (1 - m), 1))),
    "NeMo's grpo": (
        chain(leave_one_out(), leave_one_out_std(eps=1e-6)),
        leave_one_out_std(eps=1e-6).traits.f_prime,
    ),
}
# scheme -> F' at G = 4 and p = .05, .25
VECTORS = {
    "GRPO, ddof 0": (1.7100059808498338, 1.6450317547305484),
    "GRPO, ddof 1": (1.4809086200392825, 1.4246392896287468),
    "MaxRL raw": (3.709875, 2.734375),
    "MaxRL centred": (2.8525, 2.3125),
    "MaxRL centred, failures kept": (3.709875, 2.734375),
    "log-odds": (3.905, 3.625),
    "top gap": (3.4295, 1.6875),
    "pass@2": (1.9, 1.5),
    "BNPO (3/2, 3/2)": (0.6715177783790557, 0.646002459447927),
    "BNPO (2, 3)": (0.45194444444444454, 0.5208333333333335),
    "focal 2": (0.398671875, 0.310546875),
}


@pytest.mark.parametrize("scheme", CATALOGUE)
def test_fprime_is_the_closed_form_of_the_catalogue(scheme):
    transform, f_prime = CATALOGUE[scheme]
    for group, p in itertools.product((2, 3, 4, 8), (0.05, 0.25, 0.5, 0.9)):
        np.testing.assert_allclose(weight(transform, p, group), f_prime(p, group), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scheme", VECTORS)
def test_fprime_reproduces_the_reference_vectors(scheme):
    for p, expected in zip((0.05, 0.25), VECTORS[scheme], strict=True):
        np.testing.assert_allclose(weight(CATALOGUE[scheme][0], p, 4), expected, rtol=1e-9)


def test_fprime_of_grpo_in_groups_of_8_is_nearly_flat():
    actual = [weight(GRPO, p, 8) for p in (0.05, 0.25, 0.5, 0.9)]
    np.testing.assert_allclose(actual, [2.4730626362, 2.0261155898, 1.8556559496, 2.3276890521], rtol=1e-10)


def instances():
    """Every scale and weight that is tested here, built, by name."""
    built = {name: make() for name, make in instances_weights.INSTANCES.items()}
    plain = (maxrl_raw, maxrl_centred_full, top_gap, log_odds, positive_only, negative_only, beta_density_components)
    rest = (prompt_weight, duration_weight, sigma_filter_released, red_drop, oreal_shaping, gpg_scale, beta_density)
    return built | {make.__name__: make() for make in plain + rest}


INSTANCES = instances()


@pytest.mark.parametrize("name", [name for name, t in INSTANCES.items() if t.traits.f_prime is not None])
def test_fprime_trait_is_the_weight_of_the_transform_alone(name):
    for group, p in itertools.product((1, 2, 3, 4, 7), (0.05, 0.5, 0.9)):
        claim = INSTANCES[name].traits.f_prime(p, group)
        assert isinstance(claim, float)
        np.testing.assert_allclose(weight(INSTANCES[name], p, group), claim, rtol=1e-9, atol=1e-12)


# scheme -> transform, w(p) of large groups
LARGE = {
    "REINFORCE": (no_baseline(), lambda p: 1.0),
    "RLOO": (leave_one_out(), lambda p: 1.0),
    "GRPO": (GRPO, lambda p: (p * (1 - p)) ** -0.5),
    "log objective": (maxrl_centred(eps=0.0), lambda p: 1 / p),
    "log-odds": (log_odds(), lambda p: 1 / (p * (1 - p))),
    "BNPO (2, 3)": (
        chain(group_mean(), fixed_beta_density(alpha=2, beta=3)),
        lambda p: 1 / stats.beta.pdf(p, 2, 3),
    ),
    "focal 2": (focal(gamma=2), lambda p: (1 - p) ** 2),
    "PSR": (positive_only(), lambda p: 1.0),
    "NSR": (negative_only(), lambda p: 1.0),
    "+1 and -1": (weighted_signs(positive=1), lambda p: 2.0),
    "W-REINFORCE": (weighted_signs(positive=0.1), lambda p: 1.1),
    "Observe-R1": (chain(GRPO_SAMPLE, difficulty_weight(sigma=1.8)), lambda p: 4 * 1.8 * (p * (1 - p)) ** 0.5),
}


@pytest.mark.parametrize("scheme", LARGE)
def test_weight_of_large_groups(scheme):
    """The distance to the limit is 0 or falls as 1/G: four times the group, about a quarter of it."""
    transform, limit = LARGE[scheme]
    for p in (0.1, 0.25, 0.5, 0.9):
        near, far = (abs(weight(transform, p, group) / limit(p) - 1) for group in (256, 1024))
        assert far < near / 3 + 1e-9


@pytest.mark.parametrize("scheme", ["GRPO, ddof 0", "log-odds", "focal 2", "Observe-R1"])
def test_pairs_make_every_centred_scheme_leave_one_out_up_to_a_factor(scheme):
    pair = np.array([[1, 0], [0, 1], [1, 1], [0, 0]], np.float32)
    credit, plain = apply(CATALOGUE[scheme][0], pair), apply(leave_one_out(), pair)
    np.testing.assert_allclose(credit, plain * credit[0, 0], rtol=1e-6)
    assert credit[0, 0] > 0


def test_groups_of_three_make_population_grpo_sqrt_2_times_the_group_mean():
    for reward in ([1, 0, 0], [1, 1, 0]):
        np.testing.assert_allclose(
            apply(GRPO, np.array([reward], np.float32)),
            apply(group_mean(), np.array([reward], np.float32)) / (math.sqrt(2) / 3),
            rtol=1e-6,
        )
    np.testing.assert_allclose(weight(GRPO, 0.3, 3), math.sqrt(2) / 1 * (3 / 2) * (1 - 1 / 3), rtol=1e-9)


# Rows of other libraries on the same rewards (A, D, F), and vectors of SkyRL.


def test_verl_gives_the_best_answer_alone_its_lead_over_the_deviation():
    rows = apply(grpo_pass_at_k(ddof=1, eps=1e-6), GROUPS)
    np.testing.assert_allclose(rows[[0, 3, 5]], [[2, 0, 0, 0], D, [0, 0, 0.4 / 0.2943920288, 0]], atol=1e-5)
    np.testing.assert_array_equal(rows[[1, 2, 3, 4]], 0)


def test_maxrl_is_that_of_the_peers():
    rows = apply(maxrl_centred(eps=0.0), GROUPS)
    np.testing.assert_allclose(rows[[0, 3, 5]], [[3, -1, -1, -1], D, [-0.6, 0, 0.8, -0.2]], atol=1e-6)
    skyrl = apply(maxrl_centred(eps=1e-6), np.array([[6, 3], [9, 12]], np.float32))
    np.testing.assert_allclose(skyrl, [[1.5 / 4.5, -1.5 / 4.5], [-1.5 / 10.5, 1.5 / 10.5]], rtol=1e-5)
    np.testing.assert_array_equal(apply(maxrl_centred(eps=1e-6), np.array([[1.0]], np.float32)), 0)


def test_maxrl_forms_differ_by_a_constant_and_in_groups_of_failures():
    raw, full = apply(maxrl_raw(), BINARY), apply(maxrl_centred_full(), BINARY)
    np.testing.assert_allclose(full, raw - 1, atol=1e-6)
    np.testing.assert_array_equal(full[3], -1)
    mixed = [0, 1, 2, 4]
    np.testing.assert_allclose(apply(maxrl_centred(eps=0.0), BINARY)[mixed], full[mixed], atol=1e-6)


def test_maxrl_does_not_depend_on_the_unit_of_the_reward():
    for unit in (1e-30, 1e30):
        np.testing.assert_allclose(apply(maxrl_raw(), GROUPS * np.float32(unit)), apply(maxrl_raw(), GROUPS), rtol=1e-5)


@pytest.mark.parametrize("transform", [maxrl_raw(), maxrl_centred(eps=0.01)], ids=["raw", "centred"])
def test_gradient_of_maxrl_is_that_of_its_formula(transform):
    with jax.enable_x64(True):
        reward, slope = (jnp.asarray(np.random.default_rng(s).uniform(size=(3, 4))) for s in (0, 1))
        shift, eps = (0, 0) if transform.traits.f_prime else (1, 0.01)
        mean = lambda r: jnp.mean(r, axis=1, keepdims=True)  # noqa: E731
        formula = lambda r: jnp.sum(slope * (r - shift * mean(r)) / (mean(r) + eps))  # noqa: E731
        actual = jax.grad(lambda r: jnp.sum(slope * advantages.apply(transform, r)))(reward)
        np.testing.assert_allclose(actual, jax.grad(formula)(reward), rtol=1e-9)


# pass@k


def best_of_subsets(reward, k):
    """k times the mean, over the sets of k that hold an answer, of the best reward in the set."""
    g = len(reward)
    sets = [[s for s in itertools.combinations(range(g), k) if i in s] for i in range(g)]
    return [k * np.mean([max(reward[j] for j in s) for s in holding]) for holding in sets]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_is_the_mean_of_the_best_over_all_subsets(k):
    rng = np.random.default_rng(k)
    reward = np.concatenate([rng.normal(size=(3, 5)), rng.integers(0, 2, (3, 5)), [[0.5] * 5]])
    with jax.enable_x64(True):
        expected = [best_of_subsets(row, k) for row in reward]
        np.testing.assert_allclose(apply(pass_at_k(k=k), reward), expected, rtol=1e-12, atol=1e-12)


def test_pass_at_k_golden_of_two():
    rho = 1 - 2 / 3  # of the three others one is right; one of them is drawn
    np.testing.assert_allclose(apply(pass_at_k(k=2), GROUPS)[0], [2, 2 * rho, 2 * rho, 2 * rho], rtol=1e-6)
    np.testing.assert_allclose(apply(pass_at_k(k=2), GROUPS)[[3, 4]], [[0] * 4, [2] * 4], rtol=1e-6)


def test_pass_at_1_is_reinforce_and_a_group_smaller_than_k_gets_0():
    np.testing.assert_array_equal(apply(pass_at_k(k=1), GROUPS), GROUPS)
    valid = jnp.array([[True, True, False, False]] * 6)
    np.testing.assert_array_equal(apply(pass_at_k(k=3), GROUPS, valid), 0)
    np.testing.assert_allclose(apply(pass_at_k(k=2), GROUPS, valid)[5], [1, 1, 0, 0], rtol=1e-6)


def gradient_by_enumeration(transform, probs, reward, group):
    """Mean of (1/G) Σ A · score over all groups, for a softmax bandit."""
    every = np.array(list(itertools.product(range(len(probs)), repeat=group)))
    credit = apply(transform, np.asarray(reward)[every])
    score = np.eye(len(probs))[every] - probs
    return np.einsum("m,mg,mgk->k", np.prod(np.asarray(probs)[every], axis=1), credit, score) / group


@pytest.mark.parametrize("k", [2, 3, 4])
def test_pass_at_k_and_top_gap_are_the_gradient_of_the_expected_best(k):
    reward = np.array([0.1, 0.7, -0.3])
    with jax.enable_x64(True):
        logits = jnp.array([0.2, -0.4, 0.5])

        def expected_best(logits):
            p = jax.nn.softmax(logits)
            every = np.array(list(itertools.product(range(3), repeat=k)))
            return jnp.sum(jnp.prod(p[every], axis=1) * reward[every].max(axis=1))

        exact, probs = np.asarray(jax.grad(expected_best)(logits)), np.asarray(jax.nn.softmax(logits))
        for group in (4, 5):
            np.testing.assert_allclose(gradient_by_enumeration(pass_at_k(k=k), probs, reward, group), exact, rtol=1e-10)
        np.testing.assert_allclose(gradient_by_enumeration(top_gap(), probs, reward, k), exact, rtol=1e-10)


def test_top_gap_pays_a_lone_best_answer():
    expected = [[4, 0, 0, 0], D, D, D, D, [0, 0, 4 * 0.4, 0]]
    np.testing.assert_allclose(apply(top_gap(), GROUPS), expected, rtol=1e-5, atol=1e-7)
    valid = jnp.ones((6, 4), bool).at[5, 1].set(False)
    np.testing.assert_allclose(apply(top_gap(), GROUPS, valid)[5], [0, 0, 3 * 0.5, 0], rtol=1e-5)


# PSR, NSR, W-REINFORCE


def test_positives_and_negatives_together_are_reinforce_on_plus_and_minus_1():
    signs = 2 * GROUPS - 1
    both = apply(positive_only(), GROUPS) + apply(negative_only(), GROUPS)
    np.testing.assert_allclose(both, signs, atol=1e-6)
    np.testing.assert_allclose(apply(weighted_signs(positive=1), GROUPS), signs, atol=1e-6)


def test_negatives_alone_are_weight_0_and_baseline_1_positives_alone_baseline_0():
    np.testing.assert_allclose(apply(weighted_signs(positive=0), GROUPS), apply(negative_only(), GROUPS), atol=1e-6)
    np.testing.assert_allclose(apply(negative_only(), GROUPS), GROUPS - 1, atol=1e-6)
    np.testing.assert_array_equal(apply(positive_only(), GROUPS), GROUPS)
    np.testing.assert_allclose(apply(weighted_signs(positive=0.1), BINARY), np.where(BINARY == 1, 0.1, -1), atol=1e-6)


def test_trap_4_the_other_class_keeps_its_place_with_credit_0():
    """The released trainer deletes the rows; here a group of failures still pushes, and nothing leaves the batch."""
    assert apply(negative_only(), BINARY).shape == apply(positive_only(), BINARY).shape == BINARY.shape
    np.testing.assert_array_equal(apply(negative_only(), BINARY)[[3, 4]], [[-1] * 4, [0] * 4])
    np.testing.assert_array_equal(apply(positive_only(), BINARY)[[3, 4]], [[0] * 4, [1] * 4])


# BNPO by components


def test_bnpo_of_equal_components_is_that_of_one():
    one = jnp.asarray(np.random.default_rng(0).integers(0, 2, (6, 5, 1)), jnp.float32)
    expected = apply(chain(group_mean(), beta_density()), one[..., 0])
    for k in (1, 3):
        np.testing.assert_allclose(
            of_components(beta_density_components(), jnp.repeat(one, k, -1)), expected, rtol=1e-5, atol=1e-7
        )


def test_bnpo_takes_the_mean_over_components_of_their_credits():
    both = np.random.default_rng(1).integers(0, 2, (6, 5, 2)).astype(np.float32)
    each = [apply(chain(group_mean(), beta_density()), both[..., k]) for k in (0, 1)]
    actual = of_components(beta_density_components(), both)
    np.testing.assert_allclose(actual, (each[0] + each[1]) / 2, rtol=1e-5, atol=1e-7)
    summed = apply(chain(group_mean(), beta_density()), both.mean(-1))
    assert not np.allclose(actual, summed, rtol=0.05), "the decomposition has lost its point"


def test_trap_1_bnpo_components_are_finite_where_all_prompts_are_equally_hard():
    same = np.stack([np.roll([1, 0, 0, 0], i) for i in range(4)]).astype(np.float32)[..., None]
    np.testing.assert_allclose(of_components(beta_density_components(), same), same[..., 0] - 0.25, rtol=1e-5)


def test_trap_13_bnpo_is_beta_normalisation_and_not_an_aggregation_of_tokens():
    """TRL calls a token mean by this name, which would leave the credit as it is."""
    actual = of_components(beta_density_components(), BINARY[..., None])
    assert not np.allclose(actual, apply(group_mean(), BINARY), rtol=0.02)


# GDPO


def test_gdpo_is_the_weighted_sum_of_the_groups_own_scores():
    c = np.random.default_rng(2).uniform(size=(3, 5, 2)) * [1, 10]
    scores = (c - c.mean(1, keepdims=True)) / (c.std(1, ddof=1, keepdims=True) + 1e-4)
    actual = of_components(gdpo(ddof=1, eps=1e-4, weights=(1.0, 0.5)), c.astype(np.float32))
    np.testing.assert_allclose(actual, scores @ [1, 0.5], rtol=1e-5, atol=1e-6)


def test_gdpo_of_one_component_is_grpo_and_rescaling_a_component_changes_nothing():
    one = of_components(gdpo(ddof=1, eps=1e-4), GROUPS[..., None])
    np.testing.assert_allclose(one, apply(chain(group_mean(), group_std(ddof=1, eps=1e-4)), GROUPS), atol=1e-6)
    c = np.random.default_rng(3).uniform(size=(3, 5, 2)).astype(np.float32)
    plain, wide = (of_components(gdpo(ddof=1, eps=0.0), c * scale) for scale in (1, np.array([1, 7], np.float32)))
    np.testing.assert_allclose(wide, plain, rtol=1e-5, atol=1e-6)


def test_gdpo_of_trl_whitens_the_sum_over_the_batch():
    c = np.random.default_rng(4).uniform(size=(3, 5, 2))
    total = ((c - c.mean(1, keepdims=True)) / (c.std(1, ddof=1, keepdims=True) + 1e-4)).sum(-1)
    trl = chain(gdpo(ddof=1, eps=1e-4), batch_whiten(ddof=1, eps=1e-4, guard="deviation"))
    expected = (total - total.mean()) / (total.std(ddof=1) + 1e-4)
    np.testing.assert_allclose(of_components(trl, c.astype(np.float32)), expected, rtol=1e-5, atol=1e-6)


# OREAL


def test_oreal_golden_leave_one_out_on_plus_and_minus_1():
    shaped = apply(oreal_shaping(positive=1, negative=1), BINARY)
    third = 2 / 3
    expected = [[2, -third, -third, -third], [third, third, third, -2], [2 * third] * 2 + [-2 * third] * 2, D, D]
    np.testing.assert_allclose(shaped, expected, rtol=1e-6)


def test_trap_5_signs_double_the_leave_one_out_credit_and_both_classes_carry_it():
    doubled = 2 * apply(leave_one_out(), BINARY)
    np.testing.assert_allclose(apply(oreal_shaping(positive=1, negative=1), BINARY), doubled, atol=1e-6)
    np.testing.assert_allclose(apply(oreal_shaping(), BINARY), np.where(BINARY == 1, doubled, 0.5 * doubled), atol=1e-6)
    np.testing.assert_array_equal(apply(oreal_shaping(), 2 * BINARY - 1), apply(oreal_shaping(), BINARY))


def test_oreal_class_means_weigh_hard_prompts_18_times():
    """Means over each class by itself: A₊ μ₊ + A₋ μ₋ with μ₊ = ∇p / p and μ₋ = -∇p / (1-p)."""
    right, wrong = by_successes(oreal_shaping(), 10)
    p, group = np.arange(1, 10) / 10, 10
    w = right[:9] / p - wrong[1:] / (1 - p)
    np.testing.assert_allclose(w, (2 * (1 - p) / p + p / (1 - p)) * group / (group - 1), rtol=1e-12)
    limit = w[0] * (group - 1) / group
    np.testing.assert_allclose([limit, limit * 16 / 15], [18 + 1 / 9, (18 + 1 / 9) * 16 / 15], rtol=1e-12)


# StableReinforce

OUTLIER = np.array([[0, 0, 0, 0, 10]], np.float32)


def test_trap_6_the_released_outlier_filter_is_centred_on_the_raw_mean():
    z = [[-0.5, -0.5, -0.5, -0.5, 2]]
    np.testing.assert_allclose(apply(sigma_filter_released(), OUTLIER), z, rtol=1e-6)
    np.testing.assert_array_equal(apply(sigma_filter_released(), OUTLIER + 5), 0)
    paper = sigma_filter(k=3, ddof=0, eps=1e-8, guard="floor")
    for shift in (0, 5):
        np.testing.assert_allclose(apply(paper, OUTLIER + np.float32(shift)), z, rtol=1e-6)


def test_sigma_filter_drops_what_is_further_than_k_deviations_and_does_not_clip_it():
    narrow = sigma_filter(k=1.5, ddof=0, eps=1e-8, guard="floor")
    np.testing.assert_allclose(apply(narrow, OUTLIER), [[-0.5, -0.5, -0.5, -0.5, 0]], rtol=1e-6)
    wide = sigma_filter(k=100, ddof=1, eps=1e-4, guard="deviation")
    np.testing.assert_array_equal(apply(wide, GROUPS), apply(batch_whiten(ddof=1, eps=1e-4, guard="deviation"), GROUPS))


def test_released_filter_agrees_with_the_paper_where_the_raw_mean_is_0_and_drops_beyond_the_maximum():
    reward = np.array([[-1, 1, -2, 2, 30, -30] + [0] * 200], np.float32)
    paper, released = sigma_filter(k=3, ddof=0, eps=1e-8, guard="floor"), sigma_filter_released()
    np.testing.assert_array_equal(apply(released, reward), apply(paper, reward))
    assert apply(paper, reward)[0, 4] == 0
    assert apply(sigma_filter_released(k=50, maximum=11), reward)[0, 4] > 10
    assert apply(sigma_filter_released(k=50), reward)[0, 4] == 0


# Observe-R1 and the powers of p(1-p)


def test_observe_r1_golden():
    observe = chain(group_mean(), group_std(ddof=1, eps=1e-9), difficulty_weight(sigma=1.8))
    reward = np.array([[1.5, 1.7, 0.5, 0.0]], np.float32)  # the second is the shorter of the right ones: + 0.2
    expected = [[1.27803753, 1.72257232, -0.94463643, -2.05597341]]
    np.testing.assert_allclose(apply(observe, reward), expected, rtol=1e-6)


def test_trap_10_a_bonus_in_a_group_of_failures_dies_with_the_weight():
    """Their search for the shortest right answer pays answer 0 where none is right."""
    paid = np.array([[0.7, 0.5, 0.5, 0.5]], np.float32)
    without = chain(group_mean(), group_std(ddof=1, eps=1e-9))
    np.testing.assert_allclose(apply(without, paid), [[1.5, -0.5, -0.5, -0.5]], rtol=1e-5)
    np.testing.assert_array_equal(apply(chain(without, difficulty_weight(sigma=1.8)), paid), 0)


def test_observe_r1_with_binary_rewards_is_the_root_of_the_spread():
    m = BINARY.mean(1, keepdims=True)
    expected = 4 * 1.8 * np.sqrt(m * (1 - m)) * math.sqrt(3 / 4) * (BINARY - m)
    np.testing.assert_allclose(apply(chain(GRPO_SAMPLE, difficulty_weight(sigma=1.8)), BINARY), expected, atol=1e-6)


def test_powers_of_the_spread_are_grpo_dr_grpo_and_observe_r1():
    power = lambda q: apply(chain(group_mean(), power_weight(power=q)), BINARY)  # noqa: E731
    np.testing.assert_allclose(power(-0.5), apply(GRPO, BINARY), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(power(0), apply(group_mean(), BINARY), rtol=1e-6)
    observe = apply(chain(GRPO_SAMPLE, difficulty_weight(sigma=1.8)), BINARY)
    np.testing.assert_allclose(4 * 1.8 * math.sqrt(3 / 4) * power(0.5), observe, rtol=1e-5, atol=1e-7)


def test_a_power_of_the_spread_leaves_a_group_without_spread():
    equal = np.array([E, D], np.float32)
    np.testing.assert_array_equal(apply(power_weight(power=-0.5), equal), equal)
    np.testing.assert_array_equal(apply(power_weight(power=0.5), equal), 0)


def test_focal_is_the_group_mean_at_0_and_favours_hard_prompts():
    np.testing.assert_allclose(apply(focal(gamma=0), GROUPS), apply(group_mean(), GROUPS), atol=1e-7)
    np.testing.assert_allclose(apply(focal(gamma=2), GROUPS)[:2, 0], [0.75**3, 0.25**3], rtol=1e-6)


# Weights that come with the data


def test_gui_g1_with_weights_of_1_is_dr_grpo_and_a_weight_multiplies_its_prompt():
    gui = chain(group_mean(), prompt_weight())
    np.testing.assert_array_equal(apply(gui, GROUPS, difficulty=jnp.ones(6)), apply(group_mean(), GROUPS))
    weights = np.array([1, 2, 0.5, 1, 1, 3], np.float32)
    np.testing.assert_allclose(
        apply(gui, GROUPS, difficulty=jnp.asarray(weights)), apply(group_mean(), GROUPS) * weights[:, None], rtol=1e-6
    )


def test_equal_durations_change_nothing_and_others_are_in_units_of_their_mean():
    np.testing.assert_allclose(apply(duration_weight(), GROUPS, duration=jnp.full((6, 4), 7.0)), GROUPS, rtol=1e-6)
    reward, valid = np.ones((1, 3), np.float32), jnp.array([[True, True, False]])
    duration = jnp.array([[1.0, 3.0, jnp.nan]])
    np.testing.assert_allclose(apply(duration_weight(), reward, valid, duration=duration), [[0.5, 1.5, 0]], rtol=1e-6)


def test_durations_undo_the_surplus_of_quick_answers():
    """Within a deadline action x is seen ~ π(x) / Δt(x) times. Weighted by Δt the mean credit is that of the policy."""
    policy, duration, reward = np.array([0.6, 0.4]), np.array([1.0, 5.0]), np.array([0.3, 0.9])
    seen = np.round(3000 * policy / duration).astype(int)
    which = np.repeat([0, 1], seen)[None]
    credit = apply(duration_weight(), reward[which].astype(np.float32), duration=jnp.asarray(duration[which]))
    shares = np.array([credit[which == x].sum() for x in (0, 1)]) / (reward * which.size)
    np.testing.assert_allclose(shares / shares.sum(), policy, rtol=1e-5)
    assert seen[0] / seen.sum() > 0.85, "the quick action is not over-represented"


def test_red_weight_is_the_identity_at_high_temperature_and_golden_at_1():
    red = chain(group_mean(), exponential_weight(temperature=1))
    expected = np.array([0.75 * math.exp(0.75)] + [-0.25 * math.exp(-0.25)] * 3)
    np.testing.assert_allclose(apply(red, GROUPS)[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(apply(red, GROUPS)[[3, 4]], 0)
    np.testing.assert_allclose(apply(red, GROUPS + 2), apply(red, GROUPS), atol=1e-5)
    np.testing.assert_allclose(apply(exponential_weight(temperature=1e9), GROUPS), GROUPS, rtol=1e-6)
    assert apply(exponential_weight(temperature=1), np.array([[1e4]], np.float32)) == pytest.approx(1e10, rel=1e-5)


# RED-Drop

NOISE = np.array([[0.5, 0.1, 0.3, 0.2]], np.float32)


def test_red_drop_golden():
    credit = apply(red_drop(), np.array([A], np.float32), noise=jnp.asarray(NOISE))
    np.testing.assert_array_equal(credit, [[0.5, 0, -0.5, 0]])


def test_red_drop_over_all_orders_of_the_noise_is_a_weight_on_the_group_mean():
    orders = np.array(list(itertools.permutations([0.1, 0.3, 0.5, 0.7])), np.float32)
    for reward in (A, B, C, D, E):
        many = np.tile(np.array(reward, np.float32), (24, 1))
        mean = apply(red_drop(), many, noise=jnp.asarray(orders)).mean(0)
        m = np.mean(reward)
        plain = apply(group_mean(), np.array([reward], np.float32))[0]
        np.testing.assert_allclose(mean, plain / max(2 * (1 - m), 1), atol=1e-6)
    one_of_four = apply(red_drop(), np.tile(np.array(A, np.float32), (24, 1)), noise=jnp.asarray(orders)).mean(0)
    np.testing.assert_allclose(one_of_four, [0.5, -1 / 6, -1 / 6, -1 / 6], atol=1e-6)


def test_red_drop_does_not_split_equal_rewards_by_rounding():
    """The float mean of 0.3, 0.3 and 0 ... may lie above 0.3 and turn the class of answers that equal it."""
    rng = np.random.default_rng(0)
    for value in (0.1, 0.3, 0.7, 1 / 3):
        low = rng.uniform(0, value, size=(64, 3)).astype(np.float32)
        reward = np.concatenate([np.full((64, 3), value, np.float32), low, 2 * np.float32(value) - low], 1)
        noise = jnp.asarray(rng.uniform(size=reward.shape), jnp.float32)
        dropped = apply(red_drop(), reward, noise=noise) == 0
        assert not dropped[:, 3:6].any(), "three bad answers beside six good ones: nothing is to be dropped"


def test_trap_12_red_drop_of_a_group_of_one_is_0():
    noise = jnp.full((1, 1), 0.5)
    np.testing.assert_array_equal(apply(red_drop(), np.array([[1]], np.float32), noise=noise), [[0]])
    one = jnp.array([[True, False, False, False]])
    np.testing.assert_array_equal(apply(red_drop(), np.array([A], np.float32), one, noise=jnp.asarray(NOISE)), 0)


# Invariance


@pytest.mark.parametrize(
    ("transform", "shift", "stretch"),
    [
        (group_mean(), True, False),
        (leave_one_out(), True, False),
        (GRPO, True, True),
        (batch_whiten(ddof=0, eps=1e-12, guard="floor"), True, True),
        (chain(group_mean(), exponential_weight(temperature=1)), True, False),
        (chain(group_mean(), beta_density()), False, False),
        (positive_only(), False, False),
        (negative_only(), False, False),
        (weighted_signs(positive=0.1), False, False),
        (chain(GRPO_SAMPLE, difficulty_weight(sigma=1.8)), False, False),
        (maxrl_centred(eps=0.0), False, True),
        (top_gap(), True, False),
    ],
    ids=["mean", "rloo", "grpo", "whiten", "red", "bnpo", "psr", "nsr", "w", "observe", "maxrl", "gap"],
)
def test_invariance_to_shift_and_stretch_is_as_in_the_table(transform, shift, stretch):
    plain = apply(transform, BINARY)
    assert np.allclose(apply(transform, BINARY + np.float32(1)), plain, atol=1e-5) == shift
    assert np.allclose(apply(transform, BINARY * np.float32(0.5)), plain, atol=1e-5) == stretch


@pytest.mark.parametrize("name", INSTANCES)
def test_gradient_is_finite_beside_an_invalid_answer(name):
    """An invalid answer in a group that has a signal, with NaN in its fields: 0 · NaN must not reach its neighbours."""
    valid = jnp.ones((6, 4), bool).at[:, 3].set(False)
    holed = jnp.asarray(np.where(valid, GROUPS, np.nan))
    extras = {"difficulty": jnp.ones(6), "duration": jnp.where(valid, 2.0, jnp.nan), "noise": jnp.tile(NOISE, (6, 1))}
    transform = INSTANCES[name]
    slope = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    gradient = tiny.jit(jax.grad(lambda r: jnp.sum(slope * advantages.apply(transform, r, valid, **extras))))(holed)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_array_equal(gradient[:, 3], 0)
