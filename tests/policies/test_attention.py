"""Attention by `jax.nn.dot_product_attention` is ours, and cuDNN is refused by name where it cannot be had."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm.policies import decoder as decoder_module
from jaxrl_llm.policies.attention import attend, attend_by
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Policy

P, G, S, L, D = 2, 3, 5, 4, 8
FLASH = {"bfloat16": True, "attention": "cudnn"}


def drawn(heads=4, shared=2):
    """Queries, own keys and values, those of the prompt; masks in which every query sees itself."""
    keys = iter(jax.random.split(jax.random.key(0), 9))
    draw = lambda *shape: jax.random.normal(next(keys), (*shape, D))  # noqa: E731
    own = (draw(P, G, S, shared), draw(P, G, S, shared))
    prefix = (draw(P, L, shared), draw(P, L, shared))
    mask = jax.random.bernoulli(next(keys), 0.6, (P, G, S, S)) & jnp.tril(jnp.ones((S, S), bool))[None, None]
    mask = mask | jnp.eye(S, dtype=bool)[None, None]
    return draw(P, G, S, heads), own, mask, prefix, jax.random.bernoulli(next(keys), 0.6, (P, 1, 1, L))


@pytest.mark.parametrize(("heads", "shared"), [(4, 4), (4, 2), (4, 1)])
def test_the_library_call_is_our_arithmetic(heads, shared):
    """Values and gradients, heads that share keys and such as do not."""
    query, own, mask, prefix, prefix_mask = drawn(heads, shared)
    weights = jax.random.normal(jax.random.key(9), query.shape)

    def of(function):
        def weighed(query, own, prefix):
            out = function(query, own, mask, prefix, prefix_mask, scale=0.3)
            return jnp.sum(weights * out), out

        return tiny.jit(jax.value_and_grad(weighed, argnums=(0, 1, 2), has_aux=True))(query, own, prefix)

    ours, theirs = of(attend), of(lambda *a, **k: attend_by("xla", *a, **k))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-5), theirs, ours)


def test_a_decoder_takes_it_for_prompts_and_answers(monkeypatch):
    """What cuDNN would be called with, computed by XLA: the log-probabilities of the whole model in bfloat16."""
    policy, params = tiny.decoder(bfloat16=True)
    rollout = tiny.ragged(policy, params)
    tokens = rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted
    calls = []

    def by_xla(implementation, *arguments, scale):
        calls.append(implementation)
        return attend_by("xla", *arguments, scale=scale)

    monkeypatch.setattr(decoder_module, "attend_by", by_xla)
    flash = Policy(dataclasses.replace(policy.config, **FLASH), policy.vocab_size)
    logp, _ = tiny.jit(lambda: answer_logp(flash, params, *tokens))()
    assert len(calls) >= 2, "prompts and answers"
    assert set(calls) == {"cudnn"}
    np.testing.assert_allclose(logp, rollout.policy_logp, atol=0.1)


def test_cudnn_is_refused_off_a_gpu_and_nothing_is_put_in_its_place():
    assert jax.default_backend() == "cpu", "forced by tests/conftest.py"
    policy, params = tiny.decoder(bfloat16=True)
    flash = Policy(dataclasses.replace(policy.config, **FLASH), policy.vocab_size)
    prompt, mask = tiny.prompts([3, 2], 4)
    with pytest.raises(RuntimeError, match=r"cudnn needs an NVIDIA GPU, .* of kind cpu: take attention=xla"):
        flash.prefill(params, prompt, mask)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bfloat16": False}, "needs bfloat16 True"),
        ({"attention_cap": 50.0}, "needs attention_cap 0.* it is 50.0"),
        ({"head_size": 20}, "needs head_size a multiple of 8.* it is 20"),
        ({"head_size": 264}, "it is 264"),
    ],
)
def test_shapes_that_cudnn_does_not_compute_are_refused(changes, message):
    assert Policy(DecoderConfig(**FLASH), 17).config.attention == "cudnn"
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**FLASH | changes)
