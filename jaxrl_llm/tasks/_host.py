"""Tasks graded outside JAX: questions as text, and answers as text to a pool of grader processes.

questions  ->  tokenizer  ->  split  ->  Problems, whose truth is the index of the question
ids [P G T]  ->  texts [P][G]  ->  pool  ->  Grade [P G]
"""

import dataclasses
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxrl_llm.prompting import Prompting, stops_of
from jaxrl_llm.published import is_published, locate, tokenizer_of
from jaxrl_llm.rewards.composite import Composite
from jaxrl_llm.rewards.pool import GraderPool
from jaxrl_llm.spec import nearest
from jaxrl_llm.tokenizers import (
    CharTokenizer,
    decode_answers,
    load_sentencepiece,
    smallest_vocabulary,
    train_sentencepiece,
)
from jaxrl_llm.types import Grade, Problems, Tokenizer

PIECES = 512
"""How many pieces longer than a character a tokenizer may have that is trained on a task's own text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt, one right answer (None: none is known), what the grader must be told, and where it comes from."""

    prompt: str
    answer: str | None
    item: Mapping[str, Any]
    where: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asking:
    """How questions become tokens: a tokenizer by its name, a template, and how many solved examples are shown.

    The examples are questions that are neither trained on nor held out. Raises as `Prompting` and `require_tokenizer`.
    """

    tokenizer: str
    template: str = "plain"
    shots: int = 0

    def __post_init__(self):
        require_tokenizer(self.tokenizer)
        if self.shots < 0:
            raise ValueError(f"shots must be 0 or more, not {self.shots}")
        self.prompting  # noqa: B018 (a template that does not exist is an error now)

    @property
    def prompting(self) -> Prompting:
        """The template, before it has its examples."""
        return Prompting(template=self.template)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HostTask:
    """A `types.Task` graded by processes that can be killed; compared by identity.

    `items[row]` is what the grader is told of the question whose truth is `row`. `counts` are the answers without a
    grade so far, by cause (see `GraderPool`). `duplicates` questions were left out because they were asked already.
    `prompting` says how a question is asked and what of a text is its answer; `reward` says what an answer earns.
    """

    spec: str
    tokenizer: Tokenizer
    train: Problems
    heldout: Problems
    answer_length: int
    items: Sequence[Mapping[str, Any]]
    pool: GraderPool
    stops: tuple[int, ...]
    prompting: Prompting
    duplicates: int = 0
    reward: Composite = dataclasses.field(default_factory=Composite)
    on_device: bool = False

    def grade(self, answer: Any, acted: Any, truth: Mapping[str, Any]) -> Grade:
        """Grades of answers [P G T], tokens where `acted` [P G T], to the questions truth["row"] [P].

        The reward is made of what the grader says of the text (`correct`), and of other parts. An answer counts only
        when it is finished, that is when its last token is the only one that ends an answer: any other is wrong (0),
        unread. An answer that the grader could not grade is not valid, and has reward 0.
        """
        answer, acted, rows = np.asarray(answer), np.asarray(acted), np.asarray(truth["row"])
        texts = decode_answers(self.tokenizer, answer, acted)
        finished = _finished(answer, acted, self.stops)
        read = self.prompting.read
        asked = {(p, g): (int(rows[p]), read(texts[p][g])) for p, g in np.argwhere(finished).tolist()}
        distinct = list(dict.fromkeys(asked.values()))  # a group often says the same thing many times
        grades = self.pool.grade([{**self.items[row], "answer": text} for row, text in distinct])
        graded = dict(zip(distinct, grades, strict=True))
        correct, valid = np.zeros(finished.shape, np.float32), np.ones(finished.shape, bool)
        for place, question in asked.items():
            valid[place] = graded[question] is not None
            correct[place] = graded[question] or 0.0
        return self.reward.grade(texts, correct, valid, finished, acted.sum(axis=-1), answer.shape[-1])

    @property
    def component_names(self) -> tuple[str, ...]:
        """The parts of the reward."""
        return self.reward.names

    @property
    def counts(self) -> Mapping[str, int]:
        """How many answers had no grade so far, by cause."""
        return dict(self.pool.counts)

    def close(self) -> None:
        """End the grader processes; they end with the task or the program otherwise."""
        self.pool.close()


def _finished(
    answer: Int[np.ndarray, "P G T"], acted: Bool[np.ndarray, "P G T"], stops: tuple[int, ...]
) -> Bool[np.ndarray, "P G"]:
    """True where exactly one acted token is among `stops`, and none is acted after it."""
    ends = acted & np.isin(answer, stops)
    behind = np.cumsum(ends, -1) - ends > 0
    return ends.any(-1) & ~(acted & behind).any(-1)


