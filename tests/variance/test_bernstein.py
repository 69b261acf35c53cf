"""Schemes, coefficients and objectives of 0/1 rewards, and the split of the same coefficients that varies least."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, bandit, random_table

from jaxrl_llm.advantages import Traits, chain, group_mean, group_std, leave_one_out, no_baseline, stateless
from jaxrl_llm.advantages.baselines.greedy import greedy
from jaxrl_llm.advantages.weights.focal import focal
from jaxrl_llm.advantages.weights.log_odds import log_odds
from jaxrl_llm.advantages.weights.maxrl_centred import maxrl_centred
from jaxrl_llm.advantages.weights.maxrl_raw import maxrl_raw
from jaxrl_llm.advantages.weights.pass_at_k import pass_at_k
from jaxrl_llm.variance.bernstein import (
    best_constant,
    curves,
    fitted,
    from_powers,
    least_variance_split,
    objective,
    slope,
    split_by_constant,
)
from jaxrl_llm.variance.binary import BinaryMoments, Scheme, scheme_of
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.moments import RlooMoments
from jaxrl_llm.variance.tables import bernoulli

SEEDS = [0, 1, 2]
RATES = np.linspace(0, 1, 13)

pytestmark = pytest.mark.usefixtures("float64")


GRPO = chain(group_mean(), group_std(ddof=0, eps=0.0))


def transform_of(scheme):
    """The scheme as a transform, to be enumerated."""

    def fn(advantage, rollout):
        right = jnp.sum(advantage, axis=1, keepdims=True).astype(int)
        return jnp.where(advantage == 1, scheme.right[right], scheme.wrong[right])

    return stateless(fn, Traits(unbiased="no", domain="binary"))


# F' and F


def test_what_schemes_maximise():
    """Closed forms: p; 1 - (1-p)^k for pass@k; Σ_{k<=G} pass@k/k for MaxRL; 2/3 of p, and so on."""
    p, group = jnp.asarray(RATES), 5
    of = lambda transform: objective(scheme_of(transform, group).coefficients, p)  # noqa: E731
    failing = lambda k: 1 - (1 - RATES) ** k  # noqa: E731
    assert_close(of(leave_one_out()), RATES)
    assert_close(of(group_mean()), 0.8 * RATES)
    assert_close(of(pass_at_k(k=3)), failing(3))
    assert_close(of(maxrl_raw()), sum(failing(k) / k for k in range(1, 6)))
    assert_close(of(maxrl_centred(eps=0.0)), sum(failing(k) / k for k in range(1, 5)))


def test_the_objective_is_the_integral_of_its_slope():
    d = jnp.asarray(np.random.default_rng(0).normal(size=6))
    assert_close(jax.vmap(jax.grad(lambda p: objective(d, p)))(jnp.asarray(RATES)), slope(d, jnp.asarray(RATES)))
    assert objective(d, 0.0) == 0
    assert_close(objective(d, 1.0), np.mean(d))


@pytest.mark.parametrize("p", [0.1, 0.6])
def test_the_slope_is_what_enumeration_finds(p):
    d = jnp.asarray(np.random.default_rng(1).normal(size=4))
    scheme = split_by_constant(d, 0.3)
    assert_close(scheme.coefficients, d)
    assert_close(moments(transform_of(scheme), bernoulli(p), 4).scale, slope(d, p))


# Targets


def test_coefficients_of_a_polynomial():
    powers = jnp.asarray([0.5, -2.0, 3.0])
    d = from_powers(powers, 6)
    assert_close(slope(d, jnp.asarray(RATES)), 0.5 - 2 * RATES + 3 * RATES**2)
    assert_close(from_powers(jnp.asarray([2.0]), 3), [2, 2, 2])
    for how in ("interpolate", "least squares"):
        found = fitted(lambda p: 0.5 - 2 * p + 3 * p**2, 6, how=how)
        assert_close(found, d)
    with pytest.raises(ValueError, match="group_size must be at least 3"):
        from_powers(powers, 2)


def test_fits_of_a_function_that_is_no_polynomial():
    """1/√(p(1-p) + 0.05): each fit is best at what it promises and not at what the others do."""
    target = lambda p: 1 / jnp.sqrt(p * (1 - p) + 0.05)  # noqa: E731
    d = {how: fitted(target, 5, how=how) for how in ("interpolate", "least squares", "Bernstein")}
    points = (1 - np.cos(np.pi * (np.arange(5) + 0.5) / 5)) / 2
    at_points = {how: np.max(np.abs(slope(x, jnp.asarray(points)) - target(points))) for how, x in d.items()}
    assert at_points["interpolate"] < 1e-12
    assert min(at_points["least squares"], at_points["Bernstein"]) > 1e-2
    p = (np.arange(512) + 0.5) / 512
    gap = {how: np.sum((slope(x, jnp.asarray(p)) - target(p)) ** 2) for how, x in d.items()}
    assert gap["least squares"] < min(gap["interpolate"], gap["Bernstein"])
    residual = np.asarray(slope(d["least squares"], jnp.asarray(p)) - target(p))
    for k in range(5):  # orthogonal to every polynomial of its degree
        assert abs(residual @ p**k) < 1e-9
    assert_close(d["Bernstein"], target(np.arange(5) / 4))
    assert_close(fitted(lambda p: 3 * p, 1, how="Bernstein"), [1.5])


def test_one_over_p_has_no_scheme():
    """A polynomial is finite at 0, so F' = 1/p is met at no G. That of a pole outside, at -0.2, is neared as ρ^-G, with

    ρ = 1.4 + √(1.4² - 1) the sum of half axes of the ellipse through the pole around [-1, 1] (Bernstein, 1912).
    """
    p, gap = jnp.linspace(1e-3, 1, 50), {}
    for shift in (0.0, 0.2):
        target = lambda p: 1 / (p + shift)  # noqa: B023, E731
        for group in (4, 8, 16):
            d = fitted(target, group, how="interpolate")
            gap[shift, group] = float(jnp.max(jnp.abs(slope(d, p) - target(p))))
    assert min(gap[0.0, g] for g in (4, 8, 16)) > 100
    rho = 1.4 + math.sqrt(0.96)
    assert gap[0.2, 8] < 2 * gap[0.2, 4] / rho**4
    assert gap[0.2, 16] < 2 * gap[0.2, 8] / rho**8
    with pytest.raises(ValueError, match="interpolate"):
        fitted(lambda p: 1 / p, 4, how="Bernstein")
    with pytest.raises(ValueError, match="how must be"):
        fitted(lambda p: p, 4, how="spline")
    with pytest.raises(ValueError, match="at most 512"):
        fitted(lambda p: p, 600, how="least squares")


# The split


TARGETS = {"reinforce": no_baseline(), "grpo": GRPO, "maxrl": maxrl_raw(), "pass@2": pass_at_k(k=2), "odds": log_odds()}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("group", [2, 4])
def test_t10_no_split_of_the_same_coefficients_varies_less(name, group):
    """Enumerated: the gradient stays, and a step to either side along any x_j costs the same and something."""
    for seed in SEEDS:
        table = random_table(seed, binary=True)
        m, given = BinaryMoments.of(table), scheme_of(TARGETS[name], group)
        best = least_variance_split(given.coefficients, m)
        assert_close(best.coefficients, given.coefficients)
        found = moments(transform_of(best), table, group)
        assert_close(found.trace_var, m.variance(best))
        assert_close(found.mean_grad, moments(TARGETS[name], table, group).mean_grad)
        assert m.variance(best) < m.variance(given)
        for j in range(group):
            to = [Scheme(best.right.at[j + 1].add(h), best.wrong.at[j].add(h)) for h in (0.1, -0.1)]
            assert_close(m.variance(to[0]), m.variance(to[1]))
            assert m.variance(to[0]) > m.variance(best) + 1e-6


def test_a_single_answer_has_the_constant_of_the_energies():
    for seed in SEEDS:
        table = random_table(seed, binary=True)
        best = least_variance_split(jnp.ones(1), BinaryMoments.of(table))
        assert_close(-best.wrong[0], RlooMoments.of(table).best_constant)


def test_a_logit_is_estimated_without_variance():
    """One score for each kind: the best constant is 1 - p, and with it the estimate is exact."""
    m = BinaryMoments.of(bernoulli(0.3))
    assert_close(m.variance(least_variance_split(jnp.ones(4), m)), 0)
    assert_close(m.variance(least_variance_split(scheme_of(GRPO, 4).coefficients, m)), 0)
    assert_close(m.variance(split_by_constant(jnp.ones(4), 0.7)), 0)
    assert m.variance(scheme_of(leave_one_out(), 4)) > 0.01


def gaps(coefficients, m, baseline):
    """G times what the constant costs above the best split, at G = 64 and 128."""
    for group in (64, 128):
        d = coefficients(group)
        b = baseline(d, m)
        yield float(group * (m.variance(split_by_constant(d, b)) - m.variance(least_variance_split(d, m))))


@pytest.mark.parametrize("seed", SEEDS)
def test_t10_in_large_groups_a_constant_is_as_good_as_the_best_split(seed):
    """b* where F' is flat; where it is not, b* is off by (|∇p|²/F) F''/F', which costs |∇p|⁴ F''²/F at the first order.

    With the constant corrected, the cost is of the second order: it halves as G doubles.
    """
    m = BinaryMoments.of(random_table(seed, binary=True))
    q, flat, steep = 1 - m.p, jnp.ones, lambda g: from_powers(jnp.asarray([0.5, 1.0]), g)
    plain = lambda d, m: m.best_constant  # noqa: E731
    assert_close(best_constant(flat(64), m), m.best_constant)
    for coefficients, baseline in ((flat, plain), (steep, best_constant)):
        first, second = gaps(coefficients, m, baseline)
        assert -1e-12 < second < 0.55 * first + 1e-12
    fisher = m.p * m.tau_plus + q * m.tau_minus + m.grad_p_norm2 / (m.p * q)
    first, second = gaps(steep, m, plain)
    limit = float(m.grad_p_norm2**2 / fisher)
    assert abs(second - limit) < 0.6 * abs(first - limit) + 1e-12
    assert abs(second - limit) < 0.2 * limit


def test_a_split_for_several_prompts():
    """Its mean variance is below that of each prompt's own best split, used for all."""
    d = scheme_of(GRPO, 4).coefficients
    each = [BinaryMoments.of(random_table(seed, binary=True)) for seed in SEEDS]
    together = jax.tree.map(lambda *x: jnp.stack(x), *each)
    mean = lambda scheme: float(jnp.mean(jax.vmap(BinaryMoments.variance, (0, None))(together, scheme)))  # noqa: E731
    shared = mean(least_variance_split(d, together))
    assert shared < min(mean(least_variance_split(d, m)) for m in each)
    assert np.mean([m.variance(least_variance_split(d, m)) for m in each]) < shared


