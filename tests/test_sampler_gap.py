"""What the sampler says of its tokens against what the learner says of them: measured, shut, and opened on purpose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from learners import RECIPES, learner

from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.policy import in_bfloat16
from jaxrl_llm.programs import Programs
from jaxrl_llm.sharding import fetch

NAMES = ("logp_difference_mean", "logp_difference_max", "weight_mean", "weight_max")


def one_step(**changes):
    """The rollout of a first step, and the metrics of its gap."""
    plain = {"task": "addition,digits=1", "recipe": "grpo", "model": tiny.SMALL}
    sizes = {"prompts_per_step": 8, "answers_per_prompt": 4, "warmup": WarmUp(max_steps=0)}
    programs = Programs(Config(**plain | sizes | changes), jax.devices()[:1])
    params = programs.fresh_params()
    state = programs.start(programs.learner, params)
    rollout = programs.sample(state.params, 1)
    _, metrics, _ = programs.learn(state, None, rollout)
    return fetch(rollout), [float(metrics[f"sampling/{name}"]) for name in NAMES]


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulation": 2, "temperature": 0.8},
        pytest.param({"epochs": 2, "top_p": 0.9}, marks=pytest.mark.long),
        pytest.param({"sample_in_bfloat16": True}, marks=pytest.mark.long),
    ],
    ids=["micro-batches", "epochs", "bfloat16"],
)
def test_the_exact_mode_leaves_no_gap_at_all(changes):
    """Not to within rounding: in the learner both are one function of one batch, and they come out bit by bit."""
    assert one_step(exact_logp=True, **changes)[1] == [0.0, 0.0, 1.0, 1.0]


def test_without_it_the_gap_is_rounding(monkeypatch):
    monkeypatch.setattr(jax, "jit", tiny.jit)
    _, (mean, largest, weight, weightiest) = one_step()
    assert 0 < mean < largest < 1e-4
    assert weight == pytest.approx(1, abs=1e-5)
    assert 1 <= weightiest == pytest.approx(1, abs=1e-4)


def test_a_copy_in_bfloat16_opens_the_gap_and_says_so(monkeypatch):
    monkeypatch.setattr(jax, "jit", tiny.jit)
    rollout, (mean, largest, weight, weightiest) = one_step(sample_in_bfloat16=True)
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
    ours = learner(policy, RECIPES["grpo"], accumulation=2)._rescored(params, None, off)
    np.testing.assert_allclose(ours.policy_logp, rollout.policy_logp, atol=1e-6)
    share = off.behaviour_logp - off.policy_logp
    np.testing.assert_allclose(ours.behaviour_logp - ours.policy_logp, share, atol=1e-6)
