"""Values that are not finite: refused, counted and named, and nothing that learning keeps has changed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from learners import RECIPES, assert_same, compiled, distance, learner

from jaxrl_llm import recipes
from jaxrl_llm.finite import SITES

POLICY, PARAMS = tiny.bigram()
ROLLOUT = tiny.ragged(POLICY, PARAMS, noise=0.3)
MOVING = recipes.reinforce(baseline=True)
LEARNER = learner(POLICY, MOVING, optax.adam(1e-2), learning_rate=lambda updates: 10.0 + updates)
LEARN = compiled(LEARNER)
BAD = {
    "NaN reward": ("reward", (0, 0), np.nan, "reward"),
    "infinite reward": ("reward", (1, 2), np.inf, "reward"),
    "NaN recorded log-probability": ("behaviour_logp", (0, 0, 1), np.nan, "log-probability"),
    "infinite recorded log-probability": ("behaviour_logp", (1, 1, 0), -np.inf, "log-probability"),
}


def soil(name):
    field, at, value, _ = BAD[name]
    return dataclasses.replace(ROLLOUT, **{field: getattr(ROLLOUT, field).at[at].set(value)})


def kept(state):
    """What a refused batch must leave alone."""
    return state.params, state.moments, state.credit


@pytest.fixture(scope="module")
def state():
    """After one good step, so that moments and the moving average hold something."""
    return LEARN(LEARNER.init(PARAMS), None, ROLLOUT)[0]


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_changes_nothing_and_is_named(state, name):
    after, metrics, _ = LEARN(state, None, soil(name))
    assert_same(kept(after), kept(state))
    assert SITES[int(metrics["nonfinite/site"]) - 1] == BAD[name][3]
    assert [int(metrics[f"nonfinite/{what}"]) for what in ("skipped", "streak")] == [1, 1]
    assert int(after.step) == int(state.step) + 1


def test_a_streak_ends_with_a_good_step_and_nothing_is_left_of_it(state):
    bad = soil("NaN reward")
    seen = []
    after = state
    for batch in (bad, bad, ROLLOUT, bad):
        after, metrics, _ = LEARN(after, None, batch)
        seen.append([int(metrics[f"nonfinite/{what}"]) for what in ("skipped", "streak", "site")])
    assert seen == [[1, 1, 1], [2, 2, 1], [2, 0, 0], [3, 1, 1]]
    straight, _, _ = LEARN(state, None, ROLLOUT)
    assert_same(kept(after), kept(straight))
    assert distance(after.params, state.params) > 1e-3
    assert distance(after.credit, state.credit) > 1e-3, "the moving average goes on"


def test_the_learning_rate_counts_updates_that_were_made(state):
    _, metrics, _ = LEARN(state, None, ROLLOUT)
    assert float(metrics["learning_rate"]) == 11
    refused, _, _ = LEARN(state, None, soil("NaN reward"))
    _, metrics, _ = LEARN(refused, None, ROLLOUT)
    assert float(metrics["learning_rate"]) == 11


def test_a_bad_value_of_an_invalid_answer_is_none():
    assert not ROLLOUT.valid[-1, -1]
    assert not ROLLOUT.acted[-1, -1, -1]
    soiled = dataclasses.replace(
        ROLLOUT,
        reward=ROLLOUT.reward.at[-1, -1].set(jnp.nan),
        behaviour_logp=ROLLOUT.behaviour_logp.at[-1, -1].set(jnp.nan),
    )
    clean, _, _ = LEARN(LEARNER.init(PARAMS), None, ROLLOUT)
    dirty, metrics, _ = LEARN(LEARNER.init(PARAMS), None, soiled)
    assert_same(kept(clean), kept(dirty))
    assert int(metrics["nonfinite/skipped"]) == 0


def assert_refused(built, site, rollout=ROLLOUT, params=PARAMS, skipped=1):
    state = built.init(params)
    after, metrics, _ = compiled(built)(state, None, rollout)
    assert_same(kept(after), kept(state))
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(kept(after)))
    assert SITES[int(metrics["nonfinite/site"]) - 1] == site
    assert int(metrics["nonfinite/skipped"]) == int(metrics["nonfinite/streak"]) == skipped
    return metrics


def test_parameters_that_overflow_are_refused():
    rich = dataclasses.replace(ROLLOUT, reward=ROLLOUT.reward * 1000)
    metrics = assert_refused(learner(POLICY, MOVING, optax.sgd(3e38)), "parameter", rich)
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])


def test_moments_that_overflow_are_refused():
    def init(params):
        return jax.tree.map(jnp.zeros_like, params)

    def update(grads, state, params):
        del state, params
        return jax.tree.map(jnp.zeros_like, grads), jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), grads)

    assert_refused(learner(POLICY, MOVING, optax.GradientTransformation(init, update)), "moment")


def test_an_infinite_gradient_of_a_finite_loss_is_refused():
    """The square root of 0 has one."""
    on_policy = dataclasses.replace(ROLLOUT, behaviour_logp=ROLLOUT.policy_logp)
    root = dataclasses.replace(
        MOVING.objective, surrogate=lambda tokens: jnp.sqrt(jnp.abs(tokens.logp - tokens.behaviour_logp))
    )
    metrics = assert_refused(learner(POLICY, MOVING, objective=root), "gradient", on_policy)
    assert np.isfinite(metrics["loss"])


def test_an_infinite_loss_of_finite_logits_is_refused():
    endless = dataclasses.replace(MOVING.objective, surrogate=lambda tokens: tokens.logp + jnp.inf)
    assert_refused(learner(POLICY, MOVING, objective=endless), "loss")


def test_an_estimator_whose_state_overflows_is_refused():
    """Its credit is finite, now: a state of inf would be with it for ever."""

    def update(reward, state, rollout):
        credit, after = MOVING.advantage.update(reward, state, rollout)
        return credit, jax.tree.map(lambda x: x + jnp.inf if jnp.issubdtype(x.dtype, jnp.inexact) else x, after)

    broken = dataclasses.replace(MOVING, advantage=MOVING.advantage._replace(update=update))
    metrics = assert_refused(learner(POLICY, broken), "credit")
    assert np.isfinite(metrics["loss"])


def test_a_policy_whose_logits_overflow_is_refused():
    steep = jax.tree.map(lambda x: x * 1e25, PARAMS)
    assert_refused(learner(POLICY, RECIPES["grpo"]), "logit", params=steep)


def test_every_update_of_an_epoch_is_counted():
    assert_refused(learner(POLICY, MOVING, epochs=3), "reward", soil("NaN reward"), skipped=3)


def test_accumulation_hides_no_bad_value():
    assert_refused(learner(POLICY, MOVING, accumulation=4), "reward", soil("NaN reward"))


def test_one_bad_update_of_two_is_named_and_the_other_stands():
    """The first update is finite, and throws the logits of the second out of range."""
    built = learner(POLICY, RECIPES["dr_grpo"], optax.sgd(1e25), epochs=2)
    once = learner(POLICY, RECIPES["dr_grpo"], optax.sgd(1e25))
    state = built.init(PARAMS)
    first, _, _ = compiled(once)(state, None, ROLLOUT)
    after, metrics, _ = compiled(built)(state, None, ROLLOUT)
    assert_same(after.params, first.params)
    assert [int(metrics[f"nonfinite/{what}"]) for what in ("skipped", "streak", "site")] == [1, 1, 2]
