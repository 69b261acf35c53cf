"""The decoder against a plain one, its own cache, and what may and may not influence a token."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from plain_decoder import plain_answer_logits, plain_logp

from jaxrl_llm.policies.config import DecoderConfig, Rope
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.sharding import RULES
from jaxrl_llm.tasks import addition

P, G, L, T = 3, 2, 5, 4
SHAPES = {
    "grouped heads, tied": {},
    "grouped heads, untied": {"tied": False},
    "as many key heads as heads": {"kv_heads": 4},
    "one key head, long wavelength": {"kv_heads": 1, "rope": Rope(base=1e6), "norm_eps": 1e-2},
}


def asked(seed=0):
    """Prompts of 1, 3 and 5 tokens, and answers."""
    prompt, mask = tiny.prompts((1, 3, 5), L, seed=seed)
    answer = np.random.default_rng(seed).integers(0, tiny.VOCAB, (P, G, T))
    return prompt, mask, jnp.asarray(answer, jnp.int32)


def full_pass(policy, params, prompt, mask, answer):
    """Logits of all answer tokens, by the full forward pass."""
    return policy.logits(params, policy.score(params, policy.prefill(params, prompt, mask), answer))


score = tiny.jit(full_pass, static_argnums=0)


@tiny.jit(static_argnums=0)
def step_by_step(policy, params, prompt, mask, answer):
    """Logits of all answer tokens, one decoding step after the other."""
    prefix = policy.prefill(params, prompt, mask)
    first = jnp.broadcast_to(prefix.last[:, None, None], (*answer.shape[:2], 1))
    token = jnp.concatenate([first, answer[..., :-1]], axis=-1)

    def step(cache, t):
        logits, cache = policy.step(params, prefix, cache, token[..., t], t)
        return cache, logits

    _, logits = jax.lax.scan(step, policy.empty_cache(*answer.shape), jnp.arange(answer.shape[-1]))
    return jnp.moveaxis(logits, 0, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_plain_decoder_agrees(shape):
    policy, params = tiny.decoder(**SHAPES[shape])
    logits = score(policy, params, *asked())
    assert float(jnp.std(logits)) > 0.5
    np.testing.assert_allclose(logits, plain_answer_logits(policy.config, params, *asked()), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", ["grouped heads, tied", "grouped heads, untied"])
def test_decoding_with_the_cache_equals_the_full_pass(shape):
    policy, params = tiny.decoder(**SHAPES[shape])
    np.testing.assert_allclose(
        step_by_step(policy, params, *asked()), score(policy, params, *asked()), atol=1e-5, rtol=1e-5
    )


ODD = {
    **{"layers": 4, "window": 2, "windowed": (True, False, True, False), "local_rope_base": 100.0, "qk_norm": True},
    **{"attention_cap": 3.0, "norm_offset": True, "post_norms": True, "scaled_embedding": True},
}


@pytest.mark.parametrize("shape", [{}, ODD, {**ODD, "recompute": False}])
def test_prompt_and_answers_in_one_scan_equal_one_after_the_other(shape):
    policy, params = tiny.decoder(**shape)
    prompt, mask, answer = asked()
    slope = np.random.default_rng(1).normal(size=(*answer.shape, policy.config.width)).astype(np.float32)

    def apart(params):
        return policy.score(params, policy.prefill(params, prompt, mask), answer)

    def together(params):
        return policy.score_behind(params, prompt, mask, answer)

    (one, back), (other, other_back) = (tiny.jit(lambda p, f=f: jax.vjp(f, p))(params) for f in (apart, together))
    np.testing.assert_allclose(other, one, atol=1e-5, rtol=1e-5)
    for a, b in zip(*(jax.tree.leaves(b(slope)) for b in (back, other_back)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-4, rtol=1e-4)


def test_one_scan_makes_one_gradient():
    policy = Policy(DecoderConfig(layers=4, width=64, heads=2, kv_heads=1, head_size=8, mlp_width=512), tiny.VOCAB)
    params = nn.unbox(jax.eval_shape(policy.init, jax.random.key(0)))

    def apart(params, prompt, mask, answer):
        return jnp.sum(policy.score(params, policy.prefill(params, prompt, mask), answer))

    def together(params, prompt, mask, answer):
        return jnp.sum(policy.score_behind(params, prompt, mask, answer))

    scratch = [
        jax.jit(jax.grad(f)).lower(params, *asked()).compile().memory_analysis().temp_size_in_bytes
        for f in (apart, together)
    ]
    assert scratch[0] - scratch[1] > 0.7 * sum(x.size * 4 for x in jax.tree.leaves(params["blocks"]))


def test_the_gradient_through_scan_and_remat_equals_the_plain_one():
    policy, params = tiny.decoder(tied=False)
    prompt, mask, answer = (x[1:2, :1] if x.ndim == 3 else x[1:2] for x in asked())

    def mean_logp(p):
        logits = full_pass(policy, p, prompt, mask, answer)
        return jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), answer[..., None], axis=-1))

    ours = tiny.jit(jax.grad(mean_logp))(params)
    plain_mean = jax.grad(lambda p: jnp.mean(plain_logp(policy.config, p, prompt, mask, answer)))
    plain = tiny.jit(plain_mean)(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(plain):
        assert float(jnp.max(jnp.abs(leaf))) > 1e-3, path
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), ours, plain)


def test_gradients_know_which_tokens_a_token_may_see():
    """Every position holds an id of its own, so that rows of the embedding's gradient are positions."""
    p, g, columns, t = 2, 2, 4, 3
    ids = np.arange(p * columns + p * g * t, dtype=np.int32)
    prompt = ids[: p * columns].reshape(p, columns)
    answer = ids[p * columns :].reshape(p, g, t)
    mask = np.asarray([[False, True, True, True], [True] * 4])
    policy, params = tiny.decoder(vocab=len(ids), tied=False)

    @tiny.jit
    @jax.grad
    def gradient(embedding, which):
        logits = full_pass(policy, params | {"embedding": embedding}, *map(jnp.asarray, (prompt, mask, answer)))
        logp = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(answer)[..., None], axis=-1)[..., 0]
        return jnp.sum(which * logp)

    one_hot = jnp.eye(p * g * t).reshape(-1, p, g, t)
    moved = np.stack([np.any(gradient(params["embedding"], which) != 0, axis=-1) for which in one_hot])
    expected = np.zeros((p, g, t, len(ids)), bool)
    for i, j, at in np.ndindex(p, g, t):
        expected[i, j, at, prompt[i][mask[i]]] = True
        expected[i, j, at, answer[i, j, :at]] = True
    np.testing.assert_array_equal(moved.reshape(expected.shape), expected)


