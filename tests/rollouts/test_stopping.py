"""What ends an answer: several ids, strings that straddle tokens, and limits of single answers."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm import random
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping, StopStrings
from jaxrl_llm.tasks import addition
from jaxrl_llm.tokenizers import CharTokenizer

P, G, T = 3, 5, 12
PROMPT, MASK = tiny.prompts((2, 3, 1), 3)
KEYS = random.answer_keys(random.stream_key(0, random.Stream.ROLLOUT), 1, jnp.arange(P), G)
PLAIN = Stopping(eos=(2,), pad=0, length=T)
decode = tiny.jit(generate, static_argnums=(0, 5, 6))


@dataclasses.dataclass(frozen=True)
class Words:
    """Tokens of several characters; a text does not begin with a space, as SentencePiece has it."""

    pieces: tuple[str, ...] = ("", "", "", "a", "b", "ab", "ba", "aab", " a", "é", "</")
    pad: int = 0
    bos: int = 1
    eos: int = 2
    stops: tuple[int, ...] = (2, 9)

    @property
    def vocab_size(self):
        return len(self.pieces)

    def encode(self, text):
        return [self.pieces.index(letter) for letter in text]

    def decode(self, ids):
        return "".join(self.pieces[i] for i in ids).removeprefix(" ")


def complete_at(tokenizer, strings, ids):
    """Number of tokens until the text holds one of the strings; all of them if it never does."""
    texts = [tokenizer.decode(ids[:n]) for n in range(1, len(ids) + 1)]
    return next((n for n, text in enumerate(texts, 1) if any(s in text for s in strings)), len(ids) + 1)


@pytest.mark.parametrize("strings", [("aa",), ("aaab", "bb"), ("abab", "ba "), ("a a", "baa", "</a")])
def test_the_automaton_stops_where_the_text_first_holds_a_string(strings):
    tokenizer, rng = Words(), np.random.default_rng(0)
    stop = StopStrings.of(tokenizer, strings)
    ids = rng.integers(2, tokenizer.vocab_size, (4, 50, 14))
    state, found = jnp.zeros((4, 50), jnp.int32), []
    for t in range(ids.shape[-1]):
        state = stop.after(state, jnp.asarray(ids[..., t]))
        found.append(stop.complete(state))
    first = np.where(np.any(found, axis=0), np.argmax(found, axis=0) + 1, 15)
    wanted = [[complete_at(tokenizer, strings, row.tolist()) for row in rows] for rows in ids]
    np.testing.assert_array_equal(first, wanted)
    assert {15, *range(2, 8)} <= set(np.unique(wanted))


@pytest.mark.parametrize("string", ["", "é"])
def test_a_string_that_tokens_may_cut_is_refused(string):
    with pytest.raises(ValueError, match=f"ASCII and not empty, not '{string}'"):
        StopStrings.of(CharTokenizer("ab"), ["a", string])


def test_ends_and_limits_only_cut_what_would_have_been_sampled():
    tokenizer = Words()
    model, rules = tiny.decoder(seed=4), SamplingRules(temperature=1.5)
    endless = decode(*model, PROMPT, MASK, KEYS, rules, dataclasses.replace(PLAIN, eos=()))
    assert np.all(endless.truncated)
    strings = ("ab", "b a")
    stopping = dataclasses.replace(PLAIN, eos=(2, 9), strings=StopStrings.of(tokenizer, strings))
    limit = jnp.asarray([[1, 2, 3, 5, 8], [13, 12, 11, 30, 12], [4, 6, 12, 12, 7]], jnp.int32)
    out = decode(*model, PROMPT, MASK, KEYS, rules, stopping, limit)
    seen = set()
    for p, g in np.ndindex(P, G):
        ids = np.asarray(endless.answer[p, g]).tolist()
        end = next((n for n, i in enumerate(ids, 1) if i in (2, 9)), T + 1)
        string = complete_at(tokenizer, strings, ids)
        kept = min(end, string, int(limit[p, g]), T)
        np.testing.assert_array_equal(out.acted[p, g], np.arange(T) < kept)
        np.testing.assert_array_equal(out.answer[p, g], np.where(np.arange(T) < kept, ids, 0))
        np.testing.assert_array_equal(np.asarray(out.policy_logp[p, g]) != 0, np.arange(T) < kept)
        assert bool(out.truncated[p, g]) == (kept < min(end, string))
        seen.add((kept == end, kept == string, kept == int(limit[p, g])))
    assert len(seen) >= 4, "the cases: an id, a string, a limit, and two at once"


def test_answers_to_a_task_end_as_it_says():
    task = addition(digits=1)
    assert Stopping.of(task) == dataclasses.replace(PLAIN, length=task.answer_length)


def test_the_host_finds_the_token_that_completes_a_string_where_the_device_does():
    tokenizer, rng = Words(), np.random.default_rng(1)
    stop = StopStrings.of(tokenizer, ("aaab", "bb", "</a"))
    ids, length = rng.integers(2, tokenizer.vocab_size, (200, 14)), rng.integers(0, 15, 200)
    acted = np.arange(14) < length[:, None]
    found = stop.completed_by(ids, acted)
    for row, size, marks in zip(ids, length, found, strict=True):
        first = complete_at(tokenizer, stop.strings, row[:size].tolist())
        np.testing.assert_array_equal(np.flatnonzero(marks), [first - 1] if first <= size else [])
    assert 20 < found.sum() < 180


def test_what_is_read_stands_in_front_of_the_first_string():
    stop = StopStrings.of(Words(), ("</a", "bb"))
    assert [stop.cut(text) for text in ("abb</a", "a</abb", "ab", "</a", "")] == ["a", "a", "ab", "", ""]
