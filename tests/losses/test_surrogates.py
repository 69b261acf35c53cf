"""Surrogates by their gradients: on the first step every value is the advantage, so values prove nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.losses import Objective, bare_tokens, clipped, cross_entropy, reinforce, token_mean

BEHAVIOUR = np.float32(-1.3)
PLAIN, DUAL = clipped(), clipped(dual=3.0)
HIGHER = {dual: clipped(low=0.2, high=0.28, dual=dual) for dual in (None, 3.0)}
RATIOS = {"below": 0.6, "just below": 0.79, "just above the lower": 0.81, "one": 1.0, "just under": 1.19, "over": 1.21}


def record(logp, behaviour_logp, advantage):
    """The record of tokens with these fields, all acted; leading axes of length 1 as they are missing."""
    fields = {"logp": logp, "behaviour_logp": behaviour_logp, "advantage": advantage}
    fields = {name: x.reshape((1,) * (3 - x.ndim) + x.shape) for name, x in fields.items()}
    return bare_tokens(jnp.ones(fields["logp"].shape, bool), **fields)


@functools.cache
def compiled(surrogate):
    fn = lambda logp, advantage: surrogate(record(logp, jnp.full((), BEHAVIOUR), advantage))[0, 0, 0]  # noqa: E731
    return jax.jit(jax.value_and_grad(fn))


def value_and_slope(surrogate, ratio, advantage):
    """Surrogate and its derivative in logp of one token."""
    return tuple(map(float, compiled(surrogate)(np.float32(BEHAVIOUR + np.log(ratio)), np.float32(advantage))))


def reference(ratio, advantage, low, high, dual=None):
    """PPO's token by cases: what it pays for, and whether the ratio still matters (value, derivative in logp)."""
    if advantage >= 0:
        return ((1 + high) * advantage, 0.0) if ratio > 1 + high else (ratio * advantage, ratio * advantage)
    if ratio < 1 - low:
        return (1 - low) * advantage, 0.0
    if dual is not None and ratio > dual:
        return dual * advantage, 0.0
    return ratio * advantage, ratio * advantage


def inverted(tokens):
    """The peer's surrogate: the larger of the two where the advantage is negative."""
    ratio = jnp.exp(tokens.logp - tokens.behaviour_logp)
    both = ratio * tokens.advantage, jnp.clip(ratio, 0.8, 1.2) * tokens.advantage
    return jnp.where(tokens.advantage < 0, jnp.maximum(*both), jnp.minimum(*both))


def without_ratio(tokens):
    """The peer's surrogate: its old log-probabilities are those of the present policy."""
    return clipped()(dataclasses.replace(tokens, behaviour_logp=jax.lax.stop_gradient(tokens.logp)))


@pytest.mark.parametrize("dual", [None, 3.0])
@pytest.mark.parametrize("advantage", [2.0, -1.5, 0.0])
@pytest.mark.parametrize("ratio", [*RATIOS.values(), 2.9, 3.1, 20.0, 0.01])
def test_clipped_agrees_with_the_definition_by_cases(ratio, advantage, dual):
    surrogate = HIGHER[dual]
    expected = reference(ratio, advantage, 0.2, 0.28, dual)
    np.testing.assert_allclose(value_and_slope(surrogate, ratio, advantage), expected, rtol=1e-5)


@pytest.mark.parametrize("ratio", [0.6, 0.79, 1.21, 2.0])
def test_peer_defect_inverted_clip_for_negative_advantages(ratio):
    """Below the lower bound a bad token is left alone; above the upper bound it is still pushed down."""
    _, slope = value_and_slope(PLAIN, ratio, -1.0)
    assert slope == (0 if ratio < 1 else pytest.approx(-ratio, rel=1e-5))
    _, wrong = value_and_slope(inverted, ratio, -1.0)
    assert wrong == (pytest.approx(-ratio, rel=1e-5) if ratio < 1 else 0)