def test_what_stands_in_the_padding_changes_not_one_bit():
    policy, params = tiny.decoder()
    prompt, mask, answer = asked()
    other = jnp.where(mask, prompt, (prompt + 3) % tiny.VOCAB)
    assert not jnp.array_equal(prompt, other)
    np.testing.assert_array_equal(
        score(policy, params, prompt, mask, answer), score(policy, params, other, mask, answer)
    )


def test_more_padding_changes_nothing():
    policy, params = tiny.decoder()
    prompt, mask, answer = asked()
    wide, wide_mask = (jnp.pad(x, ((0, 0), (3, 0))) for x in (prompt, mask))
    np.testing.assert_allclose(
        score(policy, params, prompt, mask, answer), score(policy, params, wide, wide_mask, answer), atol=1e-5
    )


def test_a_group_behind_one_prefix_equals_a_prompt_each():
    policy, params = tiny.decoder()
    prompt, mask, answer = asked()
    each = score(policy, params, jnp.repeat(prompt, G, 0), jnp.repeat(mask, G, 0), answer.reshape(P * G, 1, T))
    np.testing.assert_allclose(
        score(policy, params, prompt, mask, answer), each.reshape(P, G, T, tiny.VOCAB), atol=1e-5
    )


def test_bfloat16_computes_in_half_and_stays_close():
    policy, params = tiny.decoder()
    half = Policy(dataclasses.replace(policy.config, bfloat16=True), tiny.VOCAB)
    prompt, mask, answer = asked()
    stored = jax.tree.leaves(nn.unbox(jax.eval_shape(half.init, jax.random.key(0))))
    assert all(x.dtype == jnp.float32 for x in stored)
    prefix = jax.eval_shape(half.prefill, params, prompt, mask)
    assert prefix.past.key.dtype == jax.eval_shape(half.score, params, prefix, answer).dtype == jnp.bfloat16
    exact, rough = (score(one, params, prompt, mask, answer) for one in (policy, half))
    assert rough.dtype == jnp.float32
    np.testing.assert_allclose(jax.nn.softmax(rough), jax.nn.softmax(exact), atol=0.05)
    assert not jnp.array_equal(exact, rough)
    np.testing.assert_allclose(step_by_step(half, params, prompt, mask, answer), rough, atol=0.25)


@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_names_its_logical_axes(tied):
    shapes = jax.eval_shape(Policy(dataclasses.replace(tiny.SMALL, tied=tied), tiny.VOCAB).init, jax.random.key(0))
    leaves = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, nn.Partitioned))
    assert all(isinstance(leaf, nn.Partitioned) for leaf in leaves)
    assert all(len(leaf.names) == leaf.value.ndim for leaf in leaves)
    assert {name for leaf in leaves for name in leaf.names} == {*RULES, "layers", "head", "norm"}


def test_the_default_has_about_a_million_parameters():
    policy = Policy(DecoderConfig(), addition().tokenizer.vocab_size)
    assert policy.vocab_size == 15
    leaves = jax.tree.leaves(nn.unbox(jax.eval_shape(policy.init, jax.random.key(0))))
    assert policy.parameter_count() == sum(x.size for x in leaves)
    assert 0.9e6 < policy.parameter_count() < 1.1e6


@pytest.mark.parametrize("field", ["layers", "width", "heads", "kv_heads", "head_size", "mlp_width"])
def test_sizes_below_1_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"^{field} must be at least 1, not 0"):
        DecoderConfig(**{field: 0})


def test_heads_that_cannot_be_grouped_and_halves_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match=r"^kv_heads must divide heads=6, not 4 \(choices: \[1, 2, 3, 6\]\)"):
        DecoderConfig(heads=6, kv_heads=4)
    with pytest.raises(ValueError, match=r"^head_size must be even, not 7"):
        DecoderConfig(head_size=7)


def test_activations_kept_or_computed_again_give_the_same_gradient():
    policy, params = tiny.decoder()
    other = Policy(dataclasses.replace(policy.config, recompute=False), policy.vocab_size)
    prompt, mask = tiny.prompts((2, 4), 4)
    answer, acted = jnp.ones((2, 3, 5), jnp.int32), jnp.ones((2, 3, 5), bool)

    def gradient(policy):
        return tiny.jit(jax.grad(lambda p: answer_logp(policy, p, prompt, mask, answer, acted)[0].sum()))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient(policy), gradient(other))
