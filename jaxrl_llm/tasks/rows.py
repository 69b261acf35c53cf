"""Questions and answers from rows of a table: a local file, or a data set of the hub.

Parquet files and hub names are read by the `datasets` library. Text files (.json, .jsonl, .csv) are not: its readers
guess types, and 007 would become 7, NA nothing, a long integer a rounded float and an ISO date a time stamp, before
anyone had seen the answer. They are read here, strictly, and a number keeps its spelling.
"""

import csv
import importlib.util
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxrl_llm.published import HUB_NAME
from jaxrl_llm.rewards import worker
from jaxrl_llm.rewards.pool import GraderPool
from jaxrl_llm.spec import nearest
from jaxrl_llm.tasks._host import Asking, HostTask, Question, host_task, spelled

MATCHES = ("exact", "numeric", "math_verify")

Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Where a row stands, for messages, and its fields."""


def rows(  # noqa: PLR0913 (what the command line can set)
    path: str,
    *,
    prompt: str = "prompt",
    answer: str = "answer",
    match: str = "exact",
    heldout: float = 0.1,
    prompt_length: int | None = None,
    answer_length: int = 64,
    tokenizer: str = "char",
    template: str = "plain",
    shots: int = 0,
    split: str = "train",
    subset: str | None = None,
    workers: int = 2,
    seconds: float = 5.0,
    split_seed: int = 0,
) -> HostTask:
    """Reward 1 where the answer matches column `answer` of the row whose column `prompt` was asked, else 0.

    `path` is a local .json, .jsonl, .csv or .parquet file, or a data set OWNER/NAME of the hub, of which `split` and
    `subset` choose the part. `match` is "exact" (but for white space around), "numeric" (the last numbers are equal)
    or "math_verify" (equal as mathematics). `heldout` is a share below 1, or a number of questions; `split_seed`
    chooses them. `tokenizer` is "char" (the characters of these rows), "sentencepiece" (trained on them), a published
    model or a `.model` file. `template` and `shots` are those of `prompting.Prompting`: a layout (plain, qa, chat,
    FILE.jinja), also with a prior prompt (chat+planning), and how many solved examples are shown in front. A row may
    come twice, and counts once.

    Raises:
        ValueError: a name that does not exist, with the nearest one; a row that is malformed, lacks a field, has
            nothing in it, or whose answer would not match itself, with file, place and field; a row that does not fit.
        OSError: a file that cannot be read.
    """
    asking = Asking(tokenizer=tokenizer, template=template, shots=shots)
    if match not in MATCHES:
        raise ValueError(f"there is no match {match!r}{nearest(match, list(MATCHES))}")
    if match == "math_verify" and importlib.util.find_spec("math_verify") is None:
        raise ValueError("math-verify is not installed: pip install 'jaxrl_llm[tasks]'")
    own = {"prompt": prompt, "answer": answer, "match": match, "heldout": heldout, "prompt_length": prompt_length}
    own |= {"answer_length": answer_length, "tokenizer": tokenizer, "split": split, "subset": subset}
    spec = spelled(
        rows,
        path,
        own
        | {"workers": workers, "seconds": seconds, "split_seed": split_seed}
        | {"template": template, "shots": shots},
    )
    questions = _questions(_read(path, split, subset, (prompt, answer)), prompt, answer)
    if not questions:
        raise ValueError(f"{path}: there is no row")
    count = _heldout_count(heldout, len({q.prompt for q in questions}) - shots)
    pool = GraderPool(match, {}, workers, seconds)
    try:
        _require_own_match(questions, match, pool)
        return host_task(spec, questions, asking, (prompt_length, answer_length), (count, split_seed), pool)
    except BaseException:
        pool.close()
        raise


def _heldout_count(heldout: float, questions: int) -> int:
    if 0 < heldout < 1:
        return max(1, round(heldout * questions))
    if heldout < 1 or heldout != int(heldout):
        raise ValueError(f"heldout is a share between 0 and 1 or a number of questions, not {heldout}")
    return int(heldout)


def _questions(table: Rows, prompt: str, answer: str) -> list[Question]:
    """The rows as questions. Raises ValueError for the first field that is absent or holds no text."""
    found, seen, lacking = [], set(), []
    for where, row in table:
        seen |= set(row)
        lacking += [(where, column) for column in (prompt, answer) if column not in row]
        if not lacking:
            asked, answered = (_content(row[column], f"{where}: field {column!r}") for column in (prompt, answer))
            found.append(Question(prompt=asked, answer=answered, item={"truth": answered}, where=where))
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


def _require_own_match(questions: list[Question], match: str, pool: GraderPool) -> None:
    """Raise ValueError for the first truth that would not be right as an answer: its row could never be rewarded."""
    truths = list(dict.fromkeys(q.item["truth"] for q in questions))
    if match == "exact":
        return
    if match == "numeric":
        right = [worker.last_number(truth) is not None for truth in truths]
    else:
        right = [grade == 1 for grade in pool.grade([{"answer": truth, "truth": truth} for truth in truths])]
    wrong = {truth for truth, fits in zip(truths, right, strict=True) if not fits}
    for q in questions:
        if q.answer in wrong:
            raise ValueError(f"{q.where}: the answer {q.answer[:80]!r} does not match itself under match={match}")


def _read(path: str, split: str, subset: str | None, columns: tuple[str, str]) -> Rows:
    """Rows of the file or hub data set. Raises OSError or ValueError, with the row's place where it has one."""
    file = pathlib.Path(path)
    readers = {".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet}
    if file.suffix not in readers and (file.exists() or not HUB_NAME.fullmatch(path)):
        raise ValueError(f"{path}: rows are read from {', '.join(readers)} files or a data set OWNER/NAME of the hub")
    if file.suffix not in readers:
        return _hub(path, split, subset, columns)
    if not file.is_file():
        raise FileNotFoundError(f"there is no file {path!r}")
    if (split, subset) != ("train", None):
        raise ValueError(f"{path} is one table: it has no split {split!r} or subset {subset!r}")
    return readers[file.suffix](path, columns)


def _text(path: str) -> str:
    try:
        text = pathlib.Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from error
    if not text.strip():
        raise ValueError(f"{path}: the file is empty")
    return text


def _json(path: str, _: tuple[str, str]) -> Rows:
    """One list of objects, or one object per line. Numbers keep their spelling, as text."""
    text = _text(path)
    if text.lstrip().startswith("["):
        for number, value in enumerate(_parse(text, path), 1):
            yield _record(value, f"{path}: row {number}")
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            where = f"{path}: line {number}"
            yield _record(_parse(line, where), where)


def _parse(text: str, where: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError(f"a field is given twice: {sorted(key for key, _ in pairs)}")
        return dict(pairs)

    try:
        return json.loads(text, parse_int=str, parse_float=str, parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: malformed JSON ({error})") from error


def _record(value: Any, where: str) -> tuple[str, Mapping[str, Any]]:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: not an object with fields but {str(value)[:40]!r}")
    return where, value


def _csv(path: str, _: tuple[str, str]) -> Rows:
    """A header line, then rows with as many fields. Every field is text."""
    reader = csv.reader(io.StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader)
        if len(set(header)) < len(header):
            raise ValueError(f"{path}: line 1: a column is named twice: {header}")
        for fields in reader:
            where = f"{path}: line {reader.line_num}"
            if fields and len(fields) != len(header):
                raise ValueError(f"{where}: {len(fields)} fields where the header has {len(header)}: {fields}")
            if fields:
                yield where, dict(zip(header, fields, strict=True))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: malformed CSV ({error})") from error


def _parquet(path: str, columns: tuple[str, str]) -> Rows:
    return _columns(_load(path, "parquet", data_files=path, split="train"), path, columns)


def _hub(path: str, split: str, subset: str | None, columns: tuple[str, str]) -> Rows:
    return _columns(_load(path, path, name=subset, split=split), path, columns)


def _load(path: str, kind: str, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(kind, **options)
    except Exception as error:  # the library raises whatever its readers and its network raise
        cause = error.__cause__ or error
        help_ = "" if kind == "parquet" else "; without a network (or with HF_HUB_OFFLINE set) give a local file"
        raise ValueError(f"{path}: cannot be loaded: {type(cause).__name__}: {cause}{help_}") from error


def _columns(table: Any, path: str, columns: tuple[str, str]) -> Rows:
    """Rows of a `datasets.Dataset`, of which only the columns asked for are decoded."""
    for column in columns:
        if column not in table.column_names:
            raise ValueError(f"{path}: there is no column {column!r}{nearest(column, sorted(table.column_names))}")
    for number, row in enumerate(table.select_columns(sorted(set(columns))), 1):
        yield f"{path}: row {number}", row
