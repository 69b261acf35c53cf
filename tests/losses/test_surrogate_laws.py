"""What every surrogate keeps: safe ratios, padding that is not seen, answers that do not see each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_surrogate import EVERY, FIELDS, batch, every_row, every_surrogate, of_ratios, pulls, row, slope_of

from jaxrl_llm.losses import Objective, answer_mean, answer_sum, clipped, surrogates, token_mean

E60 = float(np.exp(60.0))


def test_the_table_has_every_surrogate():
    helpers = {"Surrogate", "effective_positives"}
    missing = [n for n in surrogates.__all__ if n not in helpers and not any(e.startswith(n) for e in EVERY)]
    assert not missing


# Infinite ratios

EXTREMES = {
    "impossible for the sampler": {"logp": -1.0, "behaviour_logp": -np.inf},
    "far too likely": {"logp": -1.0, "behaviour_logp": -1e4},
    "far too unlikely": {"logp": -1e4, "behaviour_logp": -1.0},
}


def extreme_answers():
    """One prompt a pair of case and credit, [9 1 3]: the token in the middle of each answer is extreme."""
    rows = [{**EXTREMES[case], "advantage": a} for case in EXTREMES for a in (-1.0, 0.0, 1.0)]
    column = lambda name: np.asarray([each[name] for each in rows])[:, None]  # noqa: E731
    near = lambda name: np.concatenate([np.full((9, 1), -1.0), column(name), np.full((9, 1), -1.0)], axis=1)  # noqa: E731
    logp, behaviour = near("logp"), near("behaviour_logp")
    return every_row(logp=logp, behaviour_logp=behaviour, policy_logp=behaviour, advantage=column("advantage"))


@every_surrogate
def test_infinite_ratios_give_numbers(name):
    """Whatever the credit; without credit a token is worth 0 and pulls nowhere."""
    entry, tokens = EVERY[name], extreme_answers()
    values, slope = pulls(entry.surrogate, tokens)
    assert np.all(np.isfinite(values))
    assert np.all(np.isfinite(slope))
    nothing = np.asarray(tokens.advantage) == 0
    np.testing.assert_array_equal(slope[nothing], np.float32(entry.of_nothing))
    if entry.of_nothing == 0 and name not in ("rec", "opmd"):  # a regulariser is a constant there, not 0
        np.testing.assert_array_equal(values[nothing], 0)


@every_surrogate
def test_a_token_of_probability_0_leaves_the_gradient_finite(name):
    tokens = extreme_answers()
    tokens = dataclasses.replace(tokens, logp=tokens.logp.at[:, :, 1].set(-jnp.inf))
    tokens = dataclasses.replace(tokens, behaviour_logp=-jnp.ones_like(tokens.logp))
    assert np.all(np.isfinite(slope_of(EVERY[name].surrogate, tokens)))


@pytest.mark.parametrize(
    ("name", "advantage", "infinite", "zero"),
    [
        ("clipped", 1.0, (1.2, 0.0), (1 / E60, 0.0)),
        ("clipped", -1.0, (-E60, 0.0), (-0.8, 0.0)),
        ("clipped", 0.0, (0.0, 0.0), (0.0, 0.0)),
        ("clipped, dual", -1.0, (-3.0, 0.0), (-0.8, 0.0)),
        ("log_ratio_clamped", -1.0, (-1000.0, 0.0), (-0.8, 0.0)),
        ("token_ratio", 1.0, (E60, 0.0), (1 / E60, 0.0)),
        ("sapo", 1.0, (4.0, 0.0), (4 / (1 + np.e), 0.0)),
    ],
)
def test_documented_values_of_infinite_ratios(name, advantage, infinite, zero):
    for case, expected in (("impossible for the sampler", infinite), ("far too unlikely", zero)):
        values, slope = pulls(EVERY[name].surrogate, row(**EXTREMES[case], advantage=advantage))
        np.testing.assert_allclose((values[0, 0, 0], slope[0, 0, 0]), expected, rtol=1e-5)


def test_peer_defect_the_ratio_of_a_token_without_credit_is_nan():
    """0 · exp(inf) is NaN; the same token is worth 0 here."""
    tokens = row(**EXTREMES["impossible for the sampler"], advantage=0.0)
    plain = lambda t: jnp.exp(t.logp - t.behaviour_logp) * t.advantage  # noqa: E731
    assert np.all(np.isnan(pulls(plain, tokens)[0]))
    np.testing.assert_array_equal(pulls(clipped(), tokens), 0)


# Derivatives


@every_surrogate
def test_on_policy_the_derivative_is_the_credit(name):
    entry, tokens = EVERY[name], batch()
    if entry.on_policy is None:
        pytest.skip("depends on the probability itself")
    tokens = dataclasses.replace(tokens, logp=tokens.behaviour_logp, policy_logp=tokens.behaviour_logp)
    expected = np.where(tokens.where, entry.on_policy(np.asarray(tokens.advantage)), 0)
    slope = np.where(tokens.where, slope_of(entry.surrogate, tokens), 0)
    np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-7)


@every_surrogate
def test_gradient_flows_through_logp_alone(name):
    tokens = batch()
    others = [field for field in FIELDS if field != "logp"]

    def total(*fields):
        return jnp.sum(EVERY[name].surrogate(dataclasses.replace(tokens, **dict(zip(others, fields, strict=True)))))

    slopes = jax.jit(jax.grad(total, argnums=tuple(range(len(others)))))(*(getattr(tokens, each) for each in others))
    for slope in slopes:
        np.testing.assert_array_equal(slope, 0)


@every_surrogate
def test_an_answer_sees_no_other_answer(name):
    """The values of an answer are the same among other answers, so a batch may be cut anywhere."""
    tokens, other = batch(), batch(seed=1)
    kept = jnp.zeros(tokens.where.shape, bool).at[1, 2].set(True).at[3, 0].set(True)
    mixed = jax.tree.map(lambda x, y: jnp.where(kept, x, y), tokens, other)
    for a, b in zip(pulls(EVERY[name].surrogate, mixed), pulls(EVERY[name].surrogate, tokens), strict=True):
        np.testing.assert_array_equal(a[np.asarray(kept)], b[np.asarray(kept)])
    values = pulls(EVERY[name].surrogate, mixed)[0], pulls(EVERY[name].surrogate, tokens)[0]
    assert not np.array_equal(*values)


@every_surrogate
def test_a_token_sees_no_other_token_where_it_says_so(name):
    tokens = batch()
    nudge = jnp.zeros(tokens.logp.shape).at[..., 0].set(-0.05)
    moved = slope_of(EVERY[name].surrogate, dataclasses.replace(tokens, logp=tokens.logp + nudge))
    same = np.array_equal(moved[..., 1:], slope_of(EVERY[name].surrogate, tokens)[..., 1:])
    assert same or not EVERY[name].local


# Padding


@functools.cache
def compiled_loss(name):
    objective = Objective(surrogate=EVERY[name].surrogate, aggregate=token_mean())
    loss = lambda logp, weights, tokens: objective.loss(weights, dataclasses.replace(tokens, logp=logp))  # noqa: E731
    return jax.jit(jax.value_and_grad(loss))


def loss_and_slope(name, tokens, aggregate=None):
    return compiled_loss(name)(tokens.logp, (aggregate or answer_mean())(tokens.where), tokens)


@every_surrogate
def test_what_padding_holds_is_not_seen(name):
    tokens = batch()
    expected = loss_and_slope(name, tokens)
    assert np.all(np.isfinite(expected[1]))
    for junk in (np.nan, np.inf, -np.inf):
        dirty = {field: jnp.where(tokens.where, getattr(tokens, field), junk) for field in FIELDS}
        actual = loss_and_slope(name, dataclasses.replace(tokens, **dirty))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


@every_surrogate
def test_ragged_is_padded(name):
    """More answers, more tokens, more prompts, none of them acted."""
    tokens = batch()
    value, slope = loss_and_slope(name, tokens)
    wide = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), (0, 2), (0, 3))), tokens)
    padded_value, padded_slope = loss_and_slope(name, wide)
    np.testing.assert_allclose(padded_value, value, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(padded_slope[:4, :3, :5], slope, rtol=1e-5, atol=1e-7)


@every_surrogate
def test_no_acted_token_gives_0(name):
    tokens = batch()
    none = dataclasses.replace(tokens, where=jnp.zeros_like(tokens.where))
    value, slope = loss_and_slope(name, none, answer_sum())
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@every_surrogate
def test_dtypes_are_kept(name):
    values = jax.eval_shape(EVERY[name].surrogate, jax.tree.map(narrow, batch()))
    assert values.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: x if x.dtype == bool else np.asarray(x, np.float64), batch())
        tokens = jax.tree.map(jnp.asarray, wide)
        assert jax.eval_shape(EVERY[name].surrogate, tokens).dtype == jnp.float64


def narrow(x):
    return x if x.dtype == bool else x.astype(jnp.bfloat16)


def test_tokens_of_ratios_has_those_ratios():
    tokens = of_ratios([0.5, 2.0], 1.0)
    np.testing.assert_allclose(np.exp(tokens.logp - tokens.behaviour_logp)[0, 0], [0.5, 2.0], rtol=1e-6)
