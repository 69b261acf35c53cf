"""Questions and answers from rows of a table: a local file, or a data set of the hub."""

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxrl_llm.rewards import programs, worker
from jaxrl_llm.rewards.composite import read_composite
from jaxrl_llm.rewards.finals import after_hashes, last_boxed
from jaxrl_llm.rewards.pool import GraderPool
from jaxrl_llm.spec import nearest, spelled
from jaxrl_llm.tasks._asking import Asking, Question
from jaxrl_llm.tasks._host import HostTask, host_task
from jaxrl_llm.tasks._tables import Rows, read_table

# How an answer is compared -> the grader, and what takes the truth out of the column of answers (None: all of it is).
MATCHES: Mapping[str, tuple[str, Callable[[str], str | None] | None]] = {
    "exact": ("exact", None),
    "numeric": ("numeric", None),
    "math_verify": ("math_verify", None),
    "gsm8k": ("numeric", after_hashes),
    "math": ("math_verify", last_boxed),
    "code": ("code", None),
}
MARKS = {"gsm8k": "'#### ANSWER'", "math": r"\boxed{ANSWER}"}


def rows(  # noqa: PLR0913 (what the command line can set)
    path: str,
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    match: str = "exact",
    reward: str = "correct",
    heldout: float = 0.1,
    prompt_length: int | None = None,
    answer_length: int = 64,
    tokenizer: str = "char",
    template: str = "plain",
    shots: int = 0,
    until: str = "",
    limit: str = "",
    split: str = "train",
    subset: str | None = None,
    workers: int = 2,
    seconds: float = 5.0,
    split_seed: int = 0,
) -> HostTask:
    """Reward 1 where the answer matches column `answer` of the row whose column `prompt` was asked, else 0.

    `path` is a local .json, .jsonl, .csv, .parquet or .arrow file, a folder saved by `datasets`, or a data set
    OWNER/NAME of the hub, of which `split` and `subset` choose the part. `match` is "exact" (but for white space
    around), "numeric" (the last numbers are equal), "math_verify" (equal as mathematics), "gsm8k" (the column is a
    worked solution with its answer behind "####", and the last numbers are equal), "math" (it stands in the last
    \\boxed{}, and they are equal as mathematics) or "code" (the answer is a Python program, which is run: the column
    holds its tests, JSON [[input, output], ...]; see `rewards.programs.code` before you ask for it). `reward` is a sum
    of parts of the answer, each a column of its components, such as correct+0.2*boxed-0.1*length (see `rewards.parts`).
    `heldout` is a share below 1, or a number of questions; `split_seed` chooses them. `tokenizer` is "char" (the
    characters of these rows), "sentencepiece" (trained on them), a published model or a `.model` file. `template` and
    `shots` are those of `prompting.Prompting`: a layout (plain, qa, chat, FILE.jinja), also with a prior prompt
    (chat+planning), and how many solved examples are shown in front. An answer ends with one of the ASCII texts of
    `until` too (with || between them), and is read up to it. `limit` is a column of how many tokens an answer to the
    row may have, where that is less than `answer_length`. A row may come twice, and counts once.

    Raises:
        ValueError: a name that does not exist, with the nearest one; a row that is malformed, lacks a field, has
            nothing in it, or whose answer would not match itself, with file, place and field; a row that does not fit.
        OSError: a file that cannot be read.
    """
    asking = Asking(tokenizer=tokenizer, template=template, shots=shots, until=until)
    if match not in MATCHES:
        raise ValueError(f"there is no match {match!r}{nearest(match, list(MATCHES))}")
    grader, final = MATCHES[match]
    composite = read_composite(reward)
    if grader == "math_verify" and importlib.util.find_spec("math_verify") is None:
        raise ValueError("math-verify is not installed: pip install 'jaxrl_llm[tasks]'")
    own = {"prompt": prompt, "answer": answer, "match": match, "heldout": heldout, "prompt_length": prompt_length}
    own |= {"answer_length": answer_length, "tokenizer": tokenizer, "split": split, "subset": subset}
    own |= {"reward": reward, "template": template, "shots": shots, "until": until, "limit": limit}
    spec = spelled(rows, path, own | {"workers": workers, "seconds": seconds, "split_seed": split_seed})
    columns = [prompt, answer, *([limit] if limit else [])]
    questions = _questions(read_table(path, split, subset, columns), columns)
    questions = [_with_truth(q, answer, match) for q in questions] if final else questions
    questions = _with_tests(questions, answer, shots) if match == "code" else questions
    if not questions:
        raise ValueError(f"{path}: there is no row")
    count = _heldout_count(heldout, len({q.prompt for q in questions}) - shots)
    pool = GraderPool(grader, {"seconds": seconds} if match == "code" else {}, workers, seconds)
    try:
        _require_own_match(questions, match, pool)
        made = host_task(spec, questions, asking, (prompt_length, answer_length), (count, split_seed), pool)
        return dataclasses.replace(made, reward=composite)
    except BaseException:
        pool.close()
        raise


