"""Heads: what they say by hand, which tokens they see, and where their gradient goes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from learners import distance

from jaxrl_llm.policies.config import Lora
from jaxrl_llm.policies.heads import Head, answer_states, token_states
from jaxrl_llm.policies.lora import AdaptedPolicy
from jaxrl_llm.sharding import RULES

HEADS = {
    "linear": Head(start=1.0),
    "two layers, silu": Head(hidden=6, start=1.0),
    "two layers, tanh": Head(hidden=6, activation="tanh", start=1.0),
    "two layers, gelu": Head(hidden=6, activation="gelu", start=1.0),
}
KEY = jax.random.key(0)
ACTS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "gelu": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_by_hand(name):
    head = HEADS[name]
    params = nn.unbox(head.init(5, KEY))
    params = jax.tree.map(lambda x: x + 0.1, params)  # biases count too
    states = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = states
    if head.hidden:
        expected = ACTS[head.activation](states @ np.asarray(params["in"]) + np.asarray(params["in_bias"]))
    expected = expected @ np.asarray(params["out"]) + (params["out_bias"] if head.hidden else 0)
    found = head(params, jnp.asarray(states))
    assert found.shape == (2, 3, 4)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_heads_start_as_they_say_and_name_their_axes():
    linear, two = Head(), Head(hidden=64)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(3, 128)), jnp.float32)
    for head, key in ((linear, None), (two, KEY)):
        assert not bool(jnp.any(head(nn.unbox(head.init(128, key)), states)))
    drawn = nn.unbox(Head(hidden=64, start=0.5).init(128, KEY))
    assert float(jnp.std(drawn["in"])) == pytest.approx(128**-0.5, rel=0.05)
    assert float(jnp.std(drawn["out"])) == pytest.approx(0.5 / 8, rel=0.25)
    boxed = jax.tree.leaves(two.init(8, KEY), is_leaf=lambda x: isinstance(x, nn.Partitioned))
    assert {name for leaf in boxed for name in leaf.names} == {"embed", "mlp"} <= set(RULES)
    for drawn_without_key in (two, Head(start=1.0)):
        with pytest.raises(ValueError, match="give it a key"):
            drawn_without_key.init(8)
    with pytest.raises(ValueError, match="hidden must be 0"):
        Head(hidden=-1)
    with pytest.raises(ValueError, match="start must be 0 or more"):
        Head(start=-1.0)


POLICY, TRUNK = tiny.decoder()
PROMPT, MASK = tiny.prompts((1, 3), 4)
ANSWER = jnp.asarray(np.random.default_rng(0).integers(0, tiny.VOCAB, (2, 3, 4)), jnp.int32)
ACTED = jnp.arange(4)[None, None, :] < jnp.asarray([[4, 2, 1], [0, 3, 4]])[..., None]

token = tiny.jit(lambda params, answer: token_states(POLICY, params, PROMPT, MASK, answer))
whole = tiny.jit(lambda params, answer: answer_states(POLICY, params, PROMPT, MASK, answer, ACTED))


def test_a_value_sees_what_came_before_its_token_and_a_score_sees_the_last_one():
    for t in range(4):
        other = ANSWER.at[:, :, t].add(1) % tiny.VOCAB
        moved = jnp.max(jnp.abs(token(TRUNK, other) - token(TRUNK, ANSWER)), axis=(0, 1, 3)) > 1e-4
        np.testing.assert_array_equal(moved, np.arange(4) > t)
        moved = jnp.max(jnp.abs(whole(TRUNK, other) - whole(TRUNK, ANSWER)), axis=-1) > 1e-4
        np.testing.assert_array_equal(moved, ACTED[:, :, t])  # its own last token included, padding not
    states, size = token(TRUNK, ANSWER), np.asarray(ACTED).sum(-1)
    for p, g in ((0, 1), (0, 2), (1, 0), (1, 1)):  # shorter than T: the state that would predict the next token
        np.testing.assert_allclose(whole(TRUNK, ANSWER)[p, g], states[p, g, size[p, g]], atol=1e-5)


@pytest.mark.parametrize("flows", [True, False])
def test_the_gradient_goes_into_the_trunk_or_stops_as_asked(flows):
    head = HEADS["two layers, silu"]
    params = nn.unbox(head.init(16, KEY))

    def loss(trunk, params):
        seen = trunk if flows else jax.lax.stop_gradient(trunk)
        return jnp.sum(head(params, token_states(POLICY, seen, PROMPT, MASK, ANSWER)) ** 2)

    of_trunk, of_head = tiny.jit(jax.grad(loss, argnums=(0, 1)))(TRUNK, params)
    assert all(bool(jnp.any(x)) for x in jax.tree.leaves(of_head))
    assert any(bool(jnp.any(x)) for x in jax.tree.leaves(of_trunk)) == flows


def fitted(head, states, target, updates=300):
    params = nn.unbox(head.init(states.shape[-1], KEY))
    optimizer = optax.adam(0.03)

    def step(carry, _):
        params, moments = carry
        value, grads = jax.value_and_grad(lambda p: jnp.mean((head(p, states) - target) ** 2))(params)
        change, moments = optimizer.update(grads, moments)
        return (optax.apply_updates(params, change), moments), value

    return tiny.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), length=updates)[1][-1])()


def test_heads_learn_a_target_and_two_layers_one_that_is_not_linear():
    states = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)), jnp.float32)
    linear = states @ jnp.asarray([1.0, -2.0, 0.5, 0.0])
    assert float(fitted(Head(), states, linear)) < 1e-3
    bent = jnp.abs(states[:, 0])
    assert float(fitted(Head(hidden=16), states, bent)) < 0.1 * float(jnp.var(bent))
    assert float(fitted(Head(), states, bent)) > 0.5 * float(jnp.var(bent)), "a linear head cannot"


def test_value_and_reward_head_share_one_frozen_trunk_with_adapters():
    """Both losses reach the adapters and their own head, and nothing else exists that could move."""
    lora = Lora(rank=2, alpha=2.0)
    policy = AdaptedPolicy(POLICY.config, POLICY.vocab_size, lora)
    value, reward = HEADS["linear"], HEADS["two layers, silu"]
    params = {
        "adapter": nn.unbox(policy.init(KEY)),
        "value": nn.unbox(value.init(16, KEY)),
        "reward": nn.unbox(reward.init(16, KEY)),
    }

    def loss(params, trunk):
        on, adapter = policy.on(trunk), params["adapter"]
        per_token = value(params["value"], token_states(on, adapter, PROMPT, MASK, ANSWER))
        per_answer = reward(params["reward"], answer_states(on, adapter, PROMPT, MASK, ANSWER, ACTED))
        return jnp.sum(jnp.where(ACTED, per_token - 1, 0) ** 2) + jnp.sum((per_answer - 1) ** 2)

    slope = tiny.jit(jax.value_and_grad(loss))
    before, grads = slope(params, TRUNK)
    assert all(bool(jnp.any(grads["adapter"]["blocks"][name]["b"])) for name in lora.targets)
    moved = jax.tree.map(lambda x, g: x - 1e-3 * g, params, grads)
    assert float(slope(moved, TRUNK)[0]) < float(before)
    assert distance(moved["value"], params["value"]) > 0