@pytest.mark.parametrize(
    ("fields", "word"),
    [((0.0, 1.0, 1.0, 1.0), "p must lie inside"), ((0.5, 0.0, 0.0, 0.0), "one of tau_plus")],
)
def test_where_no_split_matters(fields, word):
    p, plus, minus, slope2 = fields
    with pytest.raises(ValueError, match=word):
        least_variance_split(jnp.ones(3), BinaryMoments(p=p, tau_plus=plus, tau_minus=minus, grad_p_norm2=slope2))


# T11


def weight_of_centred(u, group):
    """E_c[u(c) m(1-m)]/(p q) of A = u(c) (r - m), m = c/G."""
    p = RATES[1:-1]
    share = [math.comb(group, c) * p**c * (1 - p) ** (group - c) for c in range(group + 1)]
    return sum(w * u(c / group) * c / group * (1 - c / group) for c, w in enumerate(share)) / (p * (1 - p))


@pytest.mark.parametrize("group", [2, 3, 5])
def test_t11_weight_of_centred_schemes(group):
    p = jnp.asarray(RATES[1:-1])
    for transform, u in (
        (GRPO, lambda m: 1 / math.sqrt(m * (1 - m)) if 0 < m < 1 else 0),
        (focal(gamma=2.0), lambda m: (1 - m) ** 2),
        (maxrl_centred(eps=0.0), lambda m: 1 / m if m else 0),
        (log_odds(), lambda m: 1 / (m * (1 - m)) if 0 < m < 1 else 0),
    ):
        assert_close(slope(scheme_of(transform, group).coefficients, p), weight_of_centred(u, group))


