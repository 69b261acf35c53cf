"""Held-out evaluation: greedy accuracy, unbiased pass@k, majority vote, and the best constant answer."""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxrl_llm import heartbeat, random
from jaxrl_llm.grading import graded
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.rollouts.generate import Answers, generate
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping, limits
from jaxrl_llm.sharding import by_prompt, fetch, place, prompt_shards
from jaxrl_llm.types import Grade, Problems, Task


def pass_at_k(correct: np.ndarray, samples: int, k: int) -> float:
    """Mean over problems of 1 - C(n-c, k)/C(n, k), c of n samples correct: unbiased for k <= n (Chen et al., 2021)."""
    if not 1 <= k <= samples:
        raise ValueError(f"k must be from 1 to {samples} (the samples per problem), not {k}")
    return float(np.mean([1 - math.comb(samples - int(c), k) / math.comb(samples, k) for c in correct]))


def majority(answers: np.ndarray, right: np.ndarray) -> float:
    """Mean over problems of: is the most frequent of the answers [P G T] right? Ties share, so order is irrelevant."""
    shares = []
    for group, marks in zip(answers, right, strict=True):
        votes = Counter(row.tobytes() for row in group)
        most = max(votes.values())
        verdict = {row.tobytes(): bool(mark) for row, mark in zip(group, marks, strict=True)}
        winners = [answer for answer, count in votes.items() if count == most]
        shares.append(np.mean([verdict[answer] for answer in winners]))
    return float(np.mean(shares))


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Evaluates parameters on the first `problems` rows of a split, in batches of a fixed size.

    An answer is right when it is wholly correct. `decode` gives the raw material: answers and rewards of all
    problems, on the host.
    """

    policy: Policy
    task: Task
    mesh: Any
    seed: int
    problems: int
    samples: int
    split: str = "heldout"
    batch: int = 256  # problems decoded together, at most

    def __post_init__(self):
        table: Problems = getattr(self.task, self.split)
        count = min(self.problems, len(table.prompt))
        # A batch is a multiple of the shards; the last one is filled up with rows that are thrown away again.
        shards = prompt_shards(self.mesh)
        size = -(-min(self.batch, count) // shards) * shards
        object.__setattr__(self, "problems", count)
        object.__setattr__(self, "batch", size)
        object.__setattr__(self, "_decode", jax.jit(self._decode_batch, static_argnums=(3, 4)))

    @property
    def table(self) -> Problems:
        """The split that is evaluated."""
        return getattr(self.task, self.split)

    def _decode_batch(
        self, params: Params, asked: tuple[Problems, Array], step: Int[Array, ""], answers: int, rules: SamplingRules
    ) -> tuple[Answers, Grade | None]:
        table, rows = asked
        stopping = Stopping.of(self.task, parts=prompt_shards(self.mesh))
        keys = random.answer_keys(random.stream_key(self.seed, random.Stream.EVALUATION), step, rows, answers)
        out = generate(
            self.policy, params, table.prompt, table.prompt_mask, keys, rules, stopping, limits(table.truth, answers)
        )
        return out, self.task.grade(out.answer, out.acted, table.truth) if self.task.on_device else None

    def decode(self, params: Params, step: int, answers: int, rules: SamplingRules) -> tuple[Answers, Grade]:
        """Answers and grades of all problems [N G ...], as numpy."""
        outs, grades = [], []
        for start in range(0, self.problems, self.batch):
            heartbeat.beat(f"{self.split}, {answers} answers each")
            rows = np.minimum(np.arange(start, start + self.batch), self.problems - 1).astype(np.int32)
            keep = min(self.batch, self.problems - start)
            asked = jax.tree.map(lambda x, r=rows: np.asarray(x)[r], self.table), rows
            out, grade = fetch(self._decode(params, place(asked, by_prompt(self.mesh)), step, answers, rules))
            if grade is None:
                grade = graded(self.task, out.answer, out.acted, asked[0].truth)
            out = jax.tree.map(lambda x, n=keep: x[:n], out)
            outs.append(out)
            grades.append(jax.tree.map(lambda x, n=keep: x[:n], grade))
        return tuple(jax.tree.map(lambda *xs: np.concatenate(xs), *parts) for parts in (outs, grades))

    def __call__(self, params: Params, step: int) -> dict[str, float]:
        """All held-out figures under their names in the glossary. Same parameters and step: same figures."""
        greedy, marks = self.decode(params, step, 1, GREEDY)
        out, grade = self.decode(params, step, self.samples, SamplingRules())
        first, each = right(marks, self.task.component_names), right(grade, self.task.component_names)
        figures = held_out_figures(first, greedy.acted.sum(axis=-1), greedy.truncated, each.sum(axis=-1), self.samples)
        return figures | {"eval/majority": majority(np.where(out.acted, out.answer, -1), each)}


def held_out_figures(
    greedy: np.ndarray, length: np.ndarray, truncated: np.ndarray, correct: np.ndarray, samples: int
) -> dict[str, float]:
    """Figures of greedy answers (right, number of tokens, cut off), and of which of the samples `correct` were right.

    All arrays have an entry a problem.
    """
    figures = {
        "eval/accuracy": float(np.mean(greedy)),
        "eval/mean_length": float(np.mean(length)),
        "eval/clipped_ratio": float(np.mean(truncated)),
    }
    for k in sorted({1, *(2**i for i in range(1, samples.bit_length())), samples}):
        if k <= samples:
            figures[f"eval/pass@{k}"] = pass_at_k(correct, samples, k)
    return figures


def right(grade: Grade, names: Sequence[str] = ()) -> np.ndarray:
    """Which answers are right: whose component `correct` is 1 where `names` of components have it, else the reward."""
    worth = grade.components[..., list(names).index("correct")] if "correct" in names else grade.reward
    return np.asarray(grade.valid) & (np.asarray(worth) >= 1 - 1e-6)


def best_constant(task: Task, problems: int, candidates: int = 64) -> tuple[float, str] | None:
    """The accuracy of the best answer that ignores the problem, over held-out problems, and that answer.

    Candidates are the most frequent solutions of both splits. A policy that collapses to one answer earns this much,
    so an accuracy means something only above it. None where the task knows no solutions.
    """
    votes: Counter = Counter()
    for table in (task.heldout, task.train):
        solution, mask = np.asarray(table.solution), np.asarray(table.solution_mask)
        votes.update(tuple(row[keep].tolist()) for row, keep in zip(solution, mask, strict=True) if keep.any())
    if not votes:
        return None
    chosen = [list(answer) for answer, _ in votes.most_common(candidates if task.on_device else 8)]
    rows = np.arange(min(problems, len(task.heldout.prompt)))
    answer = np.zeros((len(rows), len(chosen), task.answer_length), np.int32)
    acted = np.zeros(answer.shape, bool)
    for i, ids in enumerate(chosen):
        answer[:, i, : len(ids)], acted[:, i, : len(ids)] = ids, True
    truth = {name: x[rows] for name, x in task.heldout.truth.items()}
    if task.on_device:
        grade = fetch(jax.jit(task.grade)(jnp.asarray(answer), jnp.asarray(acted), truth))
    else:
        grade = graded(task, answer, acted, {name: np.asarray(x) for name, x in truth.items()})
    accuracy = right(grade, task.component_names).mean(axis=0)
    best = int(np.argmax(accuracy))
    return float(accuracy[best]), task.tokenizer.decode(chosen[best])
