"""What is logged of a run, and how it is written and read; what the names mean stands in `glossary`.

A run folder holds `metrics.jsonl` and `samples.jsonl`, one JSON object per line, and `tensorboard/`.

    metrics.jsonl   {"step": 3, "loss": 0.25, "reward/mean": 0.5, ...}, one row per step, steps rising from 1
    samples.jsonl   {"step": 3, "prompt": str, "answer": str, "reward": float, "advantage": float, "truncated": bool}

JSON has no word for NaN and infinities: such a value is written as null, and the row says which it was:
{"step": 4, "loss": null, "nonfinite": {"loss": "nan"}}. Only `perf/...` may differ between two identical runs.
"""

import contextlib
import difflib
import json
import math
import operator
import os
import pathlib
import time
import types
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jaxrl_llm.glossary import meaning
from jaxrl_llm.writing import WriteError, writing

SAMPLE_KEYS = ("prompt", "answer", "reward", "advantage", "truncated")
FILES = ("metrics.jsonl", "samples.jsonl")

Curve = tuple[list[int], list[int | float]]  # steps and values


class RunError(ValueError):
    """A run folder that does not exist, is none, or is damaged; the message names the folder, or the file and line."""


class MetricsLog:
    """Writes the log of a run: `with MetricsLog(folder, resume_from=None) as log: log.log(step, {...})`.

    Without `resume_from` the folder must not hold a log yet. With it (the last step that the checkpoint knows; 0: none)
    every row of a later step is first cut off, and so is a last line torn by a kill, so that the resumed run leaves the
    file of one that was never interrupted. A line is written and flushed as a whole: a reader never sees half of one.

    Raises RunError where the folder holds a log and `resume_from` is None, or a line that stays is damaged. Warns where
    rows up to `resume_from` are missing.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_from: int | None = None):
        from tensorboardX import SummaryWriter

        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        paths = [self.folder / name for name in FILES]
        if resume_from is None:
            for path in paths:
                if path.exists() and path.stat().st_size:
                    raise RunError(f"{path} exists already: resume that run, or choose another folder")
        else:
            last, _ = (_cut(path, resume_from) for path in paths)
            if last < resume_from:
                warnings.warn(
                    f"{paths[0]} ends at step {last}, the checkpoint at {resume_from}: rows are missing", stacklevel=2
                )
        self._last_step = resume_from or 0
        # The name of an event file holds whole seconds, and one that exists is overwritten: a quick restart would
        # destroy the events before it. The nanoseconds behind keep the order of the names.
        self._tensorboard = SummaryWriter(
            str(self.folder / "tensorboard"),
            purge_step=None if resume_from is None else resume_from + 1,
            flush_secs=10,
            filename_suffix=f".{time.time_ns() % 10**9:09d}",
        )
        self._metrics, self._samples = (open(path, "ab") for path in paths)  # noqa: SIM115 - closed by close

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ):
        try:
            self.close()
        except WriteError:  # of what is under way, which says more, it may be the echo
            if kind is None:
                raise

    def close(self) -> None:
        """Flush and close the files, all of them whatever happens. Raises WriteError for the first that fails."""
        with contextlib.ExitStack() as stack:
            for file in (self._metrics, self._samples):
                stack.enter_context(writing(file.name))
                stack.callback(file.close)
            stack.enter_context(writing(self.folder / "tensorboard"))
            stack.callback(self._tensorboard.close)

    def sync(self) -> None:
        """Wait until the disk has what was logged."""
        for file in (self._metrics, self._samples):
            with writing(file.name):
                os.fsync(file.fileno())

    def log(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write the row of a step. Values are numbers: Python's, or scalars of numpy or jax.

        Raises ValueError for a name without a meaning or a step that is not later than the one before, TypeError for a
        value that is no number; nothing is written then.
        """
        if step <= self._last_step:
            raise ValueError(f"step {step} after step {self._last_step}: steps must rise")
        for name in metrics:
            meaning(name)
        row = {name: _number(name, value) for name, value in metrics.items()}
        _write(self._metrics, {"step": step, **_strict(row)})
        self._last_step = step
        for name, value in row.items():
            if math.isfinite(value):  # TensorBoard cannot draw the others, and its writer would print a line for each
                self._tensorboard.add_scalar(name, value, step)

    def log_samples(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Write rows with exactly the keys of SAMPLE_KEYS. Raises ValueError for other keys."""
        for sample in samples:
            if set(sample) != set(SAMPLE_KEYS):
                raise ValueError(f"a sample has the keys {', '.join(SAMPLE_KEYS)}, not {', '.join(sample)}")
            numbers = {name: _number(name, sample[name]) for name in ("reward", "advantage")}
            row = {**sample, **_strict(numbers), "truncated": bool(sample["truncated"])}
            _write(self._samples, {"step": step, **row})


def read_metrics(folder: str | os.PathLike[str]) -> dict[str, Curve]:
    """Every metric of a run: name -> (steps, values), of equal length, only steps at which it was logged.

    A last line without an end is still being written and is left out. A run without a row gives {}.
    Raises RunError: no such folder, not a run folder, a damaged line (named by file and line).
    """
    curves: dict[str, Curve] = {}
    for row in _rows(run_folder(folder) / "metrics.jsonl"):
        words = row.pop("nonfinite", {})
        step = row.pop("step")
        for name, value in row.items():
            steps, values = curves.setdefault(name, ([], []))
            steps.append(step)
            values.append(float(words.get(name, "nan") if value is None else value))
    return curves


def read_samples(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of samples.jsonl, in order; a number that was not finite is None. Raises RunError as `read_metrics`."""
    return list(_rows(run_folder(folder) / "samples.jsonl"))


def run_folder(folder: str | os.PathLike[str]) -> pathlib.Path:
    """The folder as a path. Raises RunError, which names the nearest run, where it does not exist or holds no run."""
    path = pathlib.Path(folder)
    if _is_run(path):
        return path
    problem = "is not a run folder (no config.json or metrics.jsonl in it)" if path.is_dir() else "does not exist"
    beneath = sorted(str(child) for child in path.iterdir() if _is_run(child)) if path.is_dir() else []
    if beneath:
        raise RunError(f"{path} {problem}; the runs in it: {', '.join(beneath)}")
    siblings = [child.name for child in path.parent.iterdir() if _is_run(child)] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.5)
    hint = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
    raise RunError(f"{path} {problem}{hint}")


