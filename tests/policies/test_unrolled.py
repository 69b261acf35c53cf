"""Decoding with the layers written out gives what the scan gives, and what the full pass gives."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm import random
from jaxrl_llm.policies import decoder, unrolled
from jaxrl_llm.policies.turned import attend_one
from jaxrl_llm.policies.unrolled import Unrolled, for_decoding
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping

P, G, T = 4, 4, 9
PROMPT, MASK = tiny.prompts((1, 2, 3, 3), 3)
KEYS = random.answer_keys(random.stream_key(0, random.Stream.ROLLOUT), 1, jnp.arange(P), G)
ODD = {
    **{"window": 3, "windowed": (True, False), "scaled_embedding": True, "post_norms": True, "norm_offset": True},
    **{"tied": False, "qk_norm": True, "logit_cap": 20.0, "attention_cap": 3.0, "local_rope_base": 500.0},
    **{"qkv_bias": True, "query_scale": 5.0},
}
SHAPES = {"plain": {}, "odd": ODD}


@pytest.fixture
def turned(monkeypatch):
    """Attention of the turned path: one entry each time that it is traced."""
    traced = []

    def counting(*inputs, **rules):
        traced.append(inputs[0].shape)
        return attend_one(*inputs, **rules)

    monkeypatch.setattr(decoder, "attend_one", counting)
    return traced


def traced_anew(fn, **options):
    """`fn` compiled as a function that no cache of traces knows: jax would give back what it traced of `fn` before."""

    @functools.wraps(fn)
    def fresh(*inputs):
        return fn(*inputs)

    return tiny.jit(fresh, **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_same_answers_whether_scanned_or_written_out(shape, monkeypatch, turned):
    model = tiny.decoder(seed=4, **SHAPES[shape])
    stopping = Stopping(eos=(2, 6), pad=0, length=T, bucket=4)
    outs, times = [], []
    for least in (unrolled.LEAST, 0):
        monkeypatch.setattr(unrolled, "LEAST", least)
        decode = traced_anew(generate, static_argnums=(0, 5, 6))
        outs.append(decode(*model, PROMPT, MASK, KEYS, SamplingRules(temperature=1.2), stopping))
        times.append(len(turned))
    assert times[0] == 0
    assert times[1] > model[0].config.layers, "all layers, in the loop of each bucket and size"
    assert len(np.unique(np.asarray(outs[0].acted).sum(-1))) > 3
    np.testing.assert_array_equal(outs[1].answer, outs[0].answer)
    np.testing.assert_allclose(outs[1].policy_logp, outs[0].policy_logp, atol=1e-5)


@pytest.mark.parametrize("on_cpu", [True, False], ids=["turned", "as stored"])
@pytest.mark.parametrize("shape", SHAPES)
def test_step_by_step_it_gives_the_logits_of_the_full_pass(shape, on_cpu, monkeypatch, turned):
    """Every logit of every step, not only those of the tokens that were drawn; fewer columns are read where it may."""
    monkeypatch.setattr(unrolled, "LEAST", 0)
    if not on_cpu:
        monkeypatch.setattr(unrolled.jax, "default_backend", lambda: "gpu")
    policy, params = tiny.decoder(seed=4, **SHAPES[shape])
    answer = jnp.asarray(np.random.default_rng(1).integers(0, tiny.VOCAB, (P, G, T)), jnp.int32)

    def steps(params, answer):
        decoding, weights, prefix = for_decoding(policy, params, policy.prefill(params, PROMPT, MASK))
        assert isinstance(decoding, Unrolled)
        token, cache, logits = jnp.broadcast_to(prefix.last[:, None], (P, G)), decoding.empty_cache(P, G, T), []
        for t in range(T):
            read = (None, t + 1)[t % 2]
            each, cache = decoding.step(weights, prefix, cache, token, jnp.int32(t), read)
            logits, token = [*logits, each], answer[..., t]
        return jnp.stack(logits, axis=2)

    def whole(params, answer):
        return policy.logits(params, policy.score(params, policy.prefill(params, PROMPT, MASK), answer))

    found, expected = traced_anew(steps)(params, answer), traced_anew(whole)(params, answer)
    assert len(turned) == (policy.config.layers * T if on_cpu else 0)
    assert float(jnp.std(expected)) > 0.5
    np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)
