"""Tasks graded outside JAX: questions as text, and answers as text to a pool of grader processes.

questions  ->  tokenizer  ->  split  ->  Problems, whose truth is the index of the question
ids [P G T]  ->  texts [P][G]  ->  pool  ->  Grade [P G]
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Int

from jaxrl_llm.prompting import Prompting, stops_of
from jaxrl_llm.rewards.composite import Composite
from jaxrl_llm.rewards.pool import GraderPool
from jaxrl_llm.rollouts.stopping import LIMIT, StopStrings
from jaxrl_llm.tasks._asking import Asking, Question, make_tokenizer, pad, require_fit, require_reachable
from jaxrl_llm.tokenizers import decode_answers
from jaxrl_llm.types import Grade, Problems, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class HostTask:
    """A `types.Task` graded by processes that can be killed; compared by identity.

    `items[row]` is what the grader is told of the question whose truth is `row`. `counts` are the answers without a
    grade so far, by cause (see `GraderPool`). `duplicates` questions were left out because they were asked already.
    `prompting` says how a question is asked and what of a text is its answer; `reward` says what an answer earns.
    A text among `strings` ends an answer as a token among `stops` does, and is not read.
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
    strings: StopStrings | None = None
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
        finished = _finished(answer, acted, self.stops, self.strings)
        asked = {(p, g): (int(rows[p]), self.read(texts[p][g])) for p, g in np.argwhere(finished).tolist()}
        distinct = list(dict.fromkeys(asked.values()))  # a group often says the same thing many times
        grades = self.pool.grade([{**self.items[row], "answer": text} for row, text in distinct])
        graded = dict(zip(distinct, grades, strict=True))
        correct, valid = np.zeros(finished.shape, np.float32), np.ones(finished.shape, bool)
        for place, question in asked.items():
            valid[place] = graded[question] is not None
            correct[place] = graded[question] or 0.0
        return self.reward.grade(texts, correct, valid, finished, acted.sum(axis=-1), answer.shape[-1])

    def read(self, text: str) -> str:
        """The answer in a decoded text."""
        return self.prompting.read(self.strings.cut(text) if self.strings else text)

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
    answer: Int[np.ndarray, "P G T"],
    acted: Bool[np.ndarray, "P G T"],
    stops: tuple[int, ...],
    strings: StopStrings | None,
) -> Bool[np.ndarray, "P G"]:
    """True where exactly one acted token is among `stops` or completes a string, and none is acted after it."""
    ends = acted & np.isin(answer, stops)
    if strings:
        ends |= strings.completed_by(answer, acted)
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
    made, prompts, answers = _tokens(kept, prompting, asking)
    wanted, T = lengths
    L = max(len(prompts[row]) for row in order) if wanted is None else wanted
    require_fit("prompt", [prompts[row] for row in order], L, [kept[row] for row in order])
    require_fit("answer", answers, T, kept)
    limits = np.asarray([min(q.limit or T, T) for q in kept], np.int32)
    require_reachable(kept, answers, limits, asking)
    limited = any(q.limit for q in kept)

    def table(rows: Int[np.ndarray, " N"]) -> Problems:
        prompt, prompt_mask = pad([prompts[row] for row in rows], L, made.pad, left=True)
        solution, solution_mask = pad([answers[row] for row in rows], T, made.pad, left=False)
        return Problems(
            prompt=jnp.asarray(prompt),
            prompt_mask=jnp.asarray(prompt_mask),
            solution=jnp.asarray(solution),
            solution_mask=jnp.asarray(solution_mask),
            truth={"row": jnp.asarray(rows)} | ({LIMIT: jnp.asarray(limits[rows])} if limited else {}),
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
        strings=StopStrings.of(made, asking.strings) if asking.strings else None,
    )


def _tokens(
    kept: Sequence[Question], prompting: Prompting, asking: Asking
) -> tuple[Tokenizer, list[list[int]], list[list[int]]]:
    """The tokenizer, and the tokens of all prompts and of all answers with what ends them."""
    written = [None if q.answer is None else prompting.answer(q.answer) for q in kept]
    texts = [] if prompting.layout == "chat" else [prompting.text(q.prompt) for q in kept]
    end = "\n" if prompting.by_line else ""
    made = make_tokenizer(
        asking.tokenizer, [*texts, *(text for text in written if text is not None), end, *asking.strings]
    )
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