def wilson_interval(fraction: int | float, n: int) -> tuple[float, float]:
    """95% interval (Wilson) of the chance of success where `fraction` of `n` independent trials succeeded."""
    z = 1.959964
    centre = (fraction + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(fraction * (1 - fraction) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _is_run(path: pathlib.Path) -> bool:
    return any((path / name).is_file() for name in ("metrics.jsonl", "config.json"))


def _number(name: str, value: Any) -> int | float:
    try:
        return operator.index(value)
    except TypeError:
        pass
    if not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a number, not {value!r}")
    return float(value)


def _strict(row: Mapping[str, int | float]) -> dict[str, Any]:
    nonfinite = {name: str(value) for name, value in row.items() if not math.isfinite(value)}
    values = {name: None if name in nonfinite else value for name, value in row.items()}
    return {**values, "nonfinite": nonfinite} if nonfinite else values


def _write(file: Any, row: dict[str, Any]) -> None:
    with writing(file.name):
        file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
        file.flush()


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """Rows of a file that may not exist; steps never fall. A last line without an end that is no JSON is left out."""
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    before = 0
    for number, line in enumerate([*lines, rest] if rest else lines, start=1):
        try:
            row = json.loads(line)
            step = row["step"]
            if not isinstance(step, int) or step < before:
                raise ValueError(f"step {step!r} after step {before}")
        except (ValueError, KeyError, TypeError) as error:
            if number > len(lines):
                return
            raise RunError(
                f"{path}, line {number}, is damaged ({type(error).__name__}: {error}): {line[:80]!r}"
            ) from error
        before = step
        yield row


def _cut(path: pathlib.Path, resume_from: int) -> int:
    """Leave only rows up to a step, in a file that is replaced as a whole or not at all. Returns the last step left."""
    kept = []
    for row in _rows(path):
        if row["step"] > resume_from:
            break
        kept.append(row)
    draft = path.with_name(path.name + ".draft")
    with writing(path):
        with open(draft, "wb") as file:
            for row in kept:
                _write(file, row)
            os.fsync(file.fileno())
        os.replace(draft, path)
    return kept[-1]["step"] if kept else 0
