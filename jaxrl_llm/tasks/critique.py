"""Questions of another task, some of them with a candidate answer to judge: `37+5=42?` -> `T`, `37+5=60?` -> `F`."""

import dataclasses
import inspect
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxrl_llm.spec import nearest
from jaxrl_llm.tasks._table import COMPONENTS, DeviceTask, GradeFn, right_or_wrong, same_tokens, table
from jaxrl_llm.tasks.addition import addition
from jaxrl_llm.tasks.digit_sort import digit_sort
from jaxrl_llm.tasks.modular_chain import modular_chain
from jaxrl_llm.tokenizers import CharTokenizer
from jaxrl_llm.types import Grade, Problems

BASES = {function.__name__: function for function in (addition, digit_sort, modular_chain)}
ASK, RIGHT, WRONG = "?", "T", "F"

Questions = list[tuple[str, str]]


def critique(base: str, share: float = 0.2, **options: int) -> DeviceTask:
    """The task `base`, where a `share` of the questions shows an answer and asks whether it is right: T or F.

    `base` is addition, digit_sort or modular_chain, and `options` are its own arguments (`critique:addition,digits=3`).
    The share holds in train and in held-out alike, to the nearest whole number, and takes the place of the question
    itself. Half of the answers shown are the right one, the others are right answers to other questions of train, and
    differ; where their number is odd, one more is wrong. So guessing earns 1/2, and so does always saying the same:
    a group that guesses has noise for its credit, and labels out of balance would pay a constant answer more. No
    held-out question is in train, neither asked nor shown with an answer.

    Components: correct; format, which is T or F and the end where an answer is shown, else that of `base`.
    Critique-Coder, arXiv 2509.22824, where the share is 0.2.

    Raises:
        ValueError: another base, an option that it does not have or refuses, a share outside 0 ... 1, or a train table
            where all answers are the same.
    """
    if base not in BASES:
        raise ValueError(f"base must be a task with one right answer, not {base!r}{nearest(base, sorted(BASES))}")
    for name in options:
        if name not in (known := inspect.signature(BASES[base]).parameters):
            raise ValueError(f"{base} has no argument {name!r}{nearest(name, sorted(known))}")
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, not {share!r}")
    task = BASES[base](**options)
    head, *changed = task.spec.split(",")
    own = [] if share == inspect.signature(critique).parameters["share"].default else [f"share={share}"]
    tokenizer = CharTokenizer(task.tokenizer.alphabet + ASK + RIGHT + WRONG)
    train, heldout = (_texts(task, part) for part in (task.train, task.heldout))
    lengths = task.train.prompt.shape[1] + task.answer_length, max(task.answer_length, 2)
    seed = options.get("split_seed", 0)

    def part(questions: Questions, side: int) -> Problems:
        # Not the bits of `_table.draw`, which made the order of the questions.
        made, shown = _with_critiques(questions, share, [answer for _, answer in train], np.random.PCG64([seed, side]))
        problems = table(tokenizer, made, lengths)
        return dataclasses.replace(problems, truth={**problems.truth, "critique": jnp.asarray(shown)})

    return DeviceTask(
        spec=",".join([f"critique:{head}", *own, *changed]),
        tokenizer=tokenizer,
        train=part(train, 1),
        heldout=part(heldout, 2),
        answer_length=lengths[1],
        component_names=COMPONENTS,
        grade_fn=_grader(tokenizer),
    )


def _texts(task: DeviceTask, problems: Problems) -> Questions:
    """The questions and right answers of a table."""
    prompt, solution = np.asarray(problems.prompt).tolist(), np.asarray(problems.solution).tolist()
    return [(task.tokenizer.decode(p), task.tokenizer.decode(s)) for p, s in zip(prompt, solution, strict=True)]


def _with_critiques(
    questions: Questions, share: float, answers: list[str], bits: np.random.PCG64
) -> tuple[Questions, Bool[np.ndarray, " N"]]:
    """The questions, where a share of random ones is a critique, and which ones are. `answers`: what may be shown."""
    count = round(share * len(questions))
    chosen = np.argsort(bits.random_raw(len(questions)), kind="stable")[:count]
    right, wrong = chosen[: count // 2], chosen[count // 2 :]
    true, pool = np.asarray([answer for _, answer in questions]), np.asarray(answers)
    if count and (pool == pool[0]).all():
        raise ValueError("all answers in train are the same, so there is no wrong one to show")
    candidate, redraw = true.astype(np.result_type(true, pool)), wrong
    while redraw.size:
        candidate[redraw] = pool[bits.random_raw(redraw.size) % len(pool)]
        redraw = redraw[candidate[redraw] == true[redraw]]
    made = list(questions)
    for rows, label in ((right, RIGHT), (wrong, WRONG)):
        for row in rows:
            made[row] = (f"{questions[row][0]}{candidate[row]}{ASK}", label)
    return made, np.isin(np.arange(len(questions)), chosen)


def _grader(tokenizer: CharTokenizer) -> GradeFn:
    same, labels = same_tokens(tokenizer), jnp.asarray(tokenizer.encode(RIGHT + WRONG))

    def grade(answer: Int[Array, "P G T"], acted: Bool[Array, "P G T"], truth: Mapping[str, Array]) -> Grade:
        plain = same(answer, acted, truth)
        judged = jnp.isin(answer[..., 0], labels) & (answer[..., 1] == tokenizer.eos)
        judged = judged & acted[..., 0] & acted[..., 1] & (jnp.sum(acted, axis=-1) == 2)
        shown = truth["critique"][:, None]
        formed = jnp.where(shown, judged, plain.components[..., COMPONENTS.index("format")] > 0)
        return right_or_wrong(plain.reward > 0, formed)

    return grade
