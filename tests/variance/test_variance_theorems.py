"""Theorems on the bias and variance of baselines, on random tables, by exact enumeration."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, bandit, random_table

from jaxrl_llm.advantages import Traits, chain, group_mean, group_std, leave_one_out, no_baseline, stateless
from jaxrl_llm.advantages.baselines.batch_leave_one_out import batch_leave_one_out
from jaxrl_llm.advantages.baselines.batch_mean import batch_mean
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.advantages.baselines.james_stein import james_stein
from jaxrl_llm.advantages.baselines.james_stein_deployed import james_stein_deployed
from jaxrl_llm.advantages.baselines.other_prompts_mean import other_prompts_mean
from jaxrl_llm.advantages.baselines.shrunk_leave_one_out import shrunk_leave_one_out
from jaxrl_llm.advantages.weights.focal import focal
from jaxrl_llm.advantages.weights.log_odds import log_odds
from jaxrl_llm.advantages.weights.maxrl_centred import maxrl_centred
from jaxrl_llm.advantages.weights.negative_only import negative_only
from jaxrl_llm.advantages.weights.pass_at_k import pass_at_k
from jaxrl_llm.variance.bernstein import slope
from jaxrl_llm.variance.binary import BinaryMoments, scheme_of
from jaxrl_llm.variance.designs import antithetic, systematic
from jaxrl_llm.variance.exact import moments, moments_of
from jaxrl_llm.variance.moments import RlooMoments, VarianceSplit
from jaxrl_llm.variance.tables import OutcomeTable

GRPO = chain(group_mean(), group_std(ddof=0, eps=0.0))
SEEDS = [0, 1, 2]

pytestmark = pytest.mark.usefixtures("float64")


def trace_of(transform, table, group, **more):
    return moments(transform, table, group, **more).trace_var


# T1


def best_of_the_others():
    """A baseline that reads the other answers alone, in no linear way."""

    def fn(advantage, rollout):
        others = jnp.where(jnp.eye(advantage.shape[1], dtype=bool), -jnp.inf, advantage[:, None, :])
        return advantage - jnp.exp(jnp.max(others, axis=-1))

    return stateless(fn, Traits(unbiased="yes", needs_iid=True, minimum_group=2))


@pytest.mark.parametrize("seed", SEEDS)
def test_t1_a_baseline_of_other_answers_leaves_no_bias(seed):
    table = random_table(seed)
    for transform in (best_of_the_others(), energy_weighted(leave_one_out=True)):
        assert_close(moments(transform, table, 3).bias_norm, 0)


@pytest.mark.parametrize("design", [antithetic, systematic])
def test_t1_fails_for_answers_that_tell_of_each_other(design):
    table = bandit("A")
    coupled = leave_one_out()
    coupled = coupled._replace(traits=dataclasses.replace(coupled.traits, needs_iid=False))
    assert moments(coupled, table, 2, design=design).bias_norm > 0.1
    assert_close(moments(constant(value=0.7), table, 2, design=design).bias_norm, 0)


# T2


def fixed_weights(w):
    """A_i = r_i - Σ_j w_ij r_j."""
    return stateless(lambda a, rollout: a - jnp.einsum("ij,pj->pi", jnp.asarray(w), a), Traits(unbiased="no"))


@pytest.mark.parametrize("seed", SEEDS)
def test_t2_the_weight_on_itself_is_the_loss_of_scale(seed):
    w = np.random.default_rng(seed).normal(size=(3, 3))
    found = moments(fixed_weights(w), random_table(seed), 3)
    assert_close(found.scale, np.mean(1 - np.diag(w)))
    assert_close(abs(found.cos), 1)


def test_t2_of_group_and_batch_means():
    pool = [random_table(0), random_table(1)]
    assert_close(moments(group_mean(), pool[0], 4).scale, 1 - 1 / 4)
    assert_close(moments(batch_mean(), pool, 2, prompts=2).scale, 1 - 1 / 4)
    assert_close(moments(batch_mean(), pool, 2, prompts=2).cos, 1)


def test_t2_weights_that_depend_on_the_answer_turn_the_direction():
    assert moments(energy_weighted(leave_one_out=False), random_table(0), 3).cos < 1 - 1e-4


# T3


@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize("seed", SEEDS)
def test_t3_variance_of_leave_one_out(seed, group):
    table = random_table(seed)
    m, mean = RlooMoments.of(table), moments(group_mean(), table, group)
    assert_close(trace_of(leave_one_out(), table, group), m.leave_one_out_variance(group))
    assert_close(mean.trace_var, m.group_mean_variance(group))
    assert_close(mean.bias_norm**2, m.group_mean_bias2(group))
    assert_close(mean.mse_rescaled, m.leave_one_out_variance(group))


# T4


@pytest.mark.parametrize("seed", SEEDS)
def test_t4_variance_of_an_independent_baseline(seed):
    """The second prompt has no gradient, so it is nothing but the baseline of the first."""
    table, other = random_table(seed), random_table(seed + 10)
    silent = OutcomeTable(other.probs, jnp.zeros((4, 3)), other.rewards)
    m, b = RlooMoments.of(table), RlooMoments.of(silent)
    bias = b.value - m.value
    expected = m.independent_variance(mse=b.reward_variance / 2 + bias**2, bias=bias, group_size=2)
    assert_close(4 * trace_of(other_prompts_mean(), [table, silent], 2, prompts=None), expected)


# T5


@pytest.mark.parametrize("seed", SEEDS)
def test_t5_the_best_constant(seed):
    table = random_table(seed)
    m = RlooMoments.of(table)
    value, best = float(m.value), float(m.best_constant)
    trace = {b: trace_of(constant(value=b), table, 1) for b in (best, value, best - 0.05, best + 0.05)}
    for b, found in trace.items():
        assert_close(found, m.constant_variance(b, 1))
    assert_close(trace[value], m.value_variance)
    assert_close(trace[value] - trace[best], m.energy_covariance**2 / m.fisher_trace)
    assert trace[best] < min(trace[best - 0.05], trace[best + 0.05])


@pytest.mark.parametrize("seed", SEEDS)
def test_t5_for_binary_rewards_it_is_the_share_of_the_energy_of_right_answers(seed):
    table = random_table(seed, binary=True)
    pi, r, e = np.asarray(table.probs), np.asarray(table.rewards), np.asarray(table.energy)
    share = pi[r == 1] @ e[r == 1] / (pi @ e)
    assert_close(RlooMoments.of(table).best_constant, share)
    assert_close(BinaryMoments.of(table).best_constant, share)


@pytest.mark.parametrize("seed", SEEDS)
def test_t5_a_constant_for_each_coordinate(seed):
    """b_k = E[r s_k²]/E[s_k²], of which no coordinate can do better, so that it is below the best scalar."""
    table = random_table(seed)
    pi, r, s = np.asarray(table.probs), np.asarray(table.rewards), np.asarray(table.scores)
    best = pi @ (r[:, None] * s**2) / (pi @ s**2)
    found = lambda b: moments_of(jnp.asarray((r[:, None] - b) * s), table.probs, table.gradient)  # noqa: E731
    assert_close(found(best).bias_norm, 0)
    for step in 0.05 * np.eye(3):
        cost = found(best + step).trace_var - found(best).trace_var
        assert_close(cost, found(best - step).trace_var - found(best).trace_var)
        assert_close(cost, 0.05**2 * (pi @ s**2) @ (step > 0))
    m = RlooMoments.of(table)
    assert found(best).trace_var < m.constant_variance(m.best_constant, 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_t5_a_full_control_variate_leaves_nothing_where_scores_span_the_outcomes(seed):
    """Cov(r s, s) F^+: three scores are all functions of mean 0 of four outcomes, of six they are not."""
    for outcomes in (4, 6):
        table = random_table(seed, outcomes=outcomes)
        pi, s = np.asarray(table.probs), np.asarray(table.scores)
        rewarded = np.asarray(table.rewards)[:, None] * s
        control = np.linalg.solve((s.T * pi) @ s, (s.T * pi) @ rewarded)
        found = moments_of(jnp.asarray(rewarded - s @ control), table.probs, table.gradient)
        assert_close(found.bias_norm, 0)
        if outcomes == 4:
            assert_close(found.trace_var, 0)
        else:
            assert 1e-3 < found.trace_var < RlooMoments.of(table).value_variance


# T6 and T7


def test_t6_where_leave_one_out_overtakes_no_baseline():
    """G > 1 + (v F + |g|²)/(σ0² - σV²): 2.94 on problem A, 2.96 on A2."""
    for name, expected in (("A", 2.94), ("A2", 2.96)):
        table = bandit(name)
        assert abs(RlooMoments.of(table).break_even_group_size - expected) <= 0.005
        better = [trace_of(leave_one_out(), table, g) < trace_of(no_baseline(), table, g) for g in (2, 3)]
        assert better == [False, True]


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("seed", SEEDS)
def test_t7_the_best_shrinkage(seed, group):
    table = random_table(seed)
    m = RlooMoments.of(table)
    best = float(m.best_shrinkage(group))
    trace = {
        k: trace_of(shrunk_leave_one_out(factor=float(k)), table, group) for k in (best, best - 0.1, best + 0.1, 0, 1)
    }
    for k, found in trace.items():
        assert_close(found, m.shrunk_variance(k, group))
    assert min(trace, key=trace.get) == best
    assert_close(trace[best + 0.1], trace[best - 0.1])  # a parabola
    assert_close(moments(shrunk_leave_one_out(factor=best), table, group).bias_norm, 0)


# Batches: the law of total variance and T8


@pytest.mark.parametrize(("prompts", "group"), [(2, 2), (3, 2), (2, 3), (1, 3)])
def test_t8_answers_and_prompts_share_the_variance(prompts, group):
    """tr Var = (W(G) + X)/B, W = a/G + b/(G(G-1)); N tr Var is least at G* = 1 + sqrt(b/X)."""
    pool = [random_table(seed, outcomes=3) for seed in (0, 1)]
    split = VarianceSplit.of(pool)
    assert_close(trace_of(leave_one_out(), pool, group, prompts=prompts), split.variance(prompts, group))
    if prompts == 2:
        assert_close(trace_of(leave_one_out(), pool, group, prompts=None), split.variance(2, group, pool=2))
    budget = lambda size: split.budget_variance(size, prompt_cost=0.0, answer_cost=1.0)  # noqa: E731
    assert_close(budget(group), prompts * group * trace_of(leave_one_out(), pool, group, prompts=prompts))
    best = split.ideal_group_size
    assert budget(best) < min(budget(0.9 * best), budget(1.1 * best))


@pytest.mark.parametrize("transform", [batch_leave_one_out(), other_prompts_mean(), james_stein()])
def test_baselines_of_the_batch_are_unbiased(transform):
    pool = [random_table(seed, outcomes=2) for seed in (0, 1)]
    for prompts in (2, 3, None):
        assert_close(moments(transform, pool, 2, prompts=prompts).bias_norm, 0)


def test_the_released_james_stein_leaks():
    """The own prompt is in the weight and in the mean that it is shrunk to."""
    pool = [random_table(seed, outcomes=2) for seed in (0, 1)]
    assert moments(james_stein_deployed(smoothing=0.0), pool, 2, prompts=3).bias_norm > 1e-3


# T9, T10, T11

BINARY = {
    "rloo": leave_one_out(),
    "mean": group_mean(),
    "grpo": GRPO,
    "maxrl": maxrl_centred(eps=0.0),
    "log odds": log_odds(),
    "pass@2": pass_at_k(k=2),
    "focal": focal(gamma=2.0),
    "negatives": negative_only(),
}


@pytest.mark.parametrize("scheme", BINARY)
@pytest.mark.parametrize("group", [2, 4])
def test_t9_t10_four_numbers_and_a_polynomial(scheme, group):
    of_groups = scheme_of(BINARY[scheme], group)
    for seed in SEEDS:
        table = random_table(seed, binary=True)
        m, found = BinaryMoments.of(table), moments(BINARY[scheme], table, group)
        assert_close(found.trace_var, m.variance(of_groups))
        assert_close(found.bias_norm**2, m.bias2(of_groups))
        assert_close(found.mse_rescaled, m.mse_rescaled(of_groups))
        assert_close(found.scale, m.weight(of_groups))
        assert_close(found.mean_grad, slope(of_groups.coefficients, m.p) * table.gradient)


def test_t10_the_best_split_of_the_same_weights():
    """To leading order A+ = (1-b) d, A- = -b d with the b of T5: it beats the split of the reward and of the mean."""
    table = random_table(1, binary=True)
    m = RlooMoments.of(table)
    best = float(m.best_constant)
    splits = {b: trace_of(constant(value=b), table, 1) for b in (best, 0.0, float(m.value), 1.0)}
    assert min(splits, key=splits.get) == best


def test_t11_two_answers_leave_one_centred_scheme_and_three_leave_grpo():
    for seed in SEEDS:
        table = random_table(seed, binary=True)
        pairs = {name: moments(BINARY[name], table, 2) for name in ("grpo", "maxrl", "log odds", "focal")}
        plain = moments(leave_one_out(), table, 2)
        for found in pairs.values():
            assert_close(found.mse_rescaled, plain.mse_rescaled)
        rloo, grpo = moments(leave_one_out(), table, 3), moments(GRPO, table, 3)
        assert_close(grpo.trace_var, 2 * rloo.trace_var)  # sqrt 2 times leave-one-out, 3/sqrt 2 times the group mean
        assert_close(grpo.mean_grad, math.sqrt(2) * np.asarray(rloo.mean_grad))
        four = moments(GRPO, table, 4), moments(leave_one_out(), table, 4)
        assert abs(four[0].mse_rescaled / four[1].mse_rescaled - 1) > 1e-6
