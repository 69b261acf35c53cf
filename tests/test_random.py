"""No two draws share a key, and a key depends on what it is for alone."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import random
from jaxrl_llm.random import (
    Stream,
    answer_keys,
    answer_noise,
    epoch_rows,
    position_keys,
    stream_key,
    token_noise,
)

SEEDS = [0, 1, 2, 1234, 2**31 - 1, 2**32 - 1]
IDS = np.array([0, 1, 2, 3, 63, 64, 1000, 99_999], np.int32)
STEPS = np.array([0, 1, 2, 3, 1000, 1_000_000], np.int32)


def words(keys):
    """Key data as one 64-bit word each."""
    return np.asarray(jax.random.key_data(keys)).astype(np.uint64).reshape(-1, 2) @ np.array([2**32, 1], np.uint64)


def assert_distinct(keys):
    found = words(keys)
    assert len(np.unique(found)) == len(found)


def at_all_steps_and_positions(key, answers=4, positions=16):
    per_step = jax.vmap(lambda step: answer_keys(key, step, jnp.asarray(IDS), answers))(jnp.asarray(STEPS))
    flat = per_step.reshape(-1, 1)
    return jax.vmap(lambda position: position_keys(flat, position))(jnp.arange(positions))


def test_no_two_draws_share_a_key():
    """Seeds, streams, steps, prompts, answers and positions: 129 024 keys."""
    streams = jnp.stack([stream_key(seed, stream) for seed in SEEDS for stream in Stream])
    keys = jax.jit(jax.vmap(at_all_steps_and_positions))(streams)
    assert keys.size == len(SEEDS) * len(Stream) * len(STEPS) * len(IDS) * 4 * 16
    assert_distinct(keys)


def test_keys_of_every_depth_are_distinct():
    key = stream_key(0, Stream.ROLLOUT)
    answers = answer_keys(key, 0, jnp.arange(16), 16).reshape(-1)
    positions = position_keys(answers.reshape(16, 16), 0).reshape(-1)
    streams = jnp.stack([stream_key(0, stream) for stream in Stream])
    assert_distinct(jnp.concatenate([streams, answers, positions]))


@pytest.mark.parametrize(
    "broken",
    [
        lambda seed, step, prompt, answer: jax.random.key(seed + step),
        lambda seed, step, prompt, answer: jax.random.fold_in(jax.random.key(seed), 4 * step + answer),
        lambda seed, step, prompt, answer: jax.random.fold_in(jax.random.key(seed), prompt ^ answer ^ step),
    ],
    ids=["seed + step", "prompt forgotten", "xor"],
)
def test_a_derivation_that_collides_is_caught(broken):
    grid = jnp.stack(jnp.meshgrid(*[jnp.arange(4)] * 4), axis=-1).reshape(-1, 4)
    with pytest.raises(AssertionError):
        assert_distinct(jax.vmap(lambda row: broken(*row))(grid))


def test_neither_order_nor_split_of_a_batch_changes_a_key():
    key = stream_key(7, Stream.ROLLOUT)
    ids = jnp.arange(10, 26)
    whole = words(answer_keys(key, 3, ids, 4)).reshape(16, 4)
    order = np.random.default_rng(0).permutation(16)
    np.testing.assert_array_equal(words(answer_keys(key, 3, ids[order], 4)).reshape(16, 4), whole[order])
    halves = [words(answer_keys(key, 3, part, 4)) for part in (ids[:5], ids[5:])]
    np.testing.assert_array_equal(np.concatenate(halves), whole.reshape(-1))
    np.testing.assert_array_equal(words(answer_keys(key, 3, ids, 2)).reshape(16, 2), whole[:, :2])


def test_keys_of_a_position_belong_to_their_answer():
    keys = answer_keys(stream_key(7, Stream.ROLLOUT), 3, jnp.arange(4), 3)
    whole = words(position_keys(keys, 5)).reshape(4, 3)
    np.testing.assert_array_equal(words(position_keys(keys[::-1, ::-1], 5)).reshape(4, 3), whole[::-1, ::-1])
    np.testing.assert_array_equal(words(position_keys(keys[1:2, 2:], 5)), whole[1, 2:])


def test_compiled_keys_are_the_same():
    key, ids = stream_key(0, Stream.ROLLOUT), jnp.arange(5)
    traced = jax.jit(lambda step: answer_keys(key, step, ids, 3))(jnp.int32(11))
    np.testing.assert_array_equal(words(traced), words(answer_keys(key, 11, ids, 3)))


@pytest.mark.parametrize("seed", [None, True, False])
def test_an_unset_seed_is_refused(seed):
    unchecked = inspect.unwrap(random.stream_key)
    with pytest.raises(TypeError, match="seed must be an integer"):
        unchecked(seed, Stream.ORDER)


@pytest.mark.parametrize("seed", [-1, 2**32, 2**33 + 5])
def test_a_seed_that_would_be_cut_to_another_is_refused(seed):
    with pytest.raises(ValueError, match="seed"):
        stream_key(seed, Stream.ORDER)


def test_streams_keep_their_numbers():
    """A number that moves changes every run of every seed."""
    assert {stream.name: int(stream) for stream in Stream} == {
        "PARAMETERS": 0,
        "ORDER": 1,
        "WARMUP": 2,
        "ROLLOUT": 3,
        "EVALUATION": 4,
        "SAMPLE": 5,
        "SELECTION": 6,
        "VARIANCE": 7,
    }


# epoch_rows

ORDER = stream_key(0, Stream.ORDER)


@pytest.mark.parametrize(("batch", "rows"), [(3, 10), (4, 12), (1, 5), (7, 7), (5, 9)])
def test_an_epoch_is_a_permutation_cut_into_batches(batch, rows):
    per_epoch = rows // batch
    epochs = []
    for epoch in range(4):
        drawn = [np.asarray(epoch_rows(ORDER, epoch * per_epoch + i, batch, rows)) for i in range(per_epoch)]
        assert all(x.shape == (batch,) for x in drawn)
        flat = np.concatenate(drawn)
        assert len(np.unique(flat)) == len(flat)
        assert flat.min() >= 0
        assert flat.max() < rows
        epochs.append(tuple(flat.tolist()))
    assert len(set(epochs)) == 4


def test_every_row_comes_up_even_where_batches_do_not_divide_them():
    seen = np.concatenate([epoch_rows(ORDER, step, 3, 10) for step in range(3 * 20)])
    assert set(seen.tolist()) == set(range(10))


def test_rows_depend_on_seed_and_stream():
    rows = {tuple(np.asarray(epoch_rows(stream_key(s, t), 0, 20, 50))) for s in (0, 1) for t in Stream}
    assert len(rows) == 2 * len(Stream)


def test_rows_of_a_traced_step():
    traced = jax.jit(lambda step: epoch_rows(ORDER, step, 3, 10))
    for step in (0, 1, 2, 3, 100):
        np.testing.assert_array_equal(traced(jnp.int32(step)), epoch_rows(ORDER, step, 3, 10))


def test_a_batch_larger_than_the_table_is_refused():
    with pytest.raises((ValueError, TypeError, ZeroDivisionError)):
        epoch_rows(ORDER, 0, 11, 10)


# noise


def noises(seed=3, step=2, ids=range(10, 26), answers=4):
    """Of answers, and of their five tokens, with the token axis first."""
    key, ids = stream_key(seed, Stream.SELECTION), jnp.asarray(list(ids))
    return answer_noise(key, step, ids, answers), jnp.moveaxis(token_noise(key, step, ids, answers, 5), -1, 0)


def test_noise_is_uniform_on_the_unit_interval():
    """A mean of n has deviation √(1/12n), a mean of squares √(4/45n): five of them."""
    for x in (np.asarray(x).ravel() for x in noises(ids=range(200), answers=16)):
        assert x.min() >= 0
        assert x.max() < 1
        assert len(np.unique(x)) > 0.99 * len(x)
        assert abs(x.mean() - 1 / 2) < 5 / np.sqrt(12 * len(x))
        assert abs((x**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / len(x))


def test_noise_belongs_to_seed_step_prompt_answer_and_position():
    whole = noises()
    order = np.random.default_rng(0).permutation(16)
    for x, shuffled, fewer in zip(whole, noises(ids=np.arange(10, 26)[order]), noises(answers=2), strict=True):
        np.testing.assert_array_equal(shuffled, x[..., order, :])
        np.testing.assert_array_equal(fewer, x[..., :2])
    for other in (noises(seed=4), noises(step=3), noises(ids=range(30, 46))):
        for x, y in zip(whole, other, strict=True):
            assert not np.any(np.asarray(x) == np.asarray(y))
    key, ids = stream_key(3, Stream.SELECTION), jnp.arange(10, 26)
    np.testing.assert_array_equal(token_noise(key, 2, ids, 4, 3), jnp.moveaxis(whole[1], 0, -1)[..., :3])
    everything = np.concatenate([np.ravel(x) for x in whole])
    assert len(np.unique(everything)) == len(everything), "neither does a token share the number of its answer"
