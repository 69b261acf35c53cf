"""Second networks: their losses by hand, what they give, and what they must not learn from."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from learners import assert_close, assert_same, compiled, distance, learner

from jaxrl_llm import companions, recipes
from jaxrl_llm.advantages import at_end, chain, no_baseline
from jaxrl_llm.advantages.tokens.gae import gae
from jaxrl_llm.checkpoint import Checkpoints

POLICY, PARAMS = tiny.bigram()
REFERENCE = jax.tree.map(lambda x: 0.8 * x, PARAMS)
ROLLOUT = tiny.ragged(POLICY, PARAMS, noise=0.3)
WHERE = ROLLOUT.acted & ROLLOUT.valid[..., None]

RATE = 0.03
NETWORKS = {
    "value": companions.value_network(POLICY, learning_rate=RATE, discount=0.9),
    "token_score": companions.token_reward_model(POLICY, learning_rate=RATE),
    "process_score": companions.implicit_process_reward(POLICY, learning_rate=RATE, beta=0.5),
}
LEARN = {name: tiny.jit(network.learn) for name, network in NETWORKS.items()}
READ = {name: tiny.jit(network.read) for name, network in NETWORKS.items()}
RIGHT = (ROLLOUT.reward > 0) & ROLLOUT.valid


def first_gradient(name, rollout=ROLLOUT, reference=None):
    """Of the loss at the start: a tenth of it is the first moment of Adam after one update."""
    network = NETWORKS[name]
    _, moments = LEARN[name](network.init(PARAMS), reference, rollout)
    (adam,) = (x for x in jax.tree.leaves(moments, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
    grads = jax.tree.map(lambda x: 10 * x, adam.mu)
    assert float(optax.tree.norm(grads)) < 10, "not bounded"
    return grads


def fitted(name, rollout, reference=None, updates=150):
    network = NETWORKS[name]

    @tiny.jit
    def run(state):
        return jax.lax.scan(lambda s, _: (network.learn(s, reference, rollout), None), state, length=updates)[0]

    return network.read(run(network.init(PARAMS)), reference, rollout)[name]


def hidden(params=PARAMS):
    return POLICY.score(params, POLICY.prefill(params, ROLLOUT.prompt, ROLLOUT.prompt_mask), ROLLOUT.answer)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_starts_at_0_and_gives_what_it_says(name):
    assert NETWORKS[name].gives == (name,)
    found = READ[name](NETWORKS[name].init(PARAMS), PARAMS, ROLLOUT)
    assert list(found) == [name]
    assert found[name].shape == ROLLOUT.acted.shape
    assert not bool(jnp.any(found[name]))


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_read_is_detached(name):
    network = NETWORKS[name]
    params, moments = LEARN[name](network.init(PARAMS), REFERENCE, ROLLOUT)

    def value(params, reference):
        return jnp.sum(network.read((params, moments), reference, ROLLOUT)[name])

    assert float(value(params, REFERENCE)) != 0
    slopes = jax.grad(value, argnums=(0, 1))(params, REFERENCE)
    assert not any(bool(jnp.any(x)) for x in jax.tree.leaves(slopes))


def test_the_loss_of_the_value_by_hand():
    """Mean over acted tokens of valid answers of (V - 0.9^(tokens still to come) r)²/2, at V = 0."""
    ahead = np.maximum(np.asarray(ROLLOUT.acted).sum(-1, keepdims=True) - 1 - np.arange(ROLLOUT.acted.shape[-1]), 0)
    target = np.asarray(ROLLOUT.reward)[..., None] * 0.9**ahead
    expected = -np.einsum("pgt,pgte->e", np.where(WHERE, target, 0), hidden()) / np.sum(WHERE)
    grads = first_gradient("value")
    np.testing.assert_allclose(grads["head"]["out"], expected, atol=1e-6)
    assert not any(bool(jnp.any(x)) for x in jax.tree.leaves(grads["trunk"])), "nothing flows through a head of 0"


def test_the_value_of_a_return_that_is_known():
    """Reward 1, and the token before tells how many are left: V = 0.9^(tokens still to come)."""
    answer = jnp.broadcast_to(jnp.asarray([1, 2, 3, 4, 0]), ROLLOUT.answer.shape)
    counted = dataclasses.replace(
        ROLLOUT,
        prompt=jnp.full_like(ROLLOUT.prompt, 5),
        answer=answer,
        acted=jnp.ones_like(ROLLOUT.acted),
        reward=jnp.ones_like(ROLLOUT.reward),
    )
    value = fitted("value", counted, updates=300)
    np.testing.assert_allclose(value[0, 0], 0.9 ** np.arange(4, -1, -1), atol=0.02)


def test_the_loss_of_the_token_model_by_hand():
    """Mean over valid answers of the cross-entropy of the mean logit, at logit 0."""
    share = WHERE / jnp.maximum(jnp.sum(WHERE, axis=-1, keepdims=True), 1)
    slope = jnp.where(ROLLOUT.valid, 0.5 - RIGHT, 0) / jnp.sum(ROLLOUT.valid)
    expected = jnp.einsum("pg,pgt,pgte->e", slope, share, hidden())
    np.testing.assert_allclose(first_gradient("token_score")["head"]["out"], expected, atol=1e-6)


def test_the_loss_of_the_implicit_reward_by_hand():
    """At q = 0 its slope is -β (1[r > 0] - 1/2) Σ ∇log π: right answers become likelier under φ than under π_ref."""

    def plain(params):
        every = jax.nn.log_softmax(POLICY.logits(params, hidden(params)), axis=-1)
        logp = jnp.sum(jax.nn.one_hot(ROLLOUT.answer, tiny.VOCAB) * every, axis=-1)
        total = jnp.sum(jnp.where(WHERE, logp, 0), axis=-1)
        return -jnp.sum(jnp.where(ROLLOUT.valid, 0.5 * (RIGHT - 0.5) * total, 0)) / jnp.sum(ROLLOUT.valid)

    assert_close(first_gradient("process_score", reference=PARAMS), jax.grad(plain)(PARAMS))
    assert_close(first_gradient("process_score", reference=None), jax.grad(plain)(PARAMS))


@pytest.mark.parametrize("name", ["token_score", "process_score"])
def test_right_answers_are_told_from_wrong_ones(name):
    score = jnp.sum(jnp.where(WHERE, fitted(name, ROLLOUT, PARAMS), 0), axis=-1)
    wrong = ROLLOUT.valid & ~RIGHT
    assert float(jnp.min(jnp.where(RIGHT, score, jnp.inf))) > 0.1
    assert float(jnp.max(jnp.where(wrong, score, -jnp.inf))) < -0.1


@pytest.mark.parametrize("name", NETWORKS)
def test_invalid_answers_and_padding_teach_a_network_nothing(name):
    def garbage(x, mask):
        return jnp.where(mask, x, jnp.nan)

    soiled = dataclasses.replace(
        ROLLOUT,
        answer=jnp.where(WHERE, ROLLOUT.answer, (ROLLOUT.answer + 1) % tiny.VOCAB),
        behaviour_logp=garbage(ROLLOUT.behaviour_logp, WHERE),
        policy_logp=garbage(ROLLOUT.policy_logp, WHERE),
        reward=garbage(ROLLOUT.reward, ROLLOUT.valid),
    )
    start = NETWORKS[name].init(PARAMS)
    clean, dirty = (LEARN[name](start, None, batch) for batch in (ROLLOUT, soiled))
    assert distance(clean[0], start[0]) > 1e-3
    assert_same(clean, dirty)
    ours, theirs = (jnp.where(WHERE, READ[name](clean, None, batch)[name], 0) for batch in (ROLLOUT, soiled))
    np.testing.assert_array_equal(ours, theirs)


def test_an_update_that_is_not_finite_teaches_nothing():
    """The reward is finite, the square of the gradient is not."""
    start = LEARN["value"](NETWORKS["value"].init(PARAMS), None, ROLLOUT)
    huge = dataclasses.replace(ROLLOUT, reward=ROLLOUT.reward * 1e30)
    assert_same(LEARN["value"](start, None, huge), start)


# in the learner

CRITIC = companions.value_network(POLICY, learning_rate=RATE, discount=1.0)
CREDIT = chain(at_end(no_baseline()), gae(discount=1.0, decay=1.0))
ACTOR = dataclasses.replace(learner(POLICY, recipes.grpo(), companion=CRITIC), advantage=CREDIT)


def test_answers_are_read_before_anything_is_learned_from_them():
    """A = r - V(prefix): the reward itself where nothing is known, then with the values of the step before."""
    run = compiled(ACTOR)
    first, _, credit = run(ACTOR.init(PARAMS), None, ROLLOUT)
    reward = jnp.where(ROLLOUT.valid, ROLLOUT.reward, 0)
    np.testing.assert_allclose(credit, reward, atol=1e-6)
    _, _, credit = run(first, None, ROLLOUT)
    value = tiny.jit(CRITIC.read)(first.companion, None, ROLLOUT)["value"]
    mean = jnp.sum(jnp.where(WHERE, value, 0), axis=-1) / jnp.maximum(jnp.sum(WHERE, axis=-1), 1)
    assert float(jnp.max(jnp.abs(mean))) > 1e-3
    np.testing.assert_allclose(credit, reward - mean, atol=1e-6)
    assert_close(first.companion, tiny.jit(CRITIC.learn)(CRITIC.init(PARAMS), None, ROLLOUT))


def test_a_refused_batch_teaches_a_network_nothing(tmp_path):
    """Not even where its own loss has no part in what is wrong. And the state is one that can be saved."""
    run, states = compiled(ACTOR), [ACTOR.init(PARAMS)]
    nan_logp = dataclasses.replace(ROLLOUT, behaviour_logp=ROLLOUT.behaviour_logp.at[0, 0, 0].set(jnp.nan))
    for rollout in (ROLLOUT, nan_logp, ROLLOUT):
        states.append(run(states[-1], None, rollout)[0])
    assert [int(state.streak) for state in states] == [0, 0, 1, 0]
    assert_same(states[2].companion, states[1].companion)
    assert distance(states[3].companion, states[1].companion) > 1e-3
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(states[3], is_leaf=lambda x: x is None))
    with Checkpoints(tmp_path) as store:
        store.save(3, states[3])
        store.wait()
        assert_same(store.restore(states[3]), states[3])
