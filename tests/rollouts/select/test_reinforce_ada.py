"""Reinforce-Ada against a sampler written one answer at a time, and against its exact table."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from select_pools import assert_fields_of_the_pool, chance, kept, labels, pool_of, weight

from jaxrl_llm.advantages._base import apply
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.baselines.pool_mean import pool_mean
from jaxrl_llm.rollouts.select.reinforce_ada import balanced, inverse_rate, positive_first, until_positives

BALANCED, POSITIVE_FIRST = jax.jit(balanced(4, 8, 4)), jax.jit(positive_first(4, 8, 4))
ONE_AT_A_TIME = jax.jit(until_positives(2, 4, 1, 12))
SMALL = jax.jit(balanced(4, 4, 2))
RULES = {
    "balanced": (BALANCED, lambda right, wrong: right >= 2 and wrong >= 2, 4),
    "balanced, odd": (balanced(5, 8, 4), lambda right, wrong: right >= 2 and wrong >= 3, 5),
    "positive first": (POSITIVE_FIRST, lambda right, wrong: right >= 1, 4),
    "until positives": (until_positives(3, 6, 8, 4), lambda right, wrong: right >= 3, 6),
}

# arXiv 2510.04996 with RLHFlow/Reinforce-Ada 05be605: n = 4 kept of at most 4 rounds of 8, by enumeration.
#  p: P(mixed) of 4 and of 16 answers; balanced: E[N], E[pool mean], P(mixed kept), w; positive first: E[N], E[mean], w
TABLE = {
    0.02: (0.0776, 0.2762, 30.9375, 0.0241, 0.4761, 7.1716, 25.5227, 0.0364, 5.8752),
    0.05: (0.1855, 0.5599, 27.3147, 0.0663, 0.8063, 5.8570, 19.1643, 0.0776, 4.2673),
    0.10: (0.3438, 0.8147, 20.9625, 0.1321, 0.9657, 3.9464, 13.5643, 0.1297, 2.8023),
    0.25: (0.6797, 0.9900, 11.5198, 0.2837, 0.9999, 1.6205, 8.8891, 0.2634, 1.3988),
    0.50: (0.8750, 1.0000, 8.5667, 0.5000, 1.0000, 1.0000, 8.0314, 0.5010, 0.9726),
    0.75: (0.6797, 0.9900, 11.5198, 0.7163, 0.9999, 1.6205, 8.0001, 0.7500, 1.2439),
    0.90: (0.3438, 0.8147, 20.9625, 0.8679, 0.9657, 3.9464, 8.0000, 0.9000, 1.5795),
}
HALF_A_DIGIT = 0.5e-4 + 1e-9  # the table has four decimals


def one_at_a_time(rewards, valid, stop, keep, round_size):
    """(places kept, pool mean, pool std, drawn) of one prompt, as the sampler runs."""
    drawn, right, wrong = 0, [], []
    for start in range(0, len(rewards), round_size):
        for place in range(start, start + round_size):
            if valid[place]:
                drawn += 1
                (right if rewards[place] > 0.7 else wrong).append(place)
        if stop(len(right), len(wrong)):
            break
    chosen = right[: keep // 2]
    chosen += wrong[: keep - len(chosen)]
    chosen += right[keep // 2 :][: keep - len(chosen)]
    if drawn <= 1:
        return sorted(chosen), 0.0, 1.0, drawn
    mean = len(right) / drawn
    std = math.sqrt((len(right) * (1 - mean) ** 2 + len(wrong) * mean**2) / (drawn - 1))
    return sorted(chosen), mean, max(std, 1e-6), drawn


@pytest.mark.parametrize("name", RULES)
def test_selector_is_the_sequential_sampler(name):
    select, stop, keep = RULES[name]
    rng = np.random.default_rng(1)
    count = 3000
    rewards = (rng.uniform(size=(count, 32)) < rng.uniform(size=(count, 1)) ** 2).astype(np.float32)
    rewards = np.where(rng.uniform(size=rewards.shape) < 0.3, rewards * 0.7, rewards)  # 0.7 is not above 0.7
    valid = rng.uniform(size=(count, 32)) < rng.choice([0.04, 0.3, 1.0], size=(count, 1))
    pool = pool_of(np.where(valid, rewards, np.nan).astype(np.float32), valid)
    out = jax.jit(select)(pool)
    expected = [one_at_a_time(r, v, stop, keep, 8) for r, v in zip(rewards, valid, strict=True)]
    assert kept(out) == [e[0] for e in expected]
    assert out.reward.shape == (count, keep)
    np.testing.assert_allclose(out.extras["pool_mean"], [e[1] for e in expected], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(out.extras["pool_std"], [e[2] for e in expected], rtol=1e-5)
    np.testing.assert_array_equal(out.extras["drawn"], [e[3] for e in expected])
    assert {e[3] for e in expected} >= {0, 1, 8, 32}, "the pools leave out a case"
    assert_fields_of_the_pool(pool, out)


COUNTS = np.array(list(itertools.product(range(9), repeat=4)))


@functools.cache
def of_rounds(select):
    """(right answers kept first, pool mean, drawn) after every sequence of 4 numbers of right answers in rounds of 8:
    the order within a round does not change how many are kept of a class."""
    out = select(pool_of((np.arange(8) < COUNTS[..., None]).reshape(len(COUNTS), 32).astype(np.float32)))
    assert bool(out.valid.all())
    return tuple(np.asarray(x, np.float64) for x in (out.reward, out.extras["pool_mean"], out.extras["drawn"]))


def averages(select, p):
    """E[N], E[pool mean], P(mixed kept) and w with the credit r - pool mean, by enumeration."""
    reward, mean, drawn = of_rounds(select)
    binomial = np.array([math.comb(8, k) * p**k * (1 - p) ** (8 - k) for k in range(9)])
    probability = np.prod(binomial[COUNTS], axis=-1)
    is_mixed = reward.max(axis=1) > reward.min(axis=1)
    w = weight(reward - mean[:, None], reward, p)
    return [float(probability @ x) for x in (drawn, mean, is_mixed, w)]


@pytest.mark.parametrize("p", TABLE)
def test_golden_table(p):
    four, sixteen, *expected = TABLE[p]
    assert 1 - p**4 - (1 - p) ** 4 == pytest.approx(four, abs=HALF_A_DIGIT)
    assert 1 - p**16 - (1 - p) ** 16 == pytest.approx(sixteen, abs=HALF_A_DIGIT)
    both, first = averages(BALANCED, p), averages(POSITIVE_FIRST, p)
    np.testing.assert_allclose([*both, first[0], first[1], first[3]], expected, rtol=0, atol=HALF_A_DIGIT)


def test_trap_2_stopped_pools_are_biased_keep_the_earliest_and_hold_all_wrong_prompts():
    assert averages(BALANCED, 0.1)[1] > 0.13  # the mean of the pool is not the pass rate 0.1
    rewards = np.zeros((2, 32), np.float32)
    rewards[0, [3, 4, 5, 6]] = 1
    out = BALANCED(pool_of(rewards))
    assert kept(out) == [[0, 1, 3, 4], [0, 1, 2, 3]]  # the earliest of each class; four wrong answers hold a row
    np.testing.assert_array_equal(apply(pool_mean(), out.reward, pool_mean=out.extras["pool_mean"])[1], 0)


def test_what_lies_behind_the_last_round_is_not_read():
    rewards = np.array([[1, 0, 1, 0, 0, 0, 0, 0]], np.float32)
    junk = rewards.copy()
    junk[0, 4:] = [np.nan, np.inf, 1, 1]
    out, other = (SMALL(pool_of(r)) for r in (rewards, junk))
    jax.tree.map(np.testing.assert_array_equal, out, other)


def test_invalid_answers_in_the_rounds_change_nothing():
    rng = np.random.default_rng(2)
    rewards = (rng.uniform(size=(200, 4, 3)) < 0.2).astype(np.float32)
    wide = np.full((200, 4, 5), np.nan, np.float32)
    wide[:, :, [0, 2, 3]] = rewards
    valid = np.broadcast_to(np.array([True, False, True, True, False]), wide.shape)
    out = jax.jit(balanced(4, 3, 4))(pool_of(rewards.reshape(200, 12)))
    padded = jax.jit(balanced(4, 5, 4))(pool_of(wide.reshape(200, 20), valid.reshape(200, 20)))
    np.testing.assert_array_equal(out.reward, padded.reward)
    for name in ("pool_mean", "pool_std", "drawn"):
        np.testing.assert_array_equal(out.extras[name], padded.extras[name])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_pool_of_none_one_or_two_answers(number):
    valid = np.arange(8)[None] < number
    out = SMALL(pool_of(np.ones((1, 8), np.float32), valid))
    mean, std = (0, 1) if number < 2 else (1, np.float32(1e-6))
    assert (out.extras["pool_mean"][0], out.extras["pool_std"][0], out.extras["drawn"][0]) == (mean, std, number)
    assert kept(out) == [list(range(number))]


def test_one_round_of_as_many_as_are_kept_is_the_group_mean():
    rewards = labels(4)
    out = jax.jit(balanced(4, 4, 1))(pool_of(rewards))
    np.testing.assert_array_equal(out.reward, rewards)
    credit = apply(pool_mean(), out.reward, pool_mean=out.extras["pool_mean"])
    np.testing.assert_allclose(credit, apply(group_mean(), jnp.asarray(rewards)), atol=1e-7)


@pytest.mark.parametrize("p", [0.02, 0.3, 0.5, 0.9])
def test_ideal_balanced_keep_has_the_closed_weight(p):
    """Half right, half wrong, the true rate as the baseline; with the baseline 1/2 it is 1 / (4p(1-p))."""
    reward = np.array([1.0, 1, 0, 0])
    assert weight(reward - p, reward, p) == pytest.approx(((1 - p) ** 2 + p**2) / (2 * p * (1 - p)))
    assert weight(reward - 0.5, reward, p) == pytest.approx(1 / (4 * p * (1 - p)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_statistics_keep_the_dtype_of_rewards(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        out = jax.jit(until_positives(2, 4, 4, 2))(pool_of(jnp.asarray(labels(8)[:5], dtype)))
        assert {out.extras[name].dtype for name in ("pool_mean", "pool_std", "inverse_rate")} == {jnp.dtype(dtype)}
        assert out.extras["drawn"].dtype == jnp.int32


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_inverse_rate_is_unbiased_and_the_rate_of_the_pool_is_not(count, size):
    rewards = labels(12)
    with jax.enable_x64(True):
        extras = jax.jit(until_positives(count, 4, size, 12 // size))(pool_of(rewards.astype(np.float64))).extras
    for p in (0.05, 0.4, 0.8):
        assert chance(rewards, p) @ np.asarray(extras["inverse_rate"]) == pytest.approx(p, abs=1e-12)
        assert abs(chance(rewards, p) @ np.asarray(extras["pool_mean"]) - p) > 1e-5


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_drawing_one_at_a_time_until_k_right_takes_the_negative_binomial_number(p):
    """E[N] = Σ P(fewer than K of the first n are right), n = 0 ... N - 1, which tends to K / p."""
    rewards, count = labels(12), 2
    drawn = np.asarray(ONE_AT_A_TIME(pool_of(rewards)).extras["drawn"])
    below = [sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(count)) for n in range(12)]
    assert chance(rewards, p) @ drawn == pytest.approx(sum(below), abs=1e-9)
    if p == 0.9:
        assert sum(below) == pytest.approx(count / p, abs=1e-8)


def test_inverse_rate_of_no_answers_and_of_invalid_ones():
    reward = jnp.asarray([[1.0, 1, 0, 1], [jnp.nan, 1, jnp.nan, 1], [1, 1, 1, 1]])
    valid = jnp.asarray([[True] * 4, [False, True, False, True], [False] * 4])
    np.testing.assert_allclose(
        jax.jit(inverse_rate, static_argnums=(2, 3))(reward, valid, 3, 0.7), [2 / 3, 1, 0], rtol=1e-6
    )


def test_wrong_size_of_a_pool_is_refused():
    with pytest.raises(ValueError, match="3 rounds of 4"):
        balanced(4, 4, 3)(pool_of(np.zeros((1, 8), np.float32)))
    with pytest.raises(ValueError, match="cannot keep 9 of 8"):
        balanced(9, 4, 2)(pool_of(np.zeros((1, 8), np.float32)))
