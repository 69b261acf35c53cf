"""Rows of tables, each with its place, strictly: a local file or folder, or a data set of the hub.

Parquet and Arrow files, folders saved by `datasets` and hub names are read by that library. Text files (.json, .jsonl,
.csv) are not: its readers guess types, and 007 would become 7, NA nothing, a long integer a rounded float and an ISO
date a time stamp, before anyone had seen the answer. They are read here, and a number keeps its spelling.
"""

import csv
import io
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxrl_llm.published import HUB_NAME
from jaxrl_llm.spec import nearest

SAVED = ("dataset_info.json", "dataset_dict.json")  # one of them marks a folder made by `save_to_disk`

Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""Where a row stands, for messages, and its fields."""


def read_table(path: str, split: str, subset: str | None, columns: Sequence[str]) -> Rows:
    """Rows of the file or hub data set. Raises OSError or ValueError, with the row's place where it has one."""
    file = pathlib.Path(path)
    readers = {".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet, ".arrow": _parquet}
    if any((file / name).is_file() for name in SAVED):
        return _saved(path, split, subset, columns)
    if file.suffix not in readers and (file.exists() or not HUB_NAME.fullmatch(path)):
        kinds = f"{', '.join(readers)} files, a folder saved by datasets"
        raise ValueError(f"{path}: rows are read from {kinds} or a data set OWNER/NAME of the hub")
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


def _json(path: str, _: Sequence[str]) -> Rows:
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


def _csv(path: str, _: Sequence[str]) -> Rows:
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


def _parquet(path: str, columns: Sequence[str]) -> Rows:
    kind = pathlib.Path(path).suffix.removeprefix(".")
    return _columns(_load(path, kind, data_files=path, split="train"), path, columns)


def _saved(path: str, split: str, subset: str | None, columns: Sequence[str]) -> Rows:
    """Of a folder that `save_to_disk` made, of one table or of one a split."""
    import datasets

    try:
        found = datasets.load_from_disk(path)
    except Exception as error:  # the library raises whatever its readers raise
        raise ValueError(f"{path}: cannot be loaded: {type(error).__name__}: {error}") from error
    several = isinstance(found, datasets.DatasetDict)
    if several and split not in found:
        raise ValueError(f"{path}: there is no split {split!r}{nearest(split, sorted(found))}")
    if subset is not None or (not several and split != "train"):
        raise ValueError(f"{path} has no subsets{'' if several else f' and is one table: no split {split!r}'}")
    return _columns(found[split] if several else found, path, columns)


def _hub(path: str, split: str, subset: str | None, columns: Sequence[str]) -> Rows:
    return _columns(_load(path, path, name=subset, split=split), path, columns)


def _load(path: str, kind: str, **options: Any) -> Any:
    import datasets

    try:
        return datasets.load_dataset(kind, **options)
    except Exception as error:  # the library raises whatever its readers and its network raise
        cause = error.__cause__ or error
        help_ = (
            "" if kind in ("parquet", "arrow") else "; without a network (or with HF_HUB_OFFLINE set) give a local file"
        )
        raise ValueError(f"{path}: cannot be loaded: {type(cause).__name__}: {cause}{help_}") from error


def _columns(table: Any, path: str, columns: Sequence[str]) -> Rows:
    """Rows of a `datasets.Dataset`, of which only the columns asked for are decoded."""
    for column in columns:
        if column not in table.column_names:
            raise ValueError(f"{path}: there is no column {column!r}{nearest(column, sorted(table.column_names))}")
    for number, row in enumerate(table.select_columns(sorted(set(columns))), 1):
        yield f"{path}: row {number}", row
