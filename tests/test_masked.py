"""Masked statistics against plain loops, with every kind of junk off the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import masked

JUNK = (np.nan, np.inf, -np.inf, 1e30)
AXES = [None, -1, 0, (0, 1), (1, 2), (-1,)]
RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, 5)).astype(np.float32) * 3 + 10
WHERE = RNG.uniform(size=X.shape) < 0.6
WHERE[1], WHERE[:, 2, 4], WHERE[2, 0] = False, False, [True, False, False, False, False]

STATISTICS = {
    "total": (masked.total, lambda x: x.sum()),
    "mean": (masked.mean, lambda x: x.mean() if x.size else 0),
    "variance 0": (lambda x, where, *a, **k: masked.variance(x, where, *a, ddof=0, **k), lambda x: spread(x, 0)),
    "variance 1": (lambda x, where, *a, **k: masked.variance(x, where, *a, ddof=1, **k), lambda x: spread(x, 1)),
    "std 0": (lambda x, where, *a, **k: masked.std(x, where, *a, ddof=0, **k), lambda x: spread(x, 0) ** 0.5),
    "std 1": (lambda x, where, *a, **k: masked.std(x, where, *a, ddof=1, **k), lambda x: spread(x, 1) ** 0.5),
}
every_statistic = pytest.mark.parametrize("name", STATISTICS)


def spread(x, ddof):
    return ((x - x.mean()) ** 2).sum() / (x.size - ddof) if x.size > ddof else 0.0


def loop(fn, x, where, axis):
    """The statistic of each slice along the other axes, in float64."""
    axes = tuple(range(x.ndim)) if axis is None else tuple(np.atleast_1d(axis) % x.ndim)
    rest = [i for i in range(x.ndim) if i not in axes]
    rows = np.transpose(x, [*rest, *axes]).reshape(*[x.shape[i] for i in rest], -1)
    keep = np.transpose(where, [*rest, *axes]).reshape(rows.shape)
    out = np.empty(rows.shape[:-1])
    for index in np.ndindex(out.shape):
        out[index] = fn(rows[index][keep[index]].astype(np.float64))
    return out


@pytest.mark.parametrize("axis", AXES, ids=str)
def test_agrees_with_a_loop(axis):
    def every(x, where, keepdims):
        return {name: fn(x, where, axis, keepdims=keepdims) for name, (fn, _) in STATISTICS.items()}

    flat, kept = jax.jit(lambda x, where: (every(x, where, False), every(x, where, True)))(X, WHERE)
    for name, (_, plain) in STATISTICS.items():
        expected = loop(plain, X, WHERE, axis)
        assert flat[name].shape == expected.shape
        assert kept[name].shape == np.sum(X, axis=axis, keepdims=True).shape
        np.testing.assert_allclose(flat[name], expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(kept[name].reshape(expected.shape), expected, rtol=2e-5, atol=1e-6)


@every_statistic
def test_junk_off_the_mask_reaches_neither_value_nor_gradient(name):
    fn = STATISTICS[name][0]
    slope = jax.jit(jax.value_and_grad(lambda x: jnp.sum(fn(x, jnp.asarray(WHERE), -1) ** 2)))
    expected = slope(jnp.where(WHERE, X, 0))
    np.testing.assert_array_equal(np.asarray(expected[1])[~WHERE], 0)
    assert np.all(np.isfinite(expected[1]))
    for junk in JUNK:
        jax.tree.map(np.testing.assert_array_equal, slope(jnp.where(WHERE, X, junk)), expected)


@every_statistic
def test_the_gradient_is_that_of_finite_differences(name):
    fn = STATISTICS[name][0]
    where = jnp.asarray([True, True, False, True])
    with jax.enable_x64(True):
        x = np.array([0.3, -1.2, 5.0, 2.0])
        slope = jax.jit(jax.value_and_grad(lambda x: fn(x, where)))
        gradient = slope(x)[1]
        rise = [slope(x + d)[0] - slope(x - d)[0] for d in 1e-5 * np.eye(4)]
    np.testing.assert_allclose(gradient, np.array(rise) / 2e-5, atol=1e-8)


@every_statistic
def test_of_no_entries_it_is_0_with_gradient_0(name):
    fn = STATISTICS[name][0]
    nothing = jnp.zeros((2, 3), bool)
    value, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(fn(x, nothing, -1))))(jnp.full((2, 3), np.nan))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    empty = fn(jnp.zeros((2, 0)), jnp.zeros((2, 0), bool), -1)
    np.testing.assert_array_equal(empty, [0, 0])


@every_statistic
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.float64])
def test_the_dtype_is_kept(name, dtype):
    with jax.enable_x64(dtype == jnp.float64):
        shape = jax.ShapeDtypeStruct((2, 3), dtype)
        out = jax.eval_shape(lambda x: STATISTICS[name][0](x, jnp.ones((2, 3), bool), -1), shape)
        assert out.dtype == dtype


@every_statistic
def test_compiled_and_not_agree(name):
    fn = STATISTICS[name][0]
    actual = jax.jit(lambda x, where: fn(x, where, -1))(X, WHERE)
    np.testing.assert_allclose(actual, fn(jnp.asarray(X), jnp.asarray(WHERE), -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1e-6, 1e6, -0.3])
@pytest.mark.parametrize("compiled", [True, False])
def test_the_mean_of_equal_numbers_is_that_number_to_the_last_bit(value, compiled):
    fn = lambda x, where: (masked.mean(x, where, -1), masked.std(x, where, -1, ddof=1))  # noqa: E731
    fn = jax.jit(fn) if compiled else fn
    where = jnp.asarray(np.arange(9) < np.arange(1, 10)[:, None])
    mean, std = fn(jnp.where(where, jnp.float32(value), np.nan), where)
    np.testing.assert_array_equal(mean, np.float32(value))
    np.testing.assert_array_equal(std, 0)


def test_a_deviation_of_0_has_gradient_0():
    for ddof in (0, 1):
        slope = jax.jit(jax.grad(lambda x, d=ddof: masked.std(x, jnp.ones(4, bool), ddof=d)))
        np.testing.assert_array_equal(slope(jnp.full(4, 0.1)), 0)
        np.testing.assert_array_equal(slope(jnp.array([1e-23, 0, 0, 0])), 0)  # the squares are below float32


def test_a_deviation_of_too_few_entries_is_0():
    n = jnp.arange(5)[:, None]
    for ddof in range(4):
        variance = masked.variance(jnp.broadcast_to(jnp.arange(4.0), (5, 4)), jnp.arange(4)[None] < n, -1, ddof=ddof)
        np.testing.assert_array_equal(variance == 0, n[:, 0] <= max(ddof, 1))


def test_count():
    np.testing.assert_array_equal(masked.count(jnp.asarray(WHERE), (1, 2)), WHERE.sum(axis=(1, 2)))
    assert masked.count(jnp.asarray(WHERE), -1, keepdims=True).shape == (4, 3, 1)
    with jax.enable_x64(True):
        assert masked.count(jnp.asarray(WHERE)).dtype == jnp.int32


RANKED = jax.jit(masked.kth_smallest)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("kind", ["normal", "ties", "zeros of both signs", "infinite"])
def test_every_rank_is_that_of_a_sort(dtype, kind):
    x = np.random.default_rng(1).normal(size=WHERE.shape) * 1e-3
    x = {
        "normal": x,
        "ties": np.round(1e3 * x),
        "zeros of both signs": np.sign(x) * 0.0,
        "infinite": np.where(np.abs(x) > 1e-3, np.copysign(np.inf, x), x),
    }[kind]
    with jax.enable_x64(dtype == "float64"):
        array = jnp.asarray(x, dtype)
        for k, expected in enumerate(np.sort(np.asarray(array, np.float64)[WHERE]), 1):
            found = RANKED(jnp.where(WHERE, array, jnp.nan), jnp.asarray(WHERE), jnp.int32(k))
            assert found.dtype == array.dtype
            assert float(found) == expected


def test_ranks_that_are_not_there():
    """Past the last, and of no entries, NaN; NaN comes last."""
    three = jnp.array([2.0, np.copysign(np.nan, -1), -1.0])
    numbers = [float(RANKED(three, jnp.ones(3, bool), jnp.int32(k))) for k in (1, 2, 3, 4)]
    np.testing.assert_array_equal(numbers, [-1, 2, np.nan, np.nan])
    assert np.isnan(RANKED(three, jnp.zeros(3, bool), jnp.int32(1)))
    slope = jax.grad(lambda x: masked.kth_smallest(x, jnp.ones(3, bool), jnp.int32(2)))(jnp.array([3.0, 1.0, 2.0]))
    np.testing.assert_array_equal(slope, 0)
