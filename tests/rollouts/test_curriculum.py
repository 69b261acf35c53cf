"""Orders of a table by difficulty: every problem once an epoch, in the order of the tiers, uniform inside one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.random import Stream, epoch_rows, stream_key
from jaxrl_llm.rollouts.curriculum import easy_to_hard, hard_to_easy, near_half

KEY = stream_key(0, Stream.ORDER)
RATE = np.float32(np.random.default_rng(0).permutation(24) / 23)
ORDERS = [easy_to_hard, hard_to_easy, near_half]
every_order = pytest.mark.parametrize("order", ORDERS)


def epochs_of(rows_of, batch, rows, epochs, key=KEY):
    """Rows of some epochs, [epochs, steps · batch]."""
    steps = rows // batch
    drawn = jax.jit(jax.vmap(lambda step: rows_of(key, step, batch, rows)))(jnp.arange(epochs * steps))
    assert drawn.shape == (epochs * steps, batch)
    return np.asarray(drawn).reshape(epochs, steps * batch)


@pytest.mark.parametrize(
    ("order", "tiers", "width"), [(easy_to_hard, None, 0.0), (hard_to_easy, 5, 0.0), (near_half, 3, 0.4)]
)
def test_each_epoch_holds_every_problem_once(order, tiers, width):
    drawn = epochs_of(order(jnp.asarray(RATE), tiers, width), 4, 24, 5)
    np.testing.assert_array_equal(np.sort(drawn), np.tile(np.arange(24), (5, 1)))


@pytest.mark.parametrize(
    ("order", "batch", "width"), [(easy_to_hard, 4, 0.0), (hard_to_easy, 5, 0.0), (near_half, 5, 0.7)]
)
def test_one_tier_is_the_uniform_order(order, batch, width):
    plain = epochs_of(epoch_rows, batch, 24, 3)
    np.testing.assert_array_equal(epochs_of(order(jnp.asarray(RATE), 1, width), batch, 24, 3), plain)
    assert (epochs_of(order(jnp.asarray(RATE), 2, width), batch, 24, 3) != plain).any()


def test_orders_are_what_they_are_called():
    (easy,), (hard,), (middle,) = (RATE[epochs_of(order(jnp.asarray(RATE)), 4, 24, 1)] for order in ORDERS)
    np.testing.assert_array_equal(easy, np.sort(RATE)[::-1])
    np.testing.assert_array_equal(hard, np.sort(RATE))
    distance = np.abs(np.round(middle * 23) * 2 - 23)
    np.testing.assert_array_equal(distance, np.sort(distance))
    assert distance[0] == 1


def test_rates_equally_far_from_one_half_are_one_difficulty():
    """0.3 and 0.7 differ in their last bit of distance; their order is uniform over epochs all the same."""
    rate = jnp.array([0.3, 0.7, 0.7, 0.3, 0.1, 0.9, 0.5])
    drawn = epochs_of(near_half(rate), 7, 7, 64)
    assert (drawn[:, 0] == 6).all()
    assert set(drawn[:, 1].tolist()) == {0, 1, 2, 3}
    assert set(drawn[:, 5].tolist()) == {4, 5}


def test_tiers_are_parts_of_the_table_and_uniform_inside():
    """Three tiers of 24: places 0-7, 8-15, 16-23 hold the eight easiest, and so on, in another order each epoch."""
    drawn = epochs_of(easy_to_hard(jnp.asarray(RATE), 3), 4, 24, 200)
    harder = np.argsort(np.argsort(-RATE))[drawn]
    np.testing.assert_array_equal(np.sort(harder.reshape(200, 3, 8)), np.tile(np.arange(24).reshape(3, 8), (200, 1, 1)))
    # Where a problem of a tier comes up is uniform: mean 3.5 with deviation sqrt(63 / 12 / 200) = 0.16; five of them.
    place = np.argsort(harder, axis=1) % 8
    assert np.abs(place.mean(axis=0) - 3.5).max() < 5 * np.sqrt(63 / 12 / 200)
    assert len({tuple(row) for row in drawn.tolist()}) == 200


def test_problems_of_one_difficulty_are_in_one_tier():
    """Two rates in four tiers: the easy ones are the first, and all others begin in the third."""
    rate = jnp.asarray(np.float32(np.arange(24) % 2))
    drawn = epochs_of(easy_to_hard(rate, 4), 4, 24, 20)
    np.testing.assert_array_equal(drawn[:, :12] % 2, 1)
    assert len({tuple(row) for row in drawn[:, :12].tolist()}) == 20
    np.testing.assert_array_equal(epochs_of(easy_to_hard(rate, 2), 4, 24, 20), drawn)


def test_equal_rates_are_the_uniform_order():
    drawn = epochs_of(near_half(jnp.full(24, 0.25)), 4, 24, 3)
    np.testing.assert_array_equal(drawn, epochs_of(epoch_rows, 4, 24, 3))


def shift(width):
    """How far each problem comes up from its place in the order, as a share of the table; [epochs, N]."""
    drawn = epochs_of(easy_to_hard(jnp.asarray(RATE), None, width), 24, 24, 100)
    return np.abs(np.argsort(np.argsort(-RATE))[drawn] - np.arange(24)) / 24


def test_width_is_the_farthest_that_noise_moves_a_problem():
    assert shift(0.03).max() == 0  # less than one place of 24
    narrow, wide, endless = shift(0.1), shift(0.5), shift(1e6)
    assert 0.05 < narrow.max() <= 0.1
    assert 0.25 < wide.max() <= 0.5
    assert narrow.mean() < wide.mean() < endless.mean()
    # Without order Σ|i - j| of an epoch has the mean (N² - 1) / 3 and the variance (N + 1)(2 N² + 7) / 45 (Diaconis and
    # Graham, 1977); four standard deviations of the mean over 100 epochs, which a seed leaves once in 15,000 times.
    deviation = (25 * (2 * 24**2 + 7) / 45 / 100) ** 0.5
    assert endless.mean() * 24**2 == pytest.approx((24**2 - 1) / 3, abs=4 * deviation)


def test_noise_narrower_than_a_tier_moves_nothing_out_of_it():
    narrow = epochs_of(easy_to_hard(jnp.asarray(RATE), 4, 0.24), 4, 24, 10)
    np.testing.assert_array_equal(narrow, epochs_of(easy_to_hard(jnp.asarray(RATE), 4), 4, 24, 10))
    wide = epochs_of(easy_to_hard(jnp.asarray(RATE), 4, 0.3), 4, 24, 10)
    assert (wide != narrow).any()


def test_what_no_batch_holds_is_random_and_not_always_the_last():
    drawn = epochs_of(easy_to_hard(jnp.asarray(RATE)), 5, 24, 100)
    assert all(len(set(epoch)) == 20 for epoch in drawn.tolist())
    left = np.array([np.setdiff1d(np.arange(24), epoch) for epoch in drawn])
    counts = np.bincount(left.reshape(-1), minlength=24)
    # Each of 24 is one of the four left out with chance 1/6: 16.7 of 100, deviation 3.7; four of them.
    assert np.abs(counts - 100 / 6).max() < 4 * np.sqrt(100 / 6 * 5 / 6)


def test_long_tables_have_their_tiers():
    """before · tiers is beyond 32 bits."""
    rate = jnp.asarray(np.linspace(1, 0, 100_000, dtype=np.float32))
    (drawn,) = epochs_of(easy_to_hard(rate), 100_000, 100_000, 1)
    np.testing.assert_array_equal(drawn, np.arange(100_000))
    (drawn,) = epochs_of(easy_to_hard(rate, 50_000), 100_000, 100_000, 1)
    np.testing.assert_array_equal(drawn // 2, np.arange(100_000) // 2)
    assert (drawn != np.arange(100_000)).any()


def test_rows_depend_on_key_and_step_alone_compiled_or_not():
    rows_of = easy_to_hard(jnp.asarray(RATE), 3)
    compiled = jax.jit(rows_of, static_argnums=(2, 3))
    for step in (0, 5, 6, 1000):
        np.testing.assert_array_equal(compiled(KEY, jnp.int32(step), 4, 24), rows_of(KEY, step, 4, 24))
    assert (compiled(stream_key(1, Stream.ORDER), 0, 4, 24) != rows_of(KEY, 0, 4, 24)).any()


@every_order
def test_what_makes_no_order_is_refused(order):
    rate = jnp.asarray(RATE)
    for tiers in (0, 25):
        with pytest.raises(ValueError, match=f"tiers must be from 1 .*24.* not {tiers}"):
            order(rate, tiers)
    for width in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"width must not be negative, not {width}"):
            order(rate, 3, width)
    with pytest.raises(ValueError, match="of 24 problems, not of 23"):
        order(rate)(KEY, 0, 4, 23)
    for batch in (0, 25):
        with pytest.raises(ValueError, match=f"batch must be from 1 .*24.* not {batch}"):
            order(rate)(KEY, 0, batch, 24)
