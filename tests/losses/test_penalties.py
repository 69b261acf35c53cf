"""Penalties by exact expectation: every token of a small vocabulary, weighed by the policy that would draw it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.losses import (
    Objective,
    Tokens,
    adaptive,
    bare_tokens,
    entropy_bonus,
    k1,
    k2,
    k3,
    k3_clamped,
    k3_unbiased,
    kl,
    kl_cov,
    rao_blackwell,
    reinforce,
    with_score,
)

RNG = np.random.default_rng(0)
LOGITS, REFERENCE = RNG.normal(size=(2, 5))  # float64 on the host; cast where x64 is on
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
    np.testing.assert_allclose(gradient_in_the_loss(kl(k1, 0.3, "loss")), 0, atol=1e-15)


def test_k2_in_the_loss_has_the_gradient_of_the_divergence():
    truth = jax.grad(divergence)(jnp.asarray(LOGITS), REFERENCE)
    np.testing.assert_allclose(gradient_in_the_loss(kl(k2, 0.3, "loss")), 0.3 * truth, rtol=1e-10)


def test_peer_defect_k3_in_the_loss_follows_the_reverse_divergence():
    gradient = gradient_in_the_loss(kl(k3, 0.3, "loss"))
    reverse = jax.grad(lambda logits: divergence(jnp.asarray(REFERENCE), logits))(jnp.asarray(LOGITS))
    np.testing.assert_allclose(gradient, 0.3 * reverse, rtol=1e-10)
    assert not np.allclose(gradient, 0.3 * jax.grad(divergence)(jnp.asarray(LOGITS), REFERENCE), rtol=0.05)


def test_the_entropy_bonus_raises_the_entropy():
    def entropy(logits):
        logp = jax.nn.log_softmax(logits)
        return -jnp.sum(jnp.exp(logp) * logp)

    truth = jax.grad(entropy)(jnp.asarray(LOGITS))
    np.testing.assert_allclose(gradient_in_the_loss(entropy_bonus(0.3)), -0.3 * truth, rtol=1e-10)


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


# Forms of k3, and controllers


def test_the_clamped_k3_is_k3_inside_and_has_no_gradient_outside():
    gap = np.array([0.5, -3.0, 2.9, 30.0, -30.0])  # log π_ref - log π; k3 is 14.3 at 2.9
    tokens = pair(-40.0 * np.ones(5), -40.0 + gap)
    cost = lambda x: k3_clamped()(pair(x, -40.0 + gap))  # noqa: E731
    values, slope = np.ravel(cost(tokens.logp)), np.ravel(jax.grad(lambda x: jnp.sum(cost(x)))(tokens.logp))
    exact = np.expm1(gap) - gap
    np.testing.assert_allclose(values, [exact[0], exact[1], 10, 10, 10], rtol=1e-12)
    np.testing.assert_allclose(slope, [1 - np.exp(0.5), 1 - np.exp(-3.0), 0, 0, 0], rtol=1e-9)
    wide = k3_clamped(input_bound=100.0, output_bound=1e30)
    np.testing.assert_allclose(wide(tokens), k3(tokens), rtol=1e-12)


def test_k3_of_a_token_that_is_impossible_for_the_policy_is_a_number():
    tokens = pair(np.array([-1e4, -1.0]), np.array([-1.0, -1e4]))
    value, slope = jax.value_and_grad(lambda x: jnp.sum(k3(dataclasses.replace(tokens, logp=x))))(tokens.logp)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("estimator", [k1, k3])
def test_the_score_term_gives_the_gradient_of_the_expectation(estimator):
    """One token: plain k1 has a gradient of expectation 0 and plain k3 that of the reverse divergence."""
    truth = jax.grad(divergence)(jnp.asarray(LOGITS), REFERENCE)
    gradient = gradient_in_the_loss(kl(with_score(estimator), 0.3, "loss"))
    np.testing.assert_allclose(gradient, 0.3 * truth, rtol=1e-10)
    assert not np.allclose(gradient_in_the_loss(kl(estimator, 0.3, "loss")), 0.3 * truth, rtol=0.05)


def test_k3_unbiased_has_the_value_of_k3():
    tokens = pair(jax.nn.log_softmax(LOGITS), jax.nn.log_softmax(REFERENCE))
    np.testing.assert_array_equal(k3_unbiased(tokens), k3(tokens))
    truth = jax.grad(divergence)(jnp.asarray(LOGITS), REFERENCE)
    np.testing.assert_allclose(gradient_in_the_loss(kl(k3_unbiased, 0.3, "loss")), 0.3 * truth, rtol=1e-10)


def test_rao_blackwell_needs_whole_distributions():
    objective = objective_with(rao_blackwell(0.1, "loss"))
    assert objective.uses_exact_kl
    assert objective.uses_reference
    assert not objective_with(kl(k3, 0.1, "loss")).uses_exact_kl


@pytest.mark.parametrize(
    ("mean", "factor"), [(0.02, 1.0), (0.021, 1 + 0.05 * 2 / 10), (0.2, 1 + 0.2 * 2 / 10), (0.0, 1 - 0.2 * 2 / 10)]
)
def test_the_adaptive_coefficient(mean, factor):
    """Two answers, target 0.02, horizon 10: the step is the relative error, held within 20 %, by 2/10."""
    objective = objective_with(adaptive(kl(k1, 0.5, "loss"), target=0.02, horizon=10.0), kl(k1, 0.5, "loss"))
    logp = jnp.full((1, 2, 4), -1.0)
    tokens = bare_tokens(jnp.ones((1, 2, 4), bool), logp=logp, reference_logp=logp - mean)
    adapted = objective.adapted(objective.coefficients(), tokens)
    np.testing.assert_allclose(adapted, [0.5 * factor, 0.5], rtol=1e-9)


def test_the_adaptive_coefficient_of_nothing_stays():
    objective = objective_with(adaptive(kl(k1, 0.5, "loss"), target=0.02, horizon=10.0))
    tokens = bare_tokens(jnp.zeros((1, 2, 4), bool))
    np.testing.assert_array_equal(objective.adapted(objective.coefficients(), tokens), [0.5])


@pytest.mark.parametrize(("target", "horizon"), [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0)])
def test_targets_that_are_not_above_0_are_refused(target, horizon):
    with pytest.raises(ValueError, match="must be above 0"):
        adaptive(kl(k1, 0.5, "loss"), target=target, horizon=horizon)


PENALTIES = {
    "k1": kl(k1, 0.5, "loss"),
    "k2": kl(k2, 0.5, "loss"),
    "k3": kl(k3, 0.5, "loss"),
    "k3_clamped": kl(k3_clamped(), 0.5, "loss"),
    "k3_unbiased": kl(k3_unbiased, 0.5, "loss"),
    "rao_blackwell": rao_blackwell(0.5, "loss"),
    "kl_cov": kl_cov(fraction=0.5),
    "entropy_bonus": entropy_bonus(0.5),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_padding_reaches_neither_the_cost_nor_its_gradient(name):
    """Nor do answers without an acted token: their loss is exactly 0."""
    fields = {each: RNG.normal(size=(2, 2, 4)) for each in (f.name for f in dataclasses.fields(Tokens))}
    where = jnp.asarray(np.arange(4) < np.array([[4, 2], [1, 3]])[..., None])
    objective = objective_with(PENALTIES[name])

    @jax.jit
    def loss(logp, where, fields):
        tokens = Tokens(**{**fields, "where": where, "logp": logp})
        return objective.loss(where.astype(logp.dtype), tokens)

    slope, results = jax.jit(jax.value_and_grad(loss)), []
    for junk in (0.0, np.nan, np.inf):
        dirty = {each: jnp.where(where, x, junk) for each, x in fields.items()}
        results.append(slope(dirty["logp"], where, dirty))
    for each in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, each, results[0])
    assert results[0][0] != 0
    value, gradient = slope(dirty["logp"], jnp.zeros_like(where), dirty)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
