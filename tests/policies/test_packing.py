"""Sequences packed into rows: the log-probabilities, entropies and gradients of the same answers on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm.policies import decoder as decoder_module
from jaxrl_llm.policies.attention import attend_by
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.packing import first_fit_decreasing, pack, packed_logp
from jaxrl_llm.policies.policy import Policy

P, G, T = 3, 3, 6
SHAPES = {
    "plain": {},
    "windows": {"window": 3, "windowed": (True, False), "local_rope_base": 100.0},
    "caps": {"attention_cap": 2.0, "logit_cap": 3.0, "qk_norm": True, "tied": False},
}


def case(name, seed=0):
    policy, params = tiny.decoder(**SHAPES[name])
    rollout = tiny.ragged(policy, params, prompts_of=P, answers=G, length=T, seed=seed)
    acted = rollout.acted.at[1, 1, 0].set(False).at[2, 0].set(False)  # a token of the environment; nothing acted
    return policy, params, (rollout.prompt, rollout.prompt_mask, rollout.answer, acted)


def packed_of(tokens, capacity=20, **rows):
    return pack(*map(np.asarray, tokens), capacity=capacity, **rows)


def value_and_gradient(function, params):
    weights = jax.random.normal(jax.random.key(1), (2, P, G, T))

    def weighed(params):
        out = function(params)
        return sum(jnp.sum(w * x) for w, x in zip(weights, out, strict=True)), out

    return tiny.jit(jax.value_and_grad(weighed, has_aux=True))(params)


def both(policy, params, tokens, **changes):
    """On their own, and packed."""
    packed = packed_of(tokens, **changes)
    assert np.asarray(packed.segment).max() > 1, "several sequences share a row"
    alone = value_and_gradient(lambda params: answer_logp(policy, params, *tokens), params)
    return alone, value_and_gradient(lambda params: packed_logp(policy, params, packed, tokens[3]), params)


def assert_close(ours, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.max(jnp.abs(b)))), ours, expected
    )


@pytest.mark.parametrize("back_end", ["attend", "dot_product_attention"])
@pytest.mark.parametrize("name", SHAPES)
def test_packed_equals_alone_in_values_and_gradients(monkeypatch, name, back_end):
    if back_end != "attend":
        if name == "caps":
            pytest.skip("it does not bend logits")
        by = lambda *a, scale, cap: attend_by("xla", *a, scale=scale)  # noqa: E731
        monkeypatch.setattr(decoder_module, "attend", by)
    alone, packed = both(*case(name))
    assert min(float(jnp.max(jnp.abs(x))) for x in jax.tree.leaves(alone[1])) > 1e-3
    assert_close(packed, alone)


class OneSegment(Policy):
    """Ignores which sequence a token is of."""

    def score_rows(self, params, token, segment, position):
        return super().score_rows(params, token, jnp.minimum(segment, 1), position)


class NoPositions(Policy):
    """Puts every token in the first place."""

    def score_rows(self, params, token, segment, position):
        return super().score_rows(params, token, segment, jnp.zeros_like(position))


@pytest.mark.parametrize(("broken", "name"), [(OneSegment, "plain"), (OneSegment, "windows"), (NoPositions, "plain")])
def test_rows_without_segments_or_positions_are_caught(name, broken):
    policy, params, tokens = case(name)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_close(*reversed(both(broken(policy.config, policy.vocab_size), params, tokens)))


def test_empty_rows_change_nothing():
    """So that one program serves batches of different lengths."""
    policy, params, tokens = case("windows")
    few, many = packed_of(tokens), packed_of(tokens, rows=9)
    assert len(few.token) < len(many.token) == 9
    run = tiny.jit(lambda rows: packed_logp(policy, params, rows, tokens[3]))
    for x, y in zip(run(few), run(many), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_a_row_holds_prompts_and_answers_one_behind_another():
    """Two answers, 7 8 9 and 5, to the prompt 1 2: the last token of each predicts nothing."""
    prompt, mask = np.asarray([[0, 1, 2]]), np.asarray([[False, True, True]])
    answer, acted = np.asarray([[[5, 0, 0], [7, 8, 9]]]), np.asarray([[[True, False, False], [True, True, True]]])
    packed = pack(prompt, mask, answer, acted, capacity=7)
    assert packed.token.tolist() == [[1, 2, 7, 8, 1, 2, 0]]
    assert packed.target.tolist() == [[2, 7, 8, 9, 2, 5, 0]]
    assert packed.segment.tolist() == [[1, 1, 1, 1, 2, 2, 0]]
    assert packed.position.tolist() == [[0, 1, 2, 3, 0, 1, 0]]
    assert packed.column[0, 1].tolist() == [1, 2, 3]
    assert packed.column[0, 0, 0] == 5


def test_first_fit_decreasing():
    """4 3 3 2 2 2 into rows of 8: [4 3] [3 2 2] [2]; every sequence once, none too long, its bound kept."""
    assert first_fit_decreasing(np.asarray([2, 3, 4, 2, 3, 2]), 8) == [[2, 1], [4, 0, 3], [5]]
    lengths = np.random.default_rng(0).integers(1, 30, 200)
    rows = first_fit_decreasing(lengths, 32)
    assert sorted(i for row in rows for i in row) == list(range(200))
    assert max(lengths[row].sum() for row in rows) <= 32
    assert len(rows) <= 11 / 9 * -(-lengths.sum() // 32) + 1


def test_what_does_not_fit_is_refused():
    *_, tokens = case("plain")
    with pytest.raises(ValueError, match="does not fit rows of 4"):
        packed_of(tokens, capacity=4)
    with pytest.raises(ValueError, match=r"rows of 20 tokens are needed, more than 1"):
        packed_of(tokens, rows=1)
