"""Log-probabilities and entropies in chunks: the same numbers, without a [P G T V] array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm.policies import logp as logp_module
from jaxrl_llm.policies.logp import answer_logp

P, G, T, V = 2, 3, 7, 97


@pytest.fixture(scope="module")
def case():
    policy, params = tiny.decoder(vocab=V)
    rollout = tiny.ragged(policy, params, prompts_of=P, answers=G, length=T)
    return policy, params, (rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted)


def chunks_of(monkeypatch, positions):
    monkeypatch.setattr(logp_module, "CHUNK_ELEMENTS", positions * P * G * V)


def value_and_gradient(policy, params, tokens):
    """Of a sum that weighs every log-probability and every entropy differently."""
    weights = jax.random.normal(jax.random.key(1), (2, P, G, T))

    def weighted(params):
        out = answer_logp(policy, params, *tokens)
        return jnp.sum(weights[0] * out[0] + weights[1] * out[1]), out

    return tiny.jit(jax.value_and_grad(weighted, has_aux=True))(params)


def test_equals_the_log_softmax_of_all_logits_and_its_entropy(case):
    policy, params, (prompt, mask, answer, acted) = case
    (_, (logp, entropy)), _ = value_and_gradient(*case)

    @tiny.jit
    def all_logits():
        return policy.logits(params, policy.score(params, policy.prefill(params, prompt, mask), answer))

    logits = np.asarray(all_logits(), np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    probability = odds / odds.sum(-1, keepdims=True)
    chosen = np.take_along_axis(probability, np.asarray(answer)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(logp, np.where(acted, np.log(chosen), 0), atol=1e-5)
    np.testing.assert_allclose(
        entropy, np.where(acted, -(probability * np.log(probability)).sum(-1), 0), atol=1e-5, rtol=1e-5
    )


def test_both_are_exactly_0_off_acted(case):
    acted = case[2][3]
    (_, out), _ = value_and_gradient(*case)
    assert not bool(jnp.all(acted))
    for x in out:
        assert not np.any(np.asarray(x)[~np.asarray(acted)])
        assert np.all(np.asarray(x)[np.asarray(acted)] != 0)


@pytest.mark.parametrize("positions", [1, 3, T])
def test_chunks_change_neither_value_nor_gradient(case, monkeypatch, positions):
    """Three does not divide seven: the last chunk is padded."""
    whole = value_and_gradient(*case)
    chunks_of(monkeypatch, positions)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), value_and_gradient(*case), whole)


def sizes(jaxpr):
    """Sizes of all arrays that a jaxpr computes, those of the programs inside it included."""
    for equation in jaxpr.eqns:
        yield from (var.aval.size for var in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from sizes(getattr(inner, "jaxpr", inner))


def largest(policy, params, tokens):
    """The largest array of value and gradient together."""

    def summed(params):
        return sum(jnp.sum(x) for x in answer_logp(policy, params, *tokens))

    return max(sizes(jax.make_jaxpr(jax.value_and_grad(summed))(params).jaxpr))


def test_no_array_holds_all_logits(case, monkeypatch):
    chunks_of(monkeypatch, 1)
    assert P * G * V <= largest(*case) < P * G * T * V


def test_the_size_check_catches_an_unchunked_head(case, monkeypatch):
    chunks_of(monkeypatch, T)
    assert largest(*case) >= P * G * T * V


def test_the_size_check_catches_chunks_whose_logits_are_kept_for_the_backward_pass(case, monkeypatch):
    chunks_of(monkeypatch, 1)
    monkeypatch.setattr(jax, "checkpoint", lambda fun: fun)
    assert largest(*case) >= P * G * T * V


def test_a_chunk_is_never_smaller_than_one_position(case, monkeypatch):
    monkeypatch.setattr(logp_module, "CHUNK_ELEMENTS", 1)
    assert P * G * V <= largest(*case) < P * G * T * V
