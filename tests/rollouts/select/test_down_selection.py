"""Which answers are kept of many, by definition, by brute force and by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from select_pools import assert_fields_of_the_pool, chance, kept, labels, pool_of, weight

from jaxrl_llm.advantages._base import apply
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.baselines.leave_one_out import leave_one_out
from jaxrl_llm.advantages.weights.red_drop import red_drop
from jaxrl_llm.rollouts.select.down_selection import (
    drop_surplus_wrong,
    drop_unselected,
    keep_extremes,
    keep_first,
    keep_one_pair,
    keep_random,
    mark_one_pair,
    max_variance,
)
from jaxrl_llm.rollouts.select.plan import Plan

ORDERS = np.array(list(itertools.permutations(range(4)))) / 4  # every order of four noises


def orders_of(reward):
    """The same four rewards under every order of the noise."""
    return pool_of(np.tile(np.asarray(reward, np.float32), (24, 1)), noise=ORDERS.astype(np.float32))


@pytest.mark.parametrize("keep", [1, 2, 3, 4, 6])
def test_max_variance_is_the_best_of_all_subsets(keep):
    rng = np.random.default_rng(keep)
    draws = [rng.normal(size=(100, 7)), rng.integers(0, 2, (100, 7)), rng.integers(0, 4, (100, 7)) + 1000]
    reward = np.concatenate(draws).astype(np.float32)
    valid = rng.uniform(size=reward.shape) < 0.8
    pool = pool_of(np.where(valid, reward, np.nan), valid)
    out = jax.jit(max_variance(keep))(pool)
    for r, v, places in zip(reward.astype(np.float64), valid, kept(out), strict=True):
        there = np.flatnonzero(v)
        assert len(places) == len(set(places)) == min(keep, len(there))
        if places:
            best = max(np.var(r[list(subset)]) for subset in itertools.combinations(there, len(places)))
            assert np.var(r[places]) == pytest.approx(best, rel=1e-5)
    assert_fields_of_the_pool(pool, out)


def test_max_variance_takes_the_fewest_high_ones_of_ties_in_any_dtype():
    reward = np.array([[1, 1, 1, 0, 0, 0], [0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    for dtype in (jnp.bfloat16, jnp.float32):
        out = jax.jit(max_variance(3))(pool_of(jnp.asarray(reward, dtype)))
        assert kept(out) == [[3, 4, 2], [0, 1, 2]]
        assert out.reward.dtype == dtype


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_extremes_are_both_ends_of_the_order(keep):
    reward = np.random.default_rng(0).normal(size=(50, 6)).astype(np.float32)
    valid = np.random.default_rng(1).uniform(size=reward.shape) < 0.8
    pool = pool_of(np.where(valid, reward, np.nan), valid)
    out = jax.jit(keep_extremes(keep))(pool)
    for r, v, places in zip(reward, valid, kept(out), strict=True):
        order = [i for i in np.argsort(r) if v[i]]
        ends = order if len(order) <= keep else order[: keep // 2] + order[-(keep - keep // 2) :]
        assert places == ends
    assert_fields_of_the_pool(pool, out)


def test_extremes_count_the_earlier_of_equals_as_lower():
    out = jax.jit(keep_extremes(3))(pool_of(np.array([[1, 0, 1, 0, 1, 0]], np.float32)))
    assert kept(out) == [[1, 2, 4]]


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7])
def test_extremes_and_max_variance_are_biased_and_a_random_subset_is_not(p):
    """Weight on ∇p of leave-one-out credit on two of four answers. The two ends are one right and one wrong answer in
    every mixed pool, with credit ±1: (1 - p⁴ - q⁴) (1/p + 1/q) / 2."""
    reward = labels(4)

    def w(select, **extras):
        out = jax.jit(select)(pool_of(reward, **extras))
        return chance(reward, p) @ weight(apply(leave_one_out(), out.reward), out.reward, p)

    ends = (1 - p**4 - (1 - p) ** 4) / (2 * p * (1 - p))
    assert w(keep_extremes(2)) == pytest.approx(ends, rel=1e-6)
    assert w(max_variance(2)) == pytest.approx(ends, rel=1e-6)
    assert w(keep_first(2)) == pytest.approx(1, rel=1e-6)
    for noise in ORDERS[::5]:
        assert w(keep_random(2), noise=np.tile(noise, (16, 1))) == pytest.approx(1, rel=1e-6)


def test_random_subsets_are_equally_likely_and_valid():
    out = jax.jit(keep_random(2))(orders_of([0, 0, 0, 0]))
    subsets = [tuple(sorted(places)) for places in kept(out)]
    assert {s: subsets.count(s) for s in subsets} == dict.fromkeys(itertools.combinations(range(4), 2), 4)
    valid = np.array([[True, False, True, False]])
    noise = np.array([[0.9, 0.1, 0.8, 0.2]], np.float32)
    pool = pool_of(np.zeros((1, 4), np.float32), valid, noise=noise)
    out = jax.jit(keep_random(3))(pool)
    assert kept(out) == [[2, 0]]
    assert_fields_of_the_pool(pool, out)


def test_oversampling_then_the_first_answers_is_the_ordinary_group():
    plan = Plan(answers=16, select=keep_first(4))
    reward = np.random.default_rng(0).uniform(size=(5, 16)).astype(np.float32)
    out = jax.jit(plan.select)(pool_of(reward))
    np.testing.assert_array_equal(out.reward, reward[:, :4])
    assert kept(out) == [[0, 1, 2, 3]] * 5


def test_drop_surplus_golden():
    """Trinity-RFT `rec_gsm8k`, drop "balance": one of three wrong answers is left, each as likely."""
    out = jax.jit(drop_surplus_wrong())(orders_of([1, 0, 0, 0]))
    credit = np.asarray(apply(group_mean(), out.reward, out.valid))
    assert sorted(map(tuple, credit.tolist())) == sorted([(0.5, -0.5, 0, 0), (0.5, 0, -0.5, 0), (0.5, 0, 0, -0.5)] * 8)
    np.testing.assert_allclose(credit.mean(axis=0), np.array([0.75, -0.25, -0.25, -0.25]) * 2 / 3, atol=1e-7)


@pytest.mark.parametrize("right", range(5))
def test_drop_surplus_weighs_by_half_the_share_of_wrong_answers(right):
    reward = (np.arange(4) < right).astype(np.float32)
    out = jax.jit(drop_surplus_wrong())(orders_of(reward))
    credit = np.asarray(apply(group_mean(), out.reward, out.valid)).mean(axis=0)
    factor = 4 / (2 * (4 - right)) if right < 2 else 1
    np.testing.assert_allclose(credit, factor * (reward - reward.mean()), atol=1e-7)
    assert (np.asarray(out.valid).sum(axis=1) == (2 * right if 0 < right < 2 else 4)).all()


def test_drop_surplus_does_not_call_an_equal_group_wrong_and_leaves_invalid_answers():
    reward = np.array([[0.1] * 7, [1, np.nan, 0, 0, np.nan, 0, 0]], np.float32)
    valid = ~np.isnan(reward)
    out = jax.jit(drop_surplus_wrong())(pool_of(reward, valid, noise=np.linspace(0.9, 0.1, 14).reshape(2, 7)))
    assert kept(out) == [[0, 1, 2, 3, 4, 5, 6], [0, 2]]


def test_drop_surplus_drops_what_the_weight_of_the_same_name_drops():
    rng = np.random.default_rng(6)
    reward, noise = rng.integers(0, 3, (200, 6)).astype(np.float32), rng.uniform(size=(200, 6)).astype(np.float32)
    pool = pool_of(reward, rng.uniform(size=(200, 6)) < 0.8, noise=noise)
    out = jax.jit(drop_surplus_wrong())(pool)
    ours = apply(group_mean(), out.reward, out.valid)
    assert (np.asarray(pool.valid) & ~np.asarray(out.valid)).any()
    np.testing.assert_array_equal(ours, apply(red_drop(), pool.reward, pool.valid, noise=pool.extras["noise"]))


# OREAL @ 2859cc0: leave-one-out credit of rewards ±1, taken on the whole group of four.
CREDIT = {1: (2, -2 / 3), 2: (4 / 3, -4 / 3), 3: (2 / 3, -2)}


@pytest.mark.parametrize("right", range(5))
def test_one_pair_carries_the_credit_of_the_whole_group(right):
    reward = np.where(np.arange(4) < right, 1.0, -1.0)
    pool = orders_of(reward)
    out = jax.jit(keep_one_pair(0.0))(pool)
    assert_fields_of_the_pool(pool, out)
    if right in (0, 4):
        assert kept(out) == [[]] * 24
        return
    pairs = [tuple(places) for places in kept(out)]
    every = list(itertools.product(range(right), range(right, 4)))
    assert {pair: pairs.count(pair) for pair in pairs} == dict.fromkeys(every, 24 // len(every))
    np.testing.assert_array_equal(out.extras["drawn"], 4)
    np.testing.assert_allclose(out.extras["pool_std"], np.std(reward, ddof=1), rtol=1e-6)
    credit = 4 / 3 * (out.reward - out.extras["pool_mean"][:, None])
    np.testing.assert_allclose(credit, np.tile(CREDIT[right], (24, 1)), rtol=1e-6)
    whole = apply(leave_one_out(), jnp.asarray(reward[None], jnp.float32))[0]
    np.testing.assert_allclose(credit, whole[np.array(pairs)], rtol=1e-6)


def test_trap_5_rewards_of_one_and_minus_one_weigh_a_pair_steeply():
    """2(1-p)/p + p/(1-p), times K/(K-1), with half the loss on the wrong answer: 18.1 at p = 1/10 for many answers."""
    reward = np.where(np.arange(10) < 1, 1.0, -1.0).astype(np.float32)[None]
    noise = np.linspace(0, 0.9, 10, dtype=np.float32)[None]

    def credit(out):
        return 10 / 9 * (out.reward - out.extras["pool_mean"][:, None])[0]

    right, wrong = credit(jax.jit(keep_one_pair(0.0))(pool_of(reward, noise=noise)))
    w = right / 0.1 - 0.5 * wrong / 0.9
    assert float(w) == pytest.approx((18 + 1 / 9) * 10 / 9, rel=1e-6)
    halved = credit(jax.jit(keep_one_pair(0.5))(pool_of((reward + 1) / 2, noise=noise)))
    np.testing.assert_allclose(halved, [right / 2, wrong / 2], rtol=1e-6)


def test_a_marked_pair_is_the_pair_that_is_kept():
    reward = np.array([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1]], np.float32)
    valid = np.array([[1, 1, 1, 1], [1, 1, 1, 1], [1, 0, 1, 1]], bool)
    pool = pool_of(reward, valid, noise=np.random.default_rng(0).uniform(size=(3, 4)).astype(np.float32))
    marked = jax.jit(mark_one_pair(0.5))(pool)
    np.testing.assert_array_equal(marked.valid, valid)  # credit is still taken on the whole group
    pair = kept(jax.jit(keep_one_pair(0.5))(pool))
    assert kept(jax.jit(drop_unselected)(marked)) == [sorted(places) for places in pair]
    np.testing.assert_array_equal(np.asarray(marked.extras["selected"]).sum(axis=1), [2, 0, 2])


def test_padding_with_invalid_answers_changes_no_choice():
    rng = np.random.default_rng(4)
    reward, noise = rng.integers(0, 3, (200, 6)).astype(np.float32), rng.uniform(size=(200, 6)).astype(np.float32)
    places = np.array([1, 2, 4, 5, 7, 8])
    wide, loud, valid = np.full((200, 9), np.nan, np.float32), np.zeros((200, 9), np.float32), np.zeros((200, 9), bool)
    wide[:, places], loud[:, places], valid[:, places] = reward, noise, True
    plain, padded = pool_of(reward, noise=noise), pool_of(wide, valid, noise=loud)
    for select in (
        keep_first(4),
        keep_random(4),
        keep_extremes(4),
        max_variance(4),
        max_variance(3),
        keep_one_pair(1.0),
    ):
        out, other = jax.jit(select)(plain), jax.jit(select)(padded)
        np.testing.assert_array_equal(out.valid, other.valid)
        np.testing.assert_array_equal(np.where(out.valid, out.reward, 0), np.where(out.valid, other.reward, 0))
        for name in ("pool_mean", "pool_std", "drawn"):
            # The choice is exact; a sum with more terms, zeros among them, may round otherwise.
            np.testing.assert_allclose(out.extras.get(name, 0), other.extras.get(name, 0), rtol=1e-6)
    out, other = jax.jit(drop_surplus_wrong())(plain), jax.jit(drop_surplus_wrong())(padded)
    np.testing.assert_array_equal(out.valid, np.asarray(other.valid)[:, places])