def _heldout_count(heldout: float, questions: int) -> int:
    if 0 < heldout < 1:
        return max(1, round(heldout * questions))
    if heldout < 1 or heldout != int(heldout):
        raise ValueError(f"heldout is a share between 0 and 1 or a number of questions, not {heldout}")
    return int(heldout)


def _questions(table: Rows, columns: Sequence[str]) -> list[Question]:
    """The rows as questions, of the columns of prompts, of answers, and of limits if there is one.

    Raises ValueError for the first field that is absent or holds no text, or no limit.
    """
    found, seen, lacking = [], set(), []
    for where, row in table:
        seen |= set(row)
        lacking += [(where, column) for column in columns if column not in row]
        if not lacking:
            asked, answered, *more = (_content(row[column], f"{where}: field {column!r}") for column in columns)
            limit = _limit(more[0], f"{where}: field {columns[2]!r}") if more else None
            found.append(Question(prompt=asked, answer=answered, item={"truth": answered}, where=where, limit=limit))
    for where, column in lacking[:1]:
        if column not in seen:
            raise ValueError(f"{where}: there is no column {column!r}{nearest(column, sorted(seen))}")
        raise ValueError(f"{where}: field {column!r} is missing")
    return found


def _content(value: Any, where: str) -> str:
    if value is None:
        raise ValueError(f"{where} is empty (null)")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{where} is neither text nor a number but of type {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}, which is no number")
    text = str(value)
    if not text.strip():
        raise ValueError(f"{where} is blank")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{where} holds half a character ({text[error.start]!r} at position {error.start})") from error
    return text


def _limit(text: str, where: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text)):
        raise ValueError(f"{where} must be a number of tokens, 1 or more, not {text!r}")
    return int(text)


def _with_truth(q: Question, column: str, match: str) -> Question:
    """The question with the final answer of its worked solution as its truth."""
    truth = MATCHES[match][1](q.answer)
    if not truth:
        shown = q.answer if len(q.answer) < 80 else f"...{q.answer[-80:]}"
        raise ValueError(f"{q.where}: field {column!r} gives no final answer as {MARKS[match]}: {shown!r}")
    return dataclasses.replace(q, item={"truth": truth})


def _with_tests(questions: list[Question], column: str, shots: int) -> list[Question]:
    """The questions with the tests of their programs, of which no right one is known."""
    if shots:
        raise ValueError(f"shots={shots} shows solved examples, and match=code knows of no program that is right")
    tests: dict[str, Question] = {}
    for q in questions:
        try:
            programs.read_truth(q.item["truth"])
        except ValueError as error:
            raise ValueError(f"{q.where}: field {column!r}: {error}") from error
        earlier = tests.setdefault(q.prompt, q)
        if earlier.item != q.item:
            raise ValueError(f"{q.where} asks what {earlier.where} asks, with other tests: {q.prompt[:80]!r}")
    return [dataclasses.replace(q, answer=None) for q in questions]


def _require_own_match(questions: list[Question], match: str, pool: GraderPool) -> None:
    """Raise ValueError for the first answer that would not be right as an answer: its row could never be rewarded."""
    pairs = list(dict.fromkeys((q.answer, q.item["truth"]) for q in questions))
    grader = MATCHES[match][0]
    if grader in ("exact", "code"):
        return
    if grader == "numeric":
        numbers = [(worker.last_number(answer), worker.last_number(truth)) for answer, truth in pairs]
        right = [answer is not None and answer == truth for answer, truth in numbers]
    else:
        right = [grade == 1 for grade in pool.grade([{"answer": answer, "truth": truth} for answer, truth in pairs])]
    wrong = {pair for pair, fits in zip(pairs, right, strict=True) if not fits}
    for q in questions:
        if (q.answer, q.item["truth"]) in wrong:
            raise ValueError(f"{q.where}: the answer {q.answer[:80]!r} does not match itself under match={match}")
