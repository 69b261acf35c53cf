"""Penalties by exact expectation: every token of a small vocabulary, weighed by the policy that would draw it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.losses import Objective, Tokens, bare_tokens, entropy_bonus, k1, k2, k3, kl, reinforce

RNG = np.random.default_rng(0)
LOGITS, REFERENCE = RNG.normal(size=(2, 5))  # float64 on the host; cast where x64 is on
# Coefficients below are sums of powers of 2, the same in float32, in which an objective keeps them, and in float64.
ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def row(x):
    """[1 1 V] of anything."""
    return jnp.asarray(x).reshape(1, 1, -1)


def pair(logp, reference_logp, **rest):
    """The record of tokens with these log-probabilities, all acted."""
    where = jnp.ones(row(logp).shape, bool)
    return bare_tokens(where, logp=row(logp), reference_logp=row(reference_logp), **rest)


@jax.jit
def divergence(p_logits, q_logits):
    """KL(p‖q)."""
    p, q = jax.nn.log_softmax(p_logits), jax.nn.log_softmax(q_logits)
    return jnp.sum(jnp.exp(p) * (p - q))


def gradient_in_the_loss(penalty):
    """Expected gradient of the loss whose tokens were drawn from the policy, [V]."""
    objective = Objective(surrogate=reinforce(), aggregate=lambda where: where, penalties=(penalty,))
    drawn = row(jax.nn.softmax(LOGITS))  # the probability of each token stands in for how often it is drawn

    def loss(logits):
        logp = row(jax.nn.log_softmax(logits))
        entropy = jnp.broadcast_to(-jnp.sum(jnp.exp(logp) * logp), logp.shape)
        return objective.loss(drawn, pair(logp, jax.nn.log_softmax(REFERENCE), entropy=entropy))

    return jax.jit(jax.grad(loss))(LOGITS)


def test_values():
    logp, reference = jnp.log(jnp.array([0.5, 0.2])), jnp.log(jnp.array([0.25, 0.4]))
    tokens = pair(logp, reference)
    np.testing.assert_allclose(k1(tokens)[0, 0], [np.log(2), -np.log(2)])
    np.testing.assert_allclose(k2(tokens)[0, 0], [np.log(2) ** 2 / 2] * 2)
    np.testing.assert_allclose(k3(tokens)[0, 0], [0.5 - 1 + np.log(2), 2 - 1 - np.log(2)])


def test_k1_and_k3_estimate_the_divergence_without_bias_and_k2_does_not():
    logp, reference = jax.nn.log_softmax(LOGITS), jax.nn.log_softmax(REFERENCE)
    tokens = pair(logp, reference)
    mean = {name: np.sum(row(np.exp(logp)) * k(tokens)) for name, k in ESTIMATORS.items()}
    truth = divergence(LOGITS, REFERENCE)
    np.testing.assert_allclose([mean["k1"], mean["k3"]], truth, rtol=1e-12)
    assert abs(mean["k2"] / truth - 1) > 0.01
    assert np.all(k3(tokens) >= 0)
    assert np.any(k1(tokens) < 0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_policies_cost_nothing_and_pull_nowhere(estimator):
    logp = jax.nn.log_softmax(LOGITS)
    mean = lambda x: jnp.sum(row(jnp.exp(logp)) * ESTIMATORS[estimator](pair(x, logp)))  # noqa: E731
    value, slope = jax.value_and_grad(mean)(logp)
    assert value == 0
    np.testing.assert_array_equal(slope, jnp.exp(logp) if estimator == "k1" else 0)


def test_k1_in_the_loss_has_a_gradient_of_expectation_0():
    np.testing.assert_allclose(gradient_in_the_loss(kl(k1, 0.25, "loss")), 0, atol=1e-15)


def test_k2_in_the_loss_has_the_gradient_of_the_divergence():
    truth = jax.grad(divergence)(jnp.asarray(LOGITS), REFERENCE)
    np.testing.assert_allclose(gradient_in_the_loss(kl(k2, 0.25, "loss")), 0.25 * truth, rtol=1e-10)


def test_peer_defect_k3_in_the_loss_follows_the_reverse_divergence():
    gradient = gradient_in_the_loss(kl(k3, 0.25, "loss"))
    reverse = jax.grad(lambda logits: divergence(jnp.asarray(REFERENCE), logits))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(gradient, 0.25 * reverse, rtol=1e-10)
    assert not np.allclose(gradient, 0.25 * jax.grad(divergence)(jnp.asarray(LOGITS), REFERENCE), rtol=0.05)


def test_the_entropy_bonus_raises_the_entropy():
    def entropy(logits):
        logp = jax.nn.log_softmax(logits)
        return -jnp.sum(jnp.exp(logp) * logp)

    truth = jax.grad(entropy)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(gradient_in_the_loss(entropy_bonus(0.25)), -0.25 * truth, rtol=1e-10)


# Placement


def objective_with(*penalties):
    return Objective(surrogate=reinforce(), aggregate=lambda where: where, penalties=penalties)


def test_a_penalty_in_the_reward_is_summed_over_the_acted_tokens():
    logp, reference = RNG.normal(size=(2, 2, 3, 4))
    where = np.arange(4) < np.array([[4, 2, 0], [1, 3, 4]])[..., None]
    reward = RNG.normal(size=(2, 3))
    tokens = bare_tokens(jnp.asarray(where), logp=jnp.asarray(logp), reference_logp=jnp.asarray(reference))
    objective = objective_with(kl(k1, 0.0625, "reward"), kl(k3, 0.5, "loss"))
    shaped = objective.shaped_reward(jnp.asarray(reward), tokens)
    expected = reward - 0.0625 * np.sum((logp - reference) * where, axis=-1)
    np.testing.assert_allclose(shaped, expected, rtol=1e-12)
    np.testing.assert_array_equal(shaped[0, 2], reward[0, 2])


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_padding_does_not_reach_the_shaped_reward(junk):
    where = jnp.arange(4) < 2
    fields = {field.name: row(jnp.full(4, junk)) for field in dataclasses.fields(Tokens)}
    fields["logp"] = row(jnp.where(where, -1.0, junk))
    fields["reference_logp"] = row(jnp.where(where, -2.0, 0.0))
    tokens = Tokens(**{**fields, "where": row(where)})
    for estimator in ESTIMATORS.values():
        objective = objective_with(kl(estimator, 1.0, "reward"))
        assert np.all(np.isfinite(objective.shaped_reward(jnp.ones((1, 1)), tokens)))


def test_a_penalty_acts_in_its_place_alone():
    one = jnp.ones((1, 1, 1))
    tokens = pair(one, 0 * one)
    in_reward, in_loss = objective_with(kl(k1, 1.0, "reward")), objective_with(kl(k1, 1.0, "loss"))
    assert in_reward.loss(one, tokens) == 0
    assert in_loss.loss(one, tokens) == 1
    reward = jnp.ones((1, 1))
    assert in_loss.shaped_reward(reward, tokens) == 1
    assert in_reward.shaped_reward(reward, tokens) == 0


def test_uses_reference_says_whether_a_reference_is_needed():
    assert objective_with(entropy_bonus(0.1), kl(k1, 0.1, "reward")).uses_reference
    assert not objective_with(entropy_bonus(0.1)).uses_reference
    assert not objective_with().uses_reference