def host_task(
    spec: str,
    questions: Sequence[Question],
    asking: Asking,
    lengths: tuple[int | None, int],
    split: tuple[int, int],
    pool: GraderPool,
) -> HostTask:
    """The task of these questions. `lengths` is (L or None for the longest prompt, T), `split` (held-out, seed).

    Questions asked before are left out. Raises ValueError where a question is spelled too long or not at all, where
    one is asked twice with two answers, and where no question would be left to train on.
    """
    kept = _asked_once(questions)
    heldout, seed = split
    draws = random.Random(seed)
    order = np.argsort([draws.random() for _ in kept], kind="stable").astype(np.int32)
    shown = [row for row in order.tolist() if kept[row].answer is not None][: asking.shots]
    left = len(kept) - len(shown)
    if left < 2:
        raise ValueError(f"two different questions are needed, one of them to hold out, and there is {left}")
    if not 1 <= heldout < left:
        raise ValueError(f"heldout must be from 1 to {left - 1} of these {left} questions, not {heldout}")
    order = order[~np.isin(order, shown)]
    prompting = dataclasses.replace(asking.prompting, shots=tuple((kept[i].prompt, kept[i].answer) for i in shown))
    made, prompts, answers = _tokens(kept, prompting, asking.tokenizer)
    wanted, T = lengths
    L = max(len(prompts[row]) for row in order) if wanted is None else wanted
    _require_fit("prompt", [prompts[row] for row in order], L, [kept[row] for row in order])
    _require_fit("answer", answers, T, kept)

    def table(rows: Int[np.ndarray, " N"]) -> Problems:
        prompt, prompt_mask = _pad([prompts[row] for row in rows], L, made.pad, left=True)
        solution, solution_mask = _pad([answers[row] for row in rows], T, made.pad, left=False)
        return Problems(
            prompt=jnp.asarray(prompt),
            prompt_mask=jnp.asarray(prompt_mask),
            solution=jnp.asarray(solution),
            solution_mask=jnp.asarray(solution_mask),
            truth={"row": jnp.asarray(rows)},
        )

    return HostTask(
        spec=spec,
        tokenizer=made,
        train=table(order[heldout:]),
        heldout=table(order[:heldout]),
        answer_length=T,
        items=[q.item for q in kept],
        pool=pool,
        stops=stops_of(made, by_line=prompting.by_line),
        prompting=prompting,
        duplicates=len(questions) - len(kept),
    )


def _tokens(
    kept: Sequence[Question], prompting: Prompting, choice: str
) -> tuple[Tokenizer, list[list[int]], list[list[int]]]:
    """The tokenizer, and the tokens of all prompts and of all answers with what ends them."""
    written = [None if q.answer is None else prompting.answer(q.answer) for q in kept]
    texts = [] if prompting.layout == "chat" else [prompting.text(q.prompt) for q in kept]
    end = "\n" if prompting.by_line else ""
    made = make_tokenizer(choice, [*texts, *(text for text in written if text is not None), end])
    stop = made.encode(end)[-1] if end else made.eos
    prompts, answers = [], []
    for q, text in zip(kept, written, strict=True):
        try:
            prompts.append(prompting.ids(made, q.prompt))
            answers.append([] if text is None else [*made.encode(text), stop])
        except ValueError as error:
            raise ValueError(f"{q.where}: {error}") from error
    return made, prompts, answers


def _asked_once(questions: Sequence[Question]) -> list[Question]:
    first: dict[str, Question] = {}
    for q in questions:
        earlier = first.setdefault(q.prompt, q)
        if earlier.answer != q.answer:
            raise ValueError(f"{q.where} asks what {earlier.where} asks, with another answer: {q.prompt[:80]!r}")
    return list(first.values())


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


def _require_fit(name: str, ids: Sequence[Sequence[int]], length: int, questions: Sequence[Question]) -> None:
    """Nothing is ever cut to fit: a cut prompt is another question, and a cut answer a wrong one."""
    sizes = [len(row) for row in ids]
    over = sum(size > length for size in sizes)
    if over:
        longest = max(sizes)
        raise ValueError(
            f"{over} of {len(ids)} {name}s are longer than {name}_length={length}; the longest has {longest} tokens "
            f"({questions[sizes.index(longest)].where}): give {name}_length={longest}, or leave those out"
        )


def _pad(
    rows: Sequence[Sequence[int]], length: int, pad: int, *, left: bool
) -> tuple[Int[np.ndarray, "N S"], Bool[np.ndarray, "N S"]]:
    """Ids [N S] and their mask [N S], padded on the left or on the right."""
    sizes = np.asarray([len(row) for row in rows])[:, None]
    places = np.arange(length)[None, :]
    mask = places >= length - sizes if left else places < sizes
    ids = np.full(mask.shape, pad, np.int32)
    ids[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return ids, mask


def spelled(function: Callable[..., Any], argument: str, values: Mapping[str, Any]) -> str:
    """`name:argument,key=value,...` as `spec.build` reads it, without the values that are the function's own defaults.

    Raises ValueError for a value that cannot be written down so: text with a comma, lists, text that looks like a
    number where the function does not say that it takes text.
    """
    parameters = inspect.signature(function).parameters
    words = [f"{function.__name__}:{argument}"]
    for key, value in sorted(values.items()):
        known = key in parameters
        if known and value == parameters[key].default:
            continue
        if not isinstance(value, str | int | float) or (isinstance(value, str) and not known and _looks_typed(value)):
            raise ValueError(f"{key} takes true, false, a number or a word, not {value!r}")
        words.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    for word in words:
        if "," in word:
            raise ValueError(f"{word!r} holds a comma, and could not be given on a command line")
    return ",".join(words)


def _looks_typed(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false", "True", "False")
    return True
