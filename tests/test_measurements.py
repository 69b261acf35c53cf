"""What a learning step reads off a rollout for the methods that need it."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from learners import compiled, learner, step

from jaxrl_llm import recipes
from jaxrl_llm.advantages import Traits, bare_rollout, chain, group_mean, per_token, stateless
from jaxrl_llm.losses.corrections import self_normalised_group
from jaxrl_llm.measurements import MEASURED
from jaxrl_llm.rewards._base import RewardTransform

POLICY, PARAMS = tiny.bigram()
ROLLOUT = tiny.ragged(POLICY, PARAMS, noise=0.3)
ACTED = np.asarray(ROLLOUT.acted)
OF_POLICY = SimpleNamespace(policy=POLICY)
GRPO = recipes.grpo(kl_coefficient=0.0)


def logits():
    hidden = POLICY.score(PARAMS, POLICY.prefill(PARAMS, ROLLOUT.prompt, ROLLOUT.prompt_mask), ROLLOUT.answer)
    return POLICY.logits(PARAMS, hidden)


def measured(name, rollout=ROLLOUT):
    return MEASURED[name](OF_POLICY, PARAMS, rollout)


def test_energies_by_their_formula_and_by_differentiation():
    p = np.asarray(jax.nn.softmax(logits(), axis=-1), np.float64)
    chosen = np.take_along_axis(p, np.asarray(ROLLOUT.answer)[..., None], axis=-1)[..., 0]
    expected = np.where(ACTED, 1 - 2 * chosen + (p**2).sum(-1), 0)
    np.testing.assert_allclose(measured("token_energy"), expected, atol=1e-5)
    np.testing.assert_allclose(measured("energy"), expected.sum(-1), atol=1e-5)
    score = jax.grad(lambda logits, token: jax.nn.log_softmax(logits)[token])
    norms = jnp.sum(jax.vmap(score)(logits().reshape(-1, tiny.VOCAB), ROLLOUT.answer.reshape(-1)) ** 2, axis=-1)
    np.testing.assert_allclose(measured("token_energy"), np.where(ACTED, norms.reshape(ACTED.shape), 0), atol=1e-5)


def test_entropy_and_duration_by_hand():
    p = np.asarray(jax.nn.softmax(logits(), axis=-1), np.float64)
    np.testing.assert_allclose(measured("entropy"), np.where(ACTED, -(p * np.log(p)).sum(-1), 0), atol=1e-5)
    assert np.all(np.asarray(measured("entropy"))[ACTED] > 0.1)
    np.testing.assert_array_equal(measured("duration"), ACTED.sum(-1))
    assert measured("duration").dtype == jnp.float32


def test_equal_answers_have_equal_keys():
    """Equal in their tokens and in their number, whatever stands behind them; none for no answer."""
    answers = [[4, 5, 9], [4, 5, 7], [4, 5, 7], [5, 4, 9], [0, 0, 0], [4, 5, 9], [4, 5, 7], [0, 0, 0]]
    sizes, valid = [2, 2, 3, 2, 0, 2, 3, 2], [False, True, True, True, True, True, True, True]
    acted = jnp.arange(3)[None] < jnp.asarray(sizes)[:, None]
    group = bare_rollout(jnp.zeros((1, 8)), jnp.asarray([valid]), acted[None])
    group = dataclasses.replace(group, answer=jnp.asarray([answers], jnp.int32))
    np.testing.assert_array_equal(measured("answer_key", group), [[-1, 1, 2, 3, -1, 1, 2, 7]])
    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), group)
    np.testing.assert_array_equal(measured("answer_key", doubled)[1], measured("answer_key", group)[0])


def probe(*names):
    """A reward transform whose state is what it has seen."""

    def update(rollout, state):
        del state
        return rollout, {name: rollout.extras[name] for name in names}

    return RewardTransform(lambda: {name: 0 for name in names}, update, names)


def seen_by(names, rollout=ROLLOUT, advantage=GRPO.advantage, **changes):
    """What a method is given in a step."""
    built = dataclasses.replace(learner(POLICY, GRPO, reward=probe(*names), **changes), advantage=advantage)
    state, metrics, _ = compiled(built)(built.init(PARAMS), None, rollout)
    assert int(metrics["nonfinite/skipped"]) == 0
    return state.credit.reward


def test_the_step_gives_what_is_needed_and_keeps_what_is_given():
    theirs = dataclasses.replace(ROLLOUT, extras={"duration": jnp.full(ROLLOUT.reward.shape, 7.5)})
    found = seen_by(tuple(MEASURED), theirs)
    assert set(found) == set(MEASURED)
    np.testing.assert_array_equal(found["duration"], theirs.extras["duration"])
    for name in set(MEASURED) - {"duration"}:
        np.testing.assert_allclose(found[name], measured(name), atol=1e-6, err_msg=name)


def test_a_need_that_nobody_can_give_is_named():
    built = learner(POLICY, GRPO, reward=probe("blood_pressure"))
    with pytest.raises(ValueError, match="reads 'blood_pressure', which is not in"):
        built.learn(built.init(PARAMS), None, ROLLOUT)


# the influence of reward components on each other


def parts():
    """Three components, NaN at invalid answers."""
    components = jax.random.normal(jax.random.key(3), (*ROLLOUT.reward.shape, 3))
    return dataclasses.replace(ROLLOUT, components=jnp.where(ROLLOUT.valid[..., None], components, jnp.nan))


def products(built, rollout):
    """⟨g_j, g_k⟩ of the steps that plain gradient descent takes on each component as the reward."""
    steps = []
    for k in range(rollout.components.shape[-1]):
        moved, _ = step(built, PARAMS, dataclasses.replace(rollout, reward=rollout.components[..., k]))
        gone = jax.tree.map(jnp.subtract, PARAMS, moved)
        steps.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(gone)]))
    return np.stack(steps) @ np.stack(steps).T


def test_influence_is_that_of_explicit_gradients():
    expected = products(learner(POLICY, GRPO), parts())
    assert np.abs(np.linalg.det(expected)) > 1e-9, "no component is made of the others"
    for accumulation in (1, 4):  # an extra that is not cut by rows comes through micro-batches
        found = seen_by(("component_influence",), parts(), accumulation=accumulation)["component_influence"]
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)


def test_influence_has_the_corrections_of_the_update_and_reads_what_was_measured():
    """The policy has left the one that sampled: a moving correction sees where it is now."""
    by_energy = stateless(
        lambda advantage, rollout: advantage * rollout.extras["energy"], Traits(unbiased="no", needs=("energy",))
    )
    objective = dataclasses.replace(recipes.dr_grpo().objective, corrections=(self_normalised_group(),))
    advantage = per_token(chain(group_mean(), by_energy))
    built = dataclasses.replace(learner(POLICY, GRPO, objective=objective), advantage=advantage)
    stale = dataclasses.replace(parts(), policy_logp=parts().policy_logp + 0.5 * jnp.asarray(ROLLOUT.answer % 3))
    found = seen_by(("component_influence",), stale, advantage, objective=objective)["component_influence"]
    np.testing.assert_allclose(found, products(built, stale), atol=1e-5, rtol=1e-4)
