"""What is logged of a step, against numpy; and a name in the glossary for all of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from learners import RECIPES, compiled, learner

from jaxrl_llm import metrics as log
from jaxrl_llm.learner import rollout_metrics
from jaxrl_llm.policies.logp import answer_logp

POLICY, PARAMS = tiny.bigram()
REFERENCE = jax.tree.map(lambda x: 0.8 * x, PARAMS)
ROLLOUT = tiny.ragged(POLICY, PARAMS, prompts_of=8, answers=7, noise=0.3)


@pytest.fixture(scope="module")
def learned():
    """State, metrics, credit of one step of GRPO from other parameters than those that sampled."""
    built = learner(POLICY, RECIPES["grpo"], learning_rate=lambda updates: 0.125)
    params = jax.tree.map(lambda x: 1.1 * x, PARAMS)
    return params, *compiled(built)(built.init(params), REFERENCE, ROLLOUT)


def numpy_of(tree):
    return jax.tree.map(np.asarray, tree)


def test_metrics_of_a_rollout_against_numpy():
    rng = np.random.default_rng(0)
    shaped = jnp.asarray(rng.normal(size=ROLLOUT.reward.shape), jnp.float32)
    advantage = jnp.asarray(rng.normal(size=ROLLOUT.acted.shape), jnp.float32)
    equal = shaped.at[1].set(0.3)
    r = numpy_of(ROLLOUT)
    got = numpy_of(rollout_metrics(ROLLOUT, equal, advantage))
    valid, length = r.valid, r.acted.sum(-1)
    where = r.acted & valid[..., None]
    a = np.asarray(advantage)[where]
    expected = {
        "reward/mean": r.reward[valid].mean(),
        "reward/std": r.reward[valid].std(ddof=1),
        "frac_reward_zero_std": 3 / 8,  # one group all equal, one with a single valid answer, one with none
        "advantage/mean": a.mean(),
        "advantage/std": a.std(ddof=1),
        "completions/mean_length": length[valid].mean(),
        "completions/min_length": length[valid].min(),
        "completions/max_length": length[valid].max(),
        "completions/clipped_ratio": r.truncated[valid].mean(),
        "invalid_ratio": 1 - valid.mean(),
        "num_tokens": r.acted.sum(),
    }
    component = got.pop("reward/component")
    np.testing.assert_allclose(component, r.components[valid].mean(axis=0), rtol=1e-6)
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name


def test_metrics_of_an_update_against_numpy(learned):
    params, state, got, credit = learned
    logp, entropy = numpy_of(answer_logp(POLICY, params, *tokens()))
    anchor, _ = numpy_of(answer_logp(POLICY, REFERENCE, *tokens()))
    r = numpy_of(ROLLOUT)
    where = r.acted & r.valid[..., None]
    ratio = np.exp(logp - r.behaviour_logp)
    a = np.asarray(credit)[..., None] * where
    log_ratio = anchor - logp
    gap, weight = np.abs(logp - r.policy_logp)[where], np.exp(logp - r.policy_logp)[where]
    expected = {
        "entropy": entropy[where].mean(),
        "kl": (np.exp(log_ratio) - 1 - log_ratio)[where].mean(),
        "clip_ratio/low": ((ratio < 0.8) & (a < 0))[where].mean(),
        "clip_ratio/high": ((ratio > 1.2) & (a > 0))[where].mean(),
        "sampling/logp_difference_mean": gap.mean(),
        "sampling/logp_difference_max": gap.max(),
        "sampling/weight_mean": weight.mean(),
        "sampling/weight_max": weight.max(),
        "learning_rate": 0.125,
    }
    assert expected["clip_ratio/low"] > 0
    assert expected["clip_ratio/high"] > 0
    for name, value in expected.items():
        assert float(got[name]) == pytest.approx(value, rel=1e-4), name
    moved = [x - y for x, y in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True)]
    assert float(got["grad_norm"]) == pytest.approx(np.sqrt(sum(float(jnp.sum(x**2)) for x in moved)), rel=1e-4)


def tokens():
    return ROLLOUT.prompt, ROLLOUT.prompt_mask, ROLLOUT.answer, ROLLOUT.acted


def test_accumulation_changes_no_metric(learned):
    params, _, whole, _ = learned
    built = learner(POLICY, RECIPES["grpo"], learning_rate=lambda updates: 0.125, accumulation=2)
    _, cut, _ = compiled(built)(built.init(params), REFERENCE, ROLLOUT)
    assert set(whole) == set(cut)
    for name in whole:
        np.testing.assert_allclose(cut[name], whole[name], atol=1e-6, rtol=1e-5, err_msg=name)


def test_a_penalty_without_a_clip_is_not_counted_as_clipped(learned):
    """Where credit is 0 the slope is 0, too; nothing has been clipped there."""
    built = learner(POLICY, RECIPES["grpo"])
    no_signal = dataclasses.replace(ROLLOUT, reward=jnp.ones_like(ROLLOUT.reward))
    _, got, _ = compiled(built)(built.init(learned[0]), REFERENCE, no_signal)
    assert float(got["clip_ratio/low"] + got["clip_ratio/high"]) == 0


def test_every_name_has_a_meaning(learned):
    for name in learned[2]:
        log.meaning(f"{name}/correct" if name == "reward/component" else name)
    with pytest.raises(ValueError, match="GLOSSARY"):
        log.meaning("reward/component")
    assert "kl" in learned[2]
