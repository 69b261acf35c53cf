"""When an answer ends, and how the loop that decodes answers is cut."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxrl_llm.types import Task, Tokenizer

LIMIT = "answer_limit"  # entry of a problem's truth: the tokens that answers to it may have

MOST_BUCKETS, MOST_HALVINGS, LEAST_ROWS = 8, 4, 8  # each is a loop to compile; fewer rows save little


@dataclasses.dataclass(frozen=True, eq=False)
class StopStrings:
    """Strings that end an answer, as an automaton over tokens (Aho and Corasick, 1975), so that a device can run it.

    table    [S V] the state after a token; 0 is the start, S - 1 that a string is complete, which stays
    strings  what it looks for
    """

    table: np.ndarray
    strings: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, strings: Sequence[str]) -> "StopStrings":
        """For the text that each token adds to an answer. A string may begin and end inside of tokens.

        Raises ValueError for an empty string, and for one with characters beyond ASCII: a token may hold a part of
        such a character, and so has no text of its own.
        """
        for string in strings:
            if not string or not string.isascii():
                raise ValueError(f"a stop string must be ASCII and not empty, not {string!r}")
        letters = sorted(set().union(*strings))
        pieces = _pieces(tokenizer)
        moves = _moves(strings, letters)
        state = np.repeat(np.arange(len(moves), dtype=np.int16)[:, None], len(pieces), axis=1)
        lengths = np.asarray([len(piece) for piece in pieces])
        for place in range(int(lengths.max(initial=0))):
            longer = np.flatnonzero(lengths > place)
            letter = [1 + letters.index(pieces[i][place]) if pieces[i][place] in letters else 0 for i in longer]
            state[:, longer] = moves[state[:, longer], np.asarray(letter)[None, :]]
        return cls(state, tuple(strings))

    def after(self, state: Int[Array, "P G"], token: Int[Array, "P G"]) -> Int[Array, "P G"]:
        """The state after a token."""
        return jnp.asarray(self.table)[state, token].astype(jnp.int32)

    def complete(self, state: Int[Array, "P G"]) -> Bool[Array, "P G"]:
        """Whether a string is complete."""
        return state == len(self.table) - 1

    def completed_by(
        self, answer: Int[np.ndarray, "*B T"], acted: Bool[np.ndarray, "*B T"]
    ) -> Bool[np.ndarray, "*B T"]:
        """On the host: the one token of each answer that completes a string first, if one does."""
        state, before = np.zeros(answer.shape[:-1], np.int64), np.zeros(answer.shape[:-1], bool)
        found = np.zeros(answer.shape, bool)
        for t in range(answer.shape[-1]):
            state = np.where(acted[..., t], self.table[state, answer[..., t]], state)
            complete = state == len(self.table) - 1
            found[..., t], before = complete & ~before, complete
        return found

    def cut(self, text: str) -> str:
        """The text in front of the first string in it."""
        return text[: min(place if (place := text.find(string)) >= 0 else len(text) for string in self.strings)]


def _pieces(tokenizer: Tokenizer) -> list[str]:
    """What each id adds to a text. Alone at the start of a text, some tokenizers drop its leading space."""
    anchor = tokenizer.encode("a")
    before = tokenizer.decode(anchor)
    return [tokenizer.decode([*anchor, i])[len(before) :] for i in range(tokenizer.vocab_size)]


def _moves(strings: Sequence[str], letters: Sequence[str]) -> np.ndarray:
    """The state after a letter [S 1+letters]; column 0 is any other character.

    States are the beginnings of the strings: the longest one that the text ends with.
    """
    begun = sorted({string[:n] for string in strings for n in range(len(string))}, key=len)
    known = {text: i for i, text in enumerate(begun)}
    moves = np.zeros((len(begun) + 1, len(letters) + 1), np.int16)
    moves[-1] = len(begun)
    for text, i in known.items():
        for j, letter in enumerate(letters, start=1):
            now = text + letter
            ends = [now[n:] for n in range(len(now) + 1)]
            whole = any(end in strings for end in ends)
            moves[i, j] = len(begun) if whole else next(known[end] for end in ends if end in known)
    return moves


def limits(truth: Mapping[str, Any], answers: int) -> Int[Array, "P G"] | None:
    """Tokens that each answer to the problems may have, where the problems say so."""
    return jnp.repeat(jnp.asarray(truth[LIMIT])[:, None], answers, axis=1) if LIMIT in truth else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopping:
    """When an answer ends: with a token of `eos` or the end of a stop string, which is kept and trained, or at a limit.

    An answer that any of them ended is not truncated.
    """

    eos: tuple[int, ...]
    pad: int
    length: int  # T
    strings: StopStrings | None = None
    bucket: int = 128  # columns of the cache are read in steps of so many, or of more where T is long
    parts: int = 1  # equal parts of the prompts, each on devices of its own, that are halved alike; 0: never halved
    early: bool = True  # leave the loop once every answer has ended; False only serves benchmarks
    runs: str | None = None  # the axis of `jax.vmap` along which runs decode together; they leave the loop together

    @classmethod
    def of(cls, task: Task, **more: Any) -> "Stopping":
        """For answers to a task."""
        strings = getattr(task, "strings", None)
        return cls(eos=task.stops, pad=task.tokenizer.pad, length=task.answer_length, strings=strings, **more)

    def ends(self, token: Int[Array, "P G"]) -> Bool[Array, "P G"]:
        """Whether a token is one of `eos`."""
        return jnp.any(token[..., None] == jnp.asarray(self.eos, jnp.int32)[None, None, :], axis=-1)

    def reads(self, halved: int) -> tuple[int, ...]:
        """How many columns the loops read, one after the other, once the batch was halved so many times.

        The steps double with each halving: fewer rows waste less on them, and late halvings come at late columns.
        """
        step = self.bucket * -(-self.length // (self.bucket * MOST_BUCKETS)) * 2**halved
        return (*range(step, self.length, step), self.length)

    def half(self, prompts: int, answers: int, halved: int) -> int:
        """Rows of a part in the next smaller batch. 0: there is none, as where one bucket holds all and nobody is ahead
        for long."""
        if not self.parts or prompts % self.parts or not self.early or self.runs or self.length <= self.bucket:
            return 0
        size = prompts * answers // self.parts // 2
        return size if size >= LEAST_ROWS and halved < MOST_HALVINGS else 0
