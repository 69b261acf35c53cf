"""What the sampler says of its tokens against what the learner says of them: measured, shut, and opened on purpose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from learners import RECIPES, learner, step

from jaxrl_llm import recipes
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.policy import in_bfloat16
from jaxrl_llm.programs import Programs
from jaxrl_llm.rollouts.rescoring import of_another, of_the_policy
from jaxrl_llm.sharding import fetch

NAMES = ("logp_difference_mean", "logp_difference_max", "weight_mean", "weight_max")


def distance_of_ratios(tokens):
    """A surrogate whose loss and gradient are exactly 0 where every ratio to what was sampled is exactly 1."""
    return jnp.square(tokens.logp - tokens.behaviour_logp)


def one_step(surrogate=None, **changes):
    """The rollout of a first step, the metrics of its gap, and its loss and gradient norm."""
    plain = {"task": "addition,digits=1", "recipe": recipes.grpo(), "model": tiny.SMALL}
    sizes = {"prompts_per_step": 8, "answers_per_prompt": 4, "warmup": WarmUp(max_steps=0)}
    if surrogate:
        objective = dataclasses.replace(recipes.grpo().objective, surrogate=surrogate)
        plain["recipe"] = dataclasses.replace(recipes.grpo(), objective=objective)
    programs = Programs(Config(**plain | sizes | changes), jax.devices()[:1])
    params = programs.fresh_params()
    state = programs.start(programs.learner, params)
    rollout = programs.sample(state.params, 1)
    _, metrics, _ = programs.learn(state, None, rollout)
    gap = [float(metrics[f"sampling/{name}"]) for name in NAMES]
    return fetch(rollout), gap, [float(metrics[name]) for name in ("loss", "grad_norm")]


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 2},
        pytest.param({"epochs": 2}, marks=pytest.mark.long),
    ],
    ids=["micro-batches", "epochs"],
)
def test_the_exact_mode_makes_every_ratio_one(changes):
    """Not to within rounding: in the learner both are one function of one batch, and they come out bit by bit. The gap
    that is reported stays that of the sampler."""
    _, gap, ends = one_step(distance_of_ratios, exact_logp=True, **changes)
    assert ends == [0.0, 0.0]
    _, plain_gap, plain_ends = one_step(distance_of_ratios, **changes)
    assert min(np.abs(plain_ends)) > 0
    assert gap == pytest.approx(plain_gap, rel=1e-6)
    assert gap[0] > 0


@pytest.mark.long
def test_a_copy_in_bfloat16_stays_what_has_sampled_in_the_exact_mode():
    """Its tokens came from another distribution: ratios say so, by about as much as is reported."""
    _, gap, (loss, norm) = one_step(distance_of_ratios, exact_logp=True, sample_in_bfloat16=True)
    assert gap[0] > 1e-4
    assert gap[0] / 2 < np.sqrt(-loss) <= gap[1]
    assert norm > 1e-4
    to_policy = lambda tokens: jnp.square(tokens.logp - tokens.policy_logp)  # noqa: E731
    assert one_step(to_policy, exact_logp=True, sample_in_bfloat16=True)[2] == [0.0, 0.0]


def test_who_samples_decides_what_is_replaced():
    config = Config(task="addition,digits=1", model=tiny.SMALL, prompts_per_step=8, warmup=WarmUp(max_steps=0))
    own, copy = {"exact_logp": True}, {"exact_logp": True, "sample_in_bfloat16": True}
    cases = [({}, None, None), (own, None, of_the_policy), (copy, None, of_another), (own, print, of_another)]
    for changes, sampler, expected in cases:
        programs = Programs(dataclasses.replace(config, **changes), jax.devices()[:1], sampler)
        assert programs.learner.rescored is expected, changes


def test_the_gap_that_is_reported_is_that_before_scoring_again():
    policy, params = tiny.bigram()
    rollout = tiny.ragged(policy, params)
    where = rollout.acted & rollout.valid[..., None]
    said = rollout.policy_logp * 1.01
    off = dataclasses.replace(rollout, policy_logp=said, behaviour_logp=said)
    expected = float(jnp.mean(jnp.abs(off.policy_logp - rollout.policy_logp), where=where))
    assert expected > 1e-3
    for rescored in (None, of_the_policy, of_another):
        for accumulation in (1, 2):
            built = learner(policy, RECIPES["grpo"], rescored=rescored, accumulation=accumulation)
            _, metrics = step(built, params, off, params)
            assert float(metrics["sampling/logp_difference_mean"]) == pytest.approx(expected, rel=1e-3)
            _, metrics = step(built, params, rollout, params)
            assert float(metrics["sampling/logp_difference_max"]) < 1e-6, "both agree"


def test_without_it_the_gap_is_rounding(monkeypatch):
    monkeypatch.setattr(jax, "jit", tiny.jit)
    _, (mean, largest, weight, weightiest), _ = one_step()
    assert 0 < mean < largest < 1e-4
    assert weight == pytest.approx(1, abs=1e-5)
    assert 1 <= weightiest == pytest.approx(1, abs=1e-4)


def test_a_copy_in_bfloat16_opens_the_gap_and_says_so(monkeypatch):
    monkeypatch.setattr(jax, "jit", tiny.jit)
    rollout, (mean, largest, weight, weightiest), _ = one_step(sample_in_bfloat16=True)
    assert 1e-4 < mean < largest < 0.2
    assert 1e-5 < abs(weight - 1) < 0.05
    assert 1 < weightiest <= np.exp(largest) * 1.001
    np.testing.assert_array_equal(rollout.behaviour_logp, rollout.policy_logp)


def test_the_copy_halves_every_parameter():
    policy, params = in_bfloat16(*tiny.decoder())
    assert policy.config == dataclasses.replace(tiny.SMALL, bfloat16=True)
    assert {x.dtype for x in params.values() if hasattr(x, "dtype")} == {jnp.dtype(jnp.bfloat16)}


def test_scoring_again_keeps_the_share_of_the_sampling_rules():
    policy, params = tiny.bigram()
    rollout = tiny.ragged(policy, params, noise=0.3)
    off = dataclasses.replace(rollout, policy_logp=rollout.policy_logp * 1.01, behaviour_logp=rollout.behaviour_logp)
    built = learner(policy, RECIPES["grpo"], accumulation=2, rescored=of_the_policy)
    ours = built._rescored(params, None, off)
    np.testing.assert_allclose(ours.policy_logp, rollout.policy_logp, atol=1e-6)
    share = off.behaviour_logp - off.policy_logp
    np.testing.assert_allclose(ours.behaviour_logp - ours.policy_logp, share, atol=1e-6)
    theirs = dataclasses.replace(built, rescored=of_another)._rescored(params, None, off)
    np.testing.assert_allclose(theirs.policy_logp, rollout.policy_logp, atol=1e-6)
    np.testing.assert_array_equal(theirs.behaviour_logp, off.behaviour_logp)