def test_t11_in_two_and_three_answers():
    """G = 2: all centred schemes are one. G = 3: GRPO is √2 leave-one-out, 3/√2 group means. G = 4: no."""
    of = lambda transform, group: jnp.stack(scheme_of(transform, group))  # noqa: E731
    for transform in (GRPO, focal(gamma=2.0), maxrl_centred(eps=0.0), log_odds()):
        pair = of(transform, 2)
        assert_close(pair, pair[0, 1] * of(leave_one_out(), 2))
    assert_close(of(GRPO, 3), math.sqrt(2) * of(leave_one_out(), 3))
    assert_close(of(GRPO, 3), 3 / math.sqrt(2) * of(group_mean(), 3))
    ratio = of(GRPO, 4)[0, 1:4] / of(leave_one_out(), 4)[0, 1:4]
    assert float(jnp.max(ratio) - jnp.min(ratio)) > 0.1


def test_curves_of_several_schemes():
    found = curves({"rloo": leave_one_out(), "GRPO": GRPO}, 8, jnp.asarray([0.05, 0.25, 0.5, 0.9]))
    assert_close(found.slope["rloo"], np.ones(4))
    assert_close(found.objective["rloo"], [0.05, 0.25, 0.5, 0.9])
    expected = [2.4730626362, 2.0261155898, 1.8556559496, 2.3276890521]
    assert np.max(np.abs(found.slope["GRPO"] - np.array(expected))) <= 0.5e-10
    assert found.group_size == 8
    with pytest.raises(ValueError, match="greedy_reward"):
        curves({"ReMax": greedy()}, 8, jnp.asarray([0.5]))


def test_moments_of_the_bandit_predict_the_best_split():
    """A2, whose wrong answers have most of the energy, in groups of 4: below leave-one-out, and enumerated."""
    m = BinaryMoments.of(bandit("A2"))
    best = least_variance_split(jnp.ones(4), m)
    found = moments(transform_of(best), bandit("A2"), 4)
    assert_close([found.trace_var, found.bias_norm], [m.variance(best), 0])
    assert found.trace_var < moments(leave_one_out(), bandit("A2"), 4).trace_var
