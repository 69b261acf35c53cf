"""Budgets of answers: the released code's numbers, the optimum, whole numbers, and the selector that keeps to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from select_pools import assert_fields_of_the_pool, chance, kept, labels, pool_of

from jaxrl_llm.rollouts.select.allocation import (
    estimated_allocation,
    estimated_budget,
    gvm,
    gvm_allocation,
    keep_budget,
    neyman,
    neyman_allocation,
    whole_numbers,
)

# GVM @ d640a75: five prompts by its formulas.
NORM = jnp.array([1.0, 1, 1, 2, 0])
RATE = jnp.array([0.125, 0.5, 1, 0.25, 0.5])


BUDGET = jax.jit(estimated_budget, static_argnums=(1, 2, 3, 4))


def numbers(n):
    return np.asarray(n).tolist()


@pytest.mark.parametrize(("alpha", "n"), [(1e-3, [12, 6, 4, 18, 0]), (0, [12, 6, 5, 17, 0])])
def test_gvm_golden(alpha, n):
    assert numbers(gvm(RATE, NORM, 40, alpha)) == n


def test_gvm_golden_shares():
    """In parts of ten million, past the last digit of the reference."""
    n = np.asarray(gvm(RATE, NORM, 10**7)) / 1e7
    np.testing.assert_allclose(n, [0.30061919, 0.15473575, 0.10957853, 0.43506652, 0], atol=2e-7)


def optimum(cost, total):
    """The real numbers n that minimise Σ cost / n where Σ n = total, found by search."""
    start = np.full(len(cost), total / len(cost))
    found = minimize(
        lambda n: np.sum(cost / n) / np.sum(cost / start),
        start,
        jac=lambda n: -cost / n**2 / np.sum(cost / start),
        bounds=[(1e-3, total)] * len(cost),
        constraints={"type": "eq", "fun": lambda n: n.sum() - total, "jac": lambda n: np.ones(len(n))},
        options={"maxiter": 500, "ftol": 1e-14},
    )
    assert found.success
    return found.x


@pytest.mark.parametrize("seed", range(3))
def test_gvm_and_neyman_are_the_optimum_of_a_numeric_search(seed):
    """Whole numbers are within 1 of it; alpha > 0 and another power of p are not."""
    rng = np.random.default_rng(seed)
    p, g, total = rng.uniform(0.1, 1, 6), rng.uniform(0.5, 2, 6), 600
    rate, norm = jnp.asarray(p, jnp.float32), jnp.asarray(g, jnp.float32)
    best = optimum(g**2 / p, total)
    np.testing.assert_array_less(np.abs(best - gvm(rate, norm, total, 0)), 1)
    assert np.abs(best - gvm(rate, norm, total, 0.5)).max() > 1
    spread = np.sqrt(p * (1 - p))
    best = optimum(spread**2, total)
    np.testing.assert_array_less(np.abs(best - neyman(jnp.asarray(spread, jnp.float32), total)), 1)


def test_equal_prompts_get_the_same_and_a_scale_changes_nothing():
    assert numbers(gvm(jnp.full(5, 0.3), jnp.full(5, 7.0), 40)) == [8] * 5
    rng = np.random.default_rng(0)
    rate, norm = (jnp.asarray(rng.uniform(0.1, 1, 20), jnp.float32) for _ in range(2))
    plain = numbers(gvm(rate, norm, 200))
    for scale in (2.0**-120, 0.25, 2.0**100):  # powers of 2, so that the shares are the same to the last bit
        assert numbers(gvm(rate, norm * scale, 200)) == plain
        assert numbers(neyman(norm * scale, 200)) == numbers(neyman(norm, 200))


def test_options_drop_easy_prompts_and_those_that_expect_too_few():
    """Shares .3006 .1547 .1096 .4351 0 of 40: p n is 1.50 3.09 4.38 4.35."""
    assert numbers(gvm(RATE, NORM, 40, rate_threshold=0.5)) == [13, 7, 0, 20, 0]  # 13.504 6.951 19.544: one too many
    assert numbers(gvm(RATE, NORM, 40, rate_threshold=0.4)) == [16, 0, 0, 24, 0]
    assert numbers(gvm(RATE, NORM, 40, min_accepted=2)) == [0, 9, 6, 25, 0]
    # The second rule asks for the shares before the first one: 3.09 stays below 3.4, not 6.95 / 2.
    assert numbers(gvm(RATE, NORM, 40, rate_threshold=0.5, min_accepted=3.4)) == [0, 0, 0, 40, 0]


def test_trap_3_prompts_without_a_right_answer_starve_and_nothing_is_divided_by_zero():
    """GVM @ d640a75 divides by zero when no prompt has a right answer; one that has none gets nothing, whatever alpha
    is, and one with a small rate gets less than the optimum gives it."""
    rate, norm = jnp.array([0, 0.01, 0.5]), jnp.ones(3)
    for alpha in (0, 1e-3, 1):
        assert gvm(rate, norm, 60, alpha)[0] == 0
    assert gvm(rate, norm, 60)[1] < gvm(rate, norm, 60, 0)[1]
    assert numbers(gvm(jnp.zeros(3), norm, 60)) == [20, 20, 20]
    assert numbers(gvm(jnp.ones(3), jnp.zeros(3), 60)) == [20, 20, 20]
    assert numbers(gvm(jnp.ones(3), norm, 60, rate_threshold=0.9)) == [20, 20, 20]
    assert numbers(neyman(jnp.zeros(4), 6)) == [2, 2, 1, 1]
    there = jnp.array([True, False, True])
    assert numbers(gvm(jnp.zeros(3), norm, 60, exists=there)) == [30, 0, 30]
    assert numbers(whole_numbers(jnp.array([1.0, jnp.nan, 3.0]), 8, there)) == [2, 0, 6]
    assert numbers(whole_numbers(jnp.ones(3), 60, ~jnp.ones(3, bool))) == [0, 0, 0]


def one_at_a_time(share, total):
    """The rule word by word, in float64: round, then one more or one less where the residual is largest. None where two
    residuals are so near that float32 may order them otherwise."""
    wanted = total * share / share.sum()
    n = np.round(wanted)
    if np.diff(np.sort((wanted - n)[share > 0])).min() < 1e-4:
        return None
    while n.sum() != total:
        step = np.sign(total - n.sum())
        residual = np.where(share > 0, step * (wanted - n), -np.inf)
        n[np.argmax(residual)] += step
    return n.astype(int).tolist()


def test_whole_numbers_are_rounded_one_at_a_time_and_add_up():
    rng = np.random.default_rng(1)
    lack = []
    numbers_of = jax.jit(whole_numbers)
    for _ in range(300):
        share = np.float32(rng.uniform(size=7) ** 3 * (rng.uniform(size=7) < 0.8))
        share[0] += 0.01
        total = int(rng.integers(0, 60))
        expected = one_at_a_time(share.astype(np.float64), total)
        if expected is not None:
            assert numbers(numbers_of(jnp.asarray(share), total)) == expected
            lack.append(total - int(np.round(total * share / share.sum()).sum()))
    assert {-1, 0, 1} <= set(lack)
    assert len(lack) > 200


@pytest.mark.parametrize(("count", "total"), [(3, 2), (1000, 7), (50_000, 400_001), (50_000, 2**24 - 1)])
def test_whole_numbers_add_up_exactly_in_large_tables(count, total):
    share = np.float32(np.random.default_rng(count).uniform(size=count) ** 8)
    share[::3] = 0
    n = np.asarray(whole_numbers(jnp.asarray(share), total))
    assert n.sum() == total
    assert n.min() >= 0
    assert (n[::3] == 0).all()


def test_half_precision_decides_no_rounding():
    rate, norm = RATE.astype(jnp.bfloat16), NORM.astype(jnp.bfloat16)
    assert numbers(gvm(rate, norm, 4001)) == numbers(gvm(RATE, NORM, 4001))


# The selector.

NAN = np.nan


def test_first_answers_set_the_budget_and_the_others_are_kept_in_order():
    """Rates 1, 1/2, 0 of two first answers: shares sqrt(1), sqrt(2), 0 of five, which are 2.07 and 2.93."""
    reward = np.array([[1, 1, 0, 0, 1, 0, 1], [0, 1, 0, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1]], np.float32)
    pool = pool_of(reward)
    out = jax.jit(gvm_allocation(2, 5, 4, 0.5))(pool)
    assert numbers(out.extras["budget"]) == [2, 3, 0]
    assert kept(out) == [[2, 3], [2, 3, 4], []]
    assert_fields_of_the_pool(pool, out)
    narrow = jax.jit(gvm_allocation(2, 5, 2, 0.5))(pool)
    assert numbers(narrow.extras["budget"]) == [2, 3, 0]
    assert kept(narrow) == [[2, 3], [2, 3], []]


def test_uncertain_prompts_get_more_and_a_floor_keeps_the_others():
    """Rates 1/2, 1/4, 0 of four first answers: spreads 1/2, 0.433, 0 of ten are 5.36, 4.64, 0; with 1/4 for all three
    4.46, 4.06, 1.49 become 5, 4, 1, as the sum wants one more at the largest residual."""
    first = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    pool = pool_of(np.concatenate([first, np.ones((3, 6), np.float32)], axis=1))
    out = jax.jit(neyman_allocation(4, 10, 6, 0))(pool)
    assert numbers(out.extras["budget"]) == [5, 5, 0]
    assert kept(out) == [[4, 5, 6, 7, 8], [4, 5, 6, 7, 8], []]
    assert_fields_of_the_pool(pool, out)
    share = np.array([0.5, 3**0.5 / 4, 0]) + 0.25
    assert numbers(jax.jit(neyman_allocation(4, 10, 6, 0.25))(pool).extras["budget"]) == one_at_a_time(share, 10)


def test_rare_successes_get_more_within_bounds_and_the_mean_is_that_of_kept_answers():
    """Rates 1, 1/4, 0 of four first answers, 1/sqrt(p + 0.01) = 1, 1.96, 10: the last is cut to 6, the others share 6
    as 2.03 and 3.97."""
    first = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    later = np.array([[1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]], np.float32)
    pool = pool_of(np.concatenate([first, later], axis=1))
    out = jax.jit(estimated_allocation(4, 12, 1, 6, 0.01))(pool)
    assert numbers(out.extras["budget"]) == [2, 4, 6]
    assert kept(out) == [[4, 5], [4, 5, 6, 7], [4, 5, 6, 7, 8, 9]]
    np.testing.assert_allclose(out.extras["pool_mean"], [1 / 2, 3 / 4, 1 / 6], rtol=1e-6)


def test_energy_is_that_of_accepted_first_answers():
    """Mean norms (0 + 2) / 2 and (1 + 5) / 2 at equal rates: a quarter of 100 and the rest. A loud wrong answer or a
    later one says nothing. Means of squares would give 13 : 87, and their roots 28 : 72."""
    reward = np.tile(np.array([[1, 0, 1, *[0] * 9]], np.float32), (2, 1))
    energy = np.full((2, 12), 1e4, np.float32)
    energy[:, [0, 2]] = [[0, 4], [1, 25]]
    select = jax.jit(gvm_allocation(3, 100, 8, 0.5))
    assert numbers(select(pool_of(reward, energy=energy)).extras["budget"]) == [25, 75]
    assert numbers(select(pool_of(reward)).extras["budget"]) == [50, 50]


def test_the_options_of_a_budget_reach_it():
    reward = np.array([[1, 1, 0, 0], [1, 0, 0, 0]], np.float32)

    def budget(**options):
        return numbers(jax.jit(gvm_allocation(2, 100, 2, 0.5, **options))(pool_of(reward)).extras["budget"])

    assert budget() == numbers(gvm(jnp.array([1.0, 0.5]), jnp.ones(2), 100))
    assert budget(alpha=1) == numbers(gvm(jnp.array([1.0, 0.5]), jnp.ones(2), 100, 1)) != budget()
    assert budget(alpha=1, beta=3) == numbers(gvm(jnp.array([1.0, 0.5]), jnp.ones(2), 100, 1, 3)) != budget(alpha=1)
    assert budget(rate_threshold=0.9) == [0, 100]
    assert budget(min_accepted=35) == [100, 0]


@pytest.mark.parametrize("p", [0.2, 0.6])
def test_kept_answers_are_independent_of_the_budget(p):
    """Rate of the kept answers given n > 0, over every pool of four: p itself. With the first answers it is not."""
    reward = labels(4)
    budget, kept_rate = [], []
    select = jax.jit(gvm_allocation(2, 2, 2, 0.5))
    for row in reward:
        out = select(pool_of(row[None]))
        budget.append(int(out.extras["budget"][0]))
        kept_rate.append(float(out.reward[0][np.asarray(out.valid[0])].mean()))
    assert set(budget) == {2}
    weight = chance(reward, p)
    assert weight @ np.array(kept_rate) == pytest.approx(p, rel=1e-6)
    accepted = reward[:, :2].any(axis=1)
    assert (weight * accepted) @ kept_rate / (weight @ accepted) == pytest.approx(p, rel=1e-6)
    assert (weight * accepted) @ reward[:, :2].mean(axis=1) / (weight @ accepted) > p + 0.05


def test_padding_order_and_lost_answers_change_no_choice():
    rng = np.random.default_rng(0)
    reward = rng.integers(0, 2, (6, 8)).astype(np.float32)
    energy = rng.uniform(0.5, 2, (6, 8)).astype(np.float32)
    select = jax.jit(gvm_allocation(3, 20, 5, 0.5))
    plain = select(pool_of(reward, energy=energy))
    places, rows = np.array([1, 2, 4, 5, 7, 8, 9, 11]), np.array([5, 0, 3, 1, 4, 2])
    wide, loud, valid = np.full((8, 12), NAN, np.float32), np.full((8, 12), NAN, np.float32), np.zeros((8, 12), bool)
    wide[:6, places], loud[:6, places], valid[:6, places] = reward[rows], energy[rows], True
    padded = select(pool_of(wide, valid, energy=loud))
    budget = np.asarray(padded.extras["budget"])
    np.testing.assert_array_equal(budget[:6], np.asarray(plain.extras["budget"])[rows])
    np.testing.assert_array_equal(budget[6:], 0)
    assert kept(padded) == [places[kept(plain)[row]].tolist() for row in rows] + [[], []]
    # Where no answer is accepted, prompts that do not exist have no part in what all others share.
    none = select(pool_of(np.where(valid, 0, NAN).astype(np.float32), valid))
    assert numbers(none.extras["budget"]) == [4, 4, 3, 3, 3, 3, 0, 0]


def test_estimated_budget_follows_the_root_between_its_bounds():
    rate = jnp.asarray([1.0, 0.25, 0.0625])
    np.testing.assert_array_equal(BUDGET(rate, 1, 100, 28, 0.0), [4, 8, 16])
    np.testing.assert_array_equal(BUDGET(rate, 1, 12, 28, 0.0), [5, 11, 12])  # 12, then 16 as 1 : 2
    np.testing.assert_array_equal(BUDGET(rate, 6, 100, 28, 0.0), [6, 7, 15])  # 6, then 22 as 1 : 2
    np.testing.assert_array_equal(BUDGET(jnp.zeros(4), 4, 32, 34, 0.01), [9, 9, 8, 8])


def test_estimated_budget_spends_the_total_and_no_more():
    rng = np.random.default_rng(3)
    for total in (64, 128, 333, 511, 512):
        for _ in range(5):
            rate = rng.choice([0, 1, rng.uniform()], size=16) * rng.uniform(size=16)
            n = np.asarray(BUDGET(jnp.asarray(rate, jnp.float32), 4, 32, total, 0.01))
            assert n.sum() == total
            assert n.min() >= 4
            assert n.max() <= 32
            order = np.argsort(rate)
            assert (np.diff(n[order]) <= 1).all(), "a harder prompt has fewer answers"
    np.testing.assert_array_equal(BUDGET(jnp.zeros(3), 4, 32, 5, 0.01), [4, 4, 4])
    np.testing.assert_array_equal(BUDGET(jnp.zeros(3), 4, 32, 500, 0.01), [32, 32, 32])


def test_budget_keeps_the_first_valid_answers():
    valid = np.ones((3, 5), bool)
    valid[1, 0] = False
    pool = pool_of(np.zeros((3, 5), np.float32), valid, budget=np.array([2, 3, 9]))
    assert kept(jax.jit(keep_budget(4))(pool)) == [[0, 1], [1, 2, 3], [0, 1, 2, 3]]


@pytest.mark.parametrize("minimum", [0, 13])
def test_bounds_of_a_budget_that_make_no_sense_are_refused(minimum):
    with pytest.raises(ValueError, match=f"minimum must lie in 1..12, the maximum, not {minimum}"):
        estimated_budget(jnp.ones(3), minimum, 12, 28, 0.01)


@pytest.mark.parametrize(
    "select", [gvm_allocation(3, 20, 5, 0.5), neyman_allocation(3, 20, 5, 0.1), estimated_allocation(3, 20, 2, 5, 0.1)]
)
def test_prompts_that_do_not_exist_take_nothing_from_a_budget(select):
    reward = np.random.default_rng(2).integers(0, 2, (6, 8)).astype(np.float32)
    wide = np.full((9, 8), NAN, np.float32)
    wide[:6] = reward
    plain, padded = jax.jit(select)(pool_of(reward)), jax.jit(select)(pool_of(wide, ~np.isnan(wide)))
    np.testing.assert_array_equal(padded.extras["budget"], [*numbers(plain.extras["budget"]), 0, 0, 0])
    assert kept(padded) == [*kept(plain), [], [], []]
    nobody = jax.jit(select)(pool_of(np.full((2, 8), NAN, np.float32), np.zeros((2, 8), bool)))
    np.testing.assert_array_equal(nobody.extras["budget"], [0, 0])


def test_a_pool_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="3 \\+ 2 answers or more is needed, not of 4"):
        gvm_allocation(3, 8, 2, 0.5)(pool_of(np.zeros((2, 4), np.float32)))
