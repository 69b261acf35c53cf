"""What a task graded as text asks, and how questions become tokens; nothing is ever cut to fit."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from jaxrl_llm.prompting import Prompting
from jaxrl_llm.published import is_published, locate, tokenizer_of
from jaxrl_llm.spec import nearest
from jaxrl_llm.tokenizers import CharTokenizer, load_sentencepiece, smallest_vocabulary, train_sentencepiece
from jaxrl_llm.types import Tokenizer

PIECES = 512
"""How many pieces longer than a character a tokenizer may have that is trained on a task's own text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, one right answer (None: none is known), what the grader must be told, and where it comes from."""

    prompt: str
    answer: str | None
    item: Mapping[str, Any]
    where: str
    limit: int | None = None  # tokens that an answer may have; None: as many as any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions become tokens: a tokenizer by its name, a template, and how many solved examples are shown.

    The examples are questions that are neither trained on nor held out. Raises as `Prompting` and `require_tokenizer`.
    """

    tokenizer: str
    template: str = "plain"
    shots: int = 0
    until: str = ""  # texts that end an answer, as EOS does, with || between them

    def __post_init__(self):
        require_tokenizer(self.tokenizer)
        if self.shots < 0:
            raise ValueError(f"shots must be 0 or more, not {self.shots}")
        if any(not (string and string.isascii()) for string in self.strings):
            raise ValueError(f"until must be ASCII texts with || between them, not {self.until!r}")
        self.prompting  # noqa: B018 (a template that does not exist is an error now)

    @property
    def prompting(self) -> Prompting:
        """The template, before it has its examples."""
        return Prompting(template=self.template)

    @property
    def strings(self) -> tuple[str, ...]:
        """The texts that end an answer."""
        return tuple(self.until.split("||")) if self.until else ()


def require_tokenizer(choice: str) -> None:
    """Raise ValueError unless `make_tokenizer` knows the choice, and OSError where its file is missing or damaged."""
    if choice.endswith(".model"):
        load_sentencepiece(choice)
    elif is_published(choice):
        locate(choice)
    elif choice not in ("char", "sentencepiece"):
        known = nearest(choice, ["char", "sentencepiece"])
        raise ValueError(
            f"there is no tokenizer {choice!r}{known}; or give a published model's folder or .gguf file, or a "
            f"SentencePiece .model file"
        )


def make_tokenizer(choice: str, texts: Sequence[str]) -> Tokenizer:
    """`char`: the characters of the texts; `sentencepiece`: trained on them; else that of a model or a .model file."""
    require_tokenizer(choice)
    if choice == "char":
        return CharTokenizer("".join(sorted(set().union(*texts))))
    if choice == "sentencepiece":
        return train_sentencepiece(texts, smallest_vocabulary(texts) + PIECES)
    return load_sentencepiece(choice) if choice.endswith(".model") else tokenizer_of(choice)


def require_fit(name: str, ids: Sequence[Sequence[int]], length: int, questions: Sequence[Question]) -> None:
    """Nothing is ever cut to fit: a cut prompt is another question, and a cut answer a wrong one."""
    sizes = [len(row) for row in ids]
    over = sum(size > length for size in sizes)
    if over:
        longest = max(sizes)
        raise ValueError(
            f"{over} of {len(ids)} {name}s are longer than {name}_length={length}; the longest has {longest} tokens "
            f"({questions[sizes.index(longest)].where}): give {name}_length={longest}, or leave those out"
        )


def require_reachable(
    kept: Sequence[Question], answers: Sequence[Sequence[int]], limits: Int[np.ndarray, " N"], asking: Asking
) -> None:
    """Raise ValueError for the first answer that would be cut: it could never be given."""
    for q, ids, limit in zip(kept, answers, limits, strict=True):
        held = [string for string in asking.strings if string in asking.prompting.answer(q.answer or "")]
        if held:
            raise ValueError(f"{q.where}: the answer holds {held[0]!r}, which ends it (until={asking.until})")
        if len(ids) > limit:
            raise ValueError(f"{q.where}: the answer has {len(ids)} tokens and its limit is {limit}")


def pad(
    rows: Sequence[Sequence[int]], length: int, pad: int, *, left: bool
) -> tuple[Int[np.ndarray, "N S"], Bool[np.ndarray, "N S"]]:
    """Ids [N S] and their mask [N S], padded on the left or on the right."""
    sizes = np.asarray([len(row) for row in rows])[:, None]
    places = np.arange(length)[None, :]
    mask = places >= length - sizes if left else places < sizes
    ids = np.full(mask.shape, pad, np.int32)
    ids[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return ids, mask
