"""Log-probabilities and entropies by blocks of the vocabulary: the same numbers, without a [P G T V] array."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm.policies import logp as logp_module
from jaxrl_llm.policies import readout
from jaxrl_llm.policies.logp import answer_energy, answer_logp, answer_logp_and_kl

P, G, T, V = 2, 3, 7, 97


@pytest.fixture(scope="module")
def case():
    policy, params = tiny.decoder(vocab=V)
    rollout = tiny.ragged(policy, params, prompts_of=P, answers=G, length=T)
    return policy, params, (rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted)


def blocks_of(monkeypatch, tokens):
    """Of the vocabulary."""
    monkeypatch.setattr(readout, "LEAST", 1)
    monkeypatch.setattr(readout, "LOGITS", tokens * P * G * T)


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


@pytest.mark.parametrize("tokens", [1, 30, V])
def test_blocks_change_neither_value_nor_gradient(case, monkeypatch, tokens):
    """Four blocks of 25 do not divide 97: the last rows are padding."""
    whole = value_and_gradient(*case)
    blocks_of(monkeypatch, tokens)
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
    blocks_of(monkeypatch, 30)
    assert P * G * T * 25 <= largest(*case) < P * G * T * V


def test_the_size_check_catches_all_of_the_vocabulary_at_once(case, monkeypatch):
    blocks_of(monkeypatch, V)
    assert largest(*case) >= P * G * T * V


def test_the_size_check_catches_blocks_whose_logits_are_kept_for_the_backward_pass(case, monkeypatch):
    blocks_of(monkeypatch, 30)
    monkeypatch.setattr(logp_module, "read", lambda *arguments: readout._forward(*arguments)[0])
    assert largest(*case) >= P * G * T * V


def test_a_block_is_never_narrower_than_its_least(case, monkeypatch):
    monkeypatch.setattr(readout, "LEAST", 30)
    monkeypatch.setattr(readout, "LOGITS", 1)
    assert P * G * T * 25 <= largest(*case) < P * G * T * V


# the divergence of whole distributions, and the energy of tokens


def probabilities(policy, params, tokens):
    """All of them [P G T V], in float64."""
    prompt, mask, answer, _ = tokens
    hidden = policy.score(params, policy.prefill(params, prompt, mask), answer)
    logits = np.asarray(policy.logits(params, hidden), np.float64)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def both(policy, params, tokens):
    """`answer_logp_and_kl` to another policy, and the gradients of its weighed sum in both sets of parameters."""
    weights = jax.random.normal(jax.random.key(2), (3, P, G, T))

    def weighed(params, reference):
        out = answer_logp_and_kl(policy, params, reference, *tokens)
        return sum(jnp.sum(w * x) for w, x in zip(weights, out, strict=True)), out

    reference = jax.tree.map(lambda x: 0.7 * x, params)
    (_, out), grads = tiny.jit(jax.value_and_grad(weighed, argnums=(0, 1), has_aux=True))(params, reference)
    return out, grads, weights, reference


def test_the_divergence_is_that_of_whole_distributions(case):
    policy, params, tokens = case
    (logp, entropy, divergence), (_, in_reference), _, reference = both(*case)
    p, q = probabilities(policy, params, tokens), probabilities(policy, reference, tokens)
    expected = np.where(tokens[3], (p * np.log(p / q)).sum(-1), 0)
    assert expected.max() > 0.1
    np.testing.assert_allclose(divergence, expected, atol=1e-5, rtol=1e-4)
    for ours, alone in zip((logp, entropy), value_and_gradient(*case)[0][1], strict=True):
        np.testing.assert_allclose(ours, alone, atol=1e-5)
    assert not any(np.any(np.asarray(x)) for x in jax.tree.leaves(in_reference)), "the reference learns nothing"


def test_the_gradient_of_the_divergence_is_that_of_the_plain_sum(case):
    policy, params, (prompt, mask, answer, acted) = case
    _, (ours, _), weights, reference = both(*case)

    def logp_of(params):
        hidden = policy.score(params, policy.prefill(params, prompt, mask), answer)
        return jax.nn.log_softmax(policy.logits(params, hidden), axis=-1)

    def plain(params):
        mine, theirs = logp_of(params), logp_of(reference)
        chosen = jnp.sum(jax.nn.one_hot(answer, V) * mine, axis=-1)
        entropy, divergence = (jnp.sum(jnp.exp(mine) * x, axis=-1) for x in (-mine, mine - theirs))
        return jnp.sum(jnp.where(acted, weights[0] * chosen + weights[1] * entropy + weights[2] * divergence, 0))

    expected = tiny.jit(jax.grad(plain))(params)
    assert max(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(expected)) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3), ours, expected)


def test_the_energy_is_the_squared_norm_of_the_score_in_the_logits(case):
    """By its formula, and by automatic differentiation of log softmax."""
    policy, params, tokens = case
    answer, acted = tokens[2:]
    energy = tiny.jit(lambda params: answer_energy(policy, params, *tokens))(params)
    p = probabilities(policy, params, tokens)
    chosen = np.take_along_axis(p, np.asarray(answer)[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(energy, np.where(acted, 1 - 2 * chosen + (p**2).sum(-1), 0), atol=1e-5)
    score = jax.vmap(jax.grad(lambda logits, token: jax.nn.log_softmax(logits)[token]))
    norms = jnp.sum(score(jnp.log(jnp.asarray(p, jnp.float32)).reshape(-1, V), answer.reshape(-1)) ** 2, axis=-1)
    np.testing.assert_allclose(energy, jnp.where(acted, norms.reshape(P, G, T), 0), atol=1e-5)
    assert float(jnp.min(jnp.where(acted, energy, 1))) > 0


def test_blocks_change_neither_divergence_nor_energy(case, monkeypatch):
    policy, params, tokens = case

    def run():
        return both(*case)[:2], tiny.jit(lambda params: answer_energy(policy, params, *tokens))(params)

    whole = run()
    blocks_of(monkeypatch, 30)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), run(), whole)