@pytest.mark.parametrize("ratio", [0.6, 0.79, 1.21, 2.0])
def test_clip_for_positive_advantages(ratio):
    _, slope = value_and_slope(PLAIN, ratio, 1.0)
    assert slope == (pytest.approx(ratio, rel=1e-5) if ratio < 1 else 0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_value_is_never_above_the_unclipped_one(advantage):
    for ratio in np.geomspace(0.05, 20, 40):
        value, _ = value_and_slope(PLAIN, ratio, advantage)
        assert value <= ratio * advantage + 1e-5


def test_dual_clip_stops_the_push_above_its_bound():
    assert value_and_slope(DUAL, 10.0, -4.0) == (pytest.approx(-12.0), 0.0)
    assert value_and_slope(PLAIN, 10.0, -4.0)[1] == pytest.approx(-40.0, rel=1e-5)
    assert value_and_slope(DUAL, 2.0, -4.0)[1] == pytest.approx(-8.0, rel=1e-5)


def test_vectors_of_peers():
    ratio, advantage = jnp.array([0.5, 1.0, 1.5]), jnp.array([1.0, -1.0, 2.0])
    nemo = clipped()(record(jnp.log(ratio), jnp.zeros(3), advantage))
    np.testing.assert_allclose(-np.mean(nemo), -(0.5 - 1 + 2.4) / 3, rtol=1e-6)
    ratio, advantage = jnp.array([0.5, 1.0, 10.0]), jnp.array([1.0, -1.0, -4.0])
    skyrl = clipped(dual=3.0)(record(jnp.log(ratio), jnp.zeros(3), advantage))
    np.testing.assert_allclose(-np.sum(skyrl), 12.5, rtol=1e-5)


def random_tokens(seed=0):
    rng = np.random.default_rng(seed)
    logp, behaviour = -rng.exponential(size=(2, 6, 5)).astype(np.float32)
    return jnp.asarray(logp), jnp.asarray(behaviour), jnp.asarray(rng.normal(size=(6, 5)), jnp.float32)


@pytest.mark.parametrize("dual", [None, 3.0])
def test_on_policy_the_gradient_of_clipped_is_that_of_reinforce(dual):
    logp, _, advantage = random_tokens()
    slope = lambda surrogate: jax.jit(jax.grad(lambda x: jnp.sum(surrogate(record(x, logp, advantage)))))(logp)  # noqa: E731
    np.testing.assert_allclose(slope(clipped(dual=dual)), slope(reinforce()), rtol=1e-6)
    np.testing.assert_allclose(slope(reinforce()), advantage, rtol=1e-6)


def test_peer_defect_ratio_is_identically_1():
    """Off-policy the ratio weighs the gradient and the bounds bite; with the peer's ratio neither happens."""
    logp, behaviour, advantage = random_tokens()

    def slope(surrogate):
        objective = Objective(surrogate=surrogate, aggregate=token_mean())
        b, a = behaviour[:, None], advantage[:, None]
        weights = objective.aggregate(jnp.ones((6, 1, 5), bool))
        loss = lambda x: objective.loss(weights, record(x, b, a))  # noqa: E731
        return np.asarray(jax.jit(jax.grad(loss))(logp[:, None]))

    wide = slope(clipped(low=1.0, high=1e6))
    np.testing.assert_allclose(wide[:, 0], -np.exp(logp - behaviour) * advantage / 30, rtol=1e-5)
    assert np.any(slope(clipped()) != wide)
    assert np.any(slope(clipped(low=0.1, high=0.1)) != slope(clipped(low=0.3, high=0.3)))
    np.testing.assert_allclose(slope(without_ratio)[:, 0], -advantage / 30, rtol=1e-5)


@pytest.mark.parametrize("surrogate", [reinforce(), clipped(), clipped(dual=3.0), cross_entropy])
def test_gradient_flows_through_logp_alone(surrogate):
    logp, behaviour, advantage = random_tokens()
    others = jax.grad(lambda b, a: jnp.sum(surrogate(record(logp, b, a))), argnums=(0, 1))(behaviour, advantage)
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0), others)


@pytest.mark.parametrize("surrogate", [reinforce(), clipped(), clipped(dual=3.0), cross_entropy])
@pytest.mark.parametrize("shape", [(1, 1, 7), (1, 2, 7), (2, 3, 7)])
def test_any_shape_comes_back_in_its_dtype(surrogate, shape):
    x = jnp.zeros(shape, jnp.bfloat16)
    out = surrogate(record(x, x, x))
    assert out.shape == shape
    assert out.dtype == jnp.bfloat16
