"""Any data set of reasoning-gym, by name, with its own scorer.

The library is imported in the grader processes only: it takes seconds and much memory, and its names and options can be
read from its source, so that a typing error is refused at once.
"""

import ast
import dataclasses
import importlib.util
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.rewards.composite import read_composite
from jaxrl_llm.rewards.pool import GraderPool
from jaxrl_llm.spec import nearest, spelled
from jaxrl_llm.tasks._asking import Asking, Question
from jaxrl_llm.tasks._host import HostTask, host_task

CHUNK = 32
"""Questions made at a time."""

MAKING = 600.0
"""Seconds that a chunk may take: the slowest data sets make about two questions a second."""

DRAWS = 4
"""Questions drawn for each one wanted, at most, since some come twice."""

EVALUATE = ("eval", "exec", "compile", "parse_expr", "sympify")
"""What runs a text as code."""

SEEDS = 2000
"""Split seeds. Item i of a data set is drawn from its seed + i, so seeds must lie far apart to give other questions."""


def reasoning_gym(  # noqa: PLR0913 (what the command line can set)
    name: str,
    *,
    size: int = 2000,
    heldout: int = 200,
    prompt_length: int | None = None,
    answer_length: int = 32,
    tokenizer: str = "char",
    template: str = "plain",
    shots: int = 0,
    until: str = "",
    workers: int = 2,
    seconds: float = 5.0,
    threshold: float = 1.0,
    reward: str = "correct",
    split_seed: int = 0,
    **task_options: Any,
) -> HostTask:
    """Reward 1 where the data set's scorer gives at least `threshold`, else 0; with threshold 0 the score itself.

    Many scorers give junk a little (0.01 to 0.2), which is why the default asks for the full score. `size` questions to
    train on and `heldout` others, all different; `split_seed` chooses both. `tokenizer` is "char" (the characters of
    these questions), "sentencepiece" (trained on them), a published model or a `.model` file. `template` and `shots`
    are those of `prompting.Prompting`: a layout (plain, qa, chat, FILE.jinja), also with a prior prompt
    (chat+planning), and how many solved examples are shown in front. `task_options` are the fields of the data set's
    configuration. An answer ends with one of the ASCII texts of `until` too (with || between them), and is read up to
    that text. Each answer is graded within `seconds`, in one of `workers` processes. `reward` is a sum of parts of the
    answer, such as correct-0.1*length (see `rewards.parts`).

    Raises:
        ValueError: a data set whose scorer evaluates answers as code, a data set or option that does not exist, an
            option's value that the data set refuses, fewer different questions than wanted, a question or answer that
            does not fit, or reasoning-gym is missing.
    """
    asking = Asking(tokenizer=tokenizer, template=template, shots=shots, until=until)
    _require_options(name, task_options)
    if size < 1 or heldout < 1 or not 0 <= split_seed < SEEDS or not 0 <= threshold <= 1:
        raise ValueError(f"size and heldout start at 1, split_seed is below {SEEDS}, and threshold is from 0 to 1")
    own = {"size": size, "heldout": heldout, "prompt_length": prompt_length, "answer_length": answer_length}
    own |= {"tokenizer": tokenizer, "workers": workers, "seconds": seconds, "threshold": threshold, "reward": reward}
    own |= {"template": template, "shots": shots, "until": until}
    composite = read_composite(reward)
    spec = spelled(reasoning_gym, name, own | {"split_seed": split_seed} | task_options)
    wanted = size + heldout + shots
    draws = DRAWS * wanted
    config = {**task_options, "seed": split_seed * 1_000_000, "size": draws}
    pool = GraderPool("reasoning_gym", {"name": name, "config": config, "threshold": threshold}, workers, seconds)
    try:
        questions = _questions(name, pool, wanted, draws)
        made = host_task(spec, questions, asking, (prompt_length, answer_length), (heldout, split_seed), pool)
        return dataclasses.replace(made, reward=composite)
    except BaseException:
        pool.close()
        raise


def _questions(name: str, pool: GraderPool, wanted: int, draws: int) -> list[Question]:
    """The first `wanted` different questions among the first `draws` of the data set."""
    found: dict[str, Question] = {}
    round_ = CHUNK * 8
    for begin in range(0, draws, round_):
        starts = range(begin, min(begin + round_, draws), CHUNK)
        chunks = [{"problems": [start, min(start + CHUNK, draws)]} for start in starts]
        for chunk, problems in zip(chunks, pool.ask(chunks, MAKING), strict=True):
            if problems is None:
                raise ValueError(f"reasoning-gym cannot make {name}: {pool.last_error}")
            for index, (prompt, answer) in enumerate(problems, chunk["problems"][0]):
                item = {"index": index, "question": prompt}
                new = Question(prompt=prompt, answer=answer, item=item, where=f"{name} number {index}")
                found.setdefault(prompt, new)
        if len(found) >= wanted:
            return list(found.values())[:wanted]
    raise ValueError(
        f"{name} with these options has {len(found)} different questions among {draws} drawn: "
        f"size + heldout can be at most {len(found)}"
    )


def _require_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise ValueError for a data set or an option that does not exist, without importing the library."""
    sources = _sources()
    if name not in sources:
        raise ValueError(f"reasoning-gym has no data set {name!r}{nearest(name, sorted(sources))}")
    _require_no_code(name, sources[name])
    fields = _fields(name, sources[name])
    for option in options:
        if option == "seed":
            raise ValueError("seed is not set directly: use split_seed")
        if option not in fields:
            choices = sorted({*fields, "heldout", "prompt_length", "answer_length", "split_seed", "threshold"})
            raise ValueError(f"{name} has no option {option!r}{nearest(option, choices)}")


def _require_no_code(name: str, file: pathlib.Path) -> None:
    """Raise ValueError for a scorer that evaluates the answer: it is a model's text, and would run in the grader."""
    for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        arguments = [a.arg for a in function.args.args] if isinstance(function, ast.FunctionDef) else []
        for call in ast.walk(function) if "answer" in arguments else ():
            called = getattr(call.func, "id", getattr(call.func, "attr", "")) if isinstance(call, ast.Call) else ""
            if called in EVALUATE and any(getattr(a, "id", "") == "answer" for a in call.args):
                raise ValueError(
                    f"{name} is refused: its scorer evaluates the answer as code ({called}, line {call.lineno} of "
                    f"{file.name}), and answers are a model's text"
                )


def _sources() -> dict[str, pathlib.Path]:
    """The source file of each data set, by name."""
    package = importlib.util.find_spec("reasoning_gym")
    if package is None or package.origin is None:
        raise ValueError("reasoning-gym is not installed: pip install 'jaxrl_llm[tasks]'")
    found = {}
    for file in sorted(pathlib.Path(package.origin).parent.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if "register_dataset(" in text:
            names = re.findall(r'^(?:DATASET_NAME = |register_dataset\(\s*)"(\w+)"', text, re.MULTILINE)
            found |= dict.fromkeys(names, file)
    return found


def _fields(name: str, file: pathlib.Path) -> set[str]:
    """Fields of the configuration class that the file registers with its data set."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    classes = {node.name: node for node in body if isinstance(node, ast.ClassDef)}
    for node in body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "register_dataset":
            config = classes[call.args[2].id]
            return {field.target.id for field in config.body if isinstance(field, ast.AnnAssign)}
    raise ValueError(f"cannot read the options of {name} in {file}")
