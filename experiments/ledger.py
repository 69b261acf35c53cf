"""runs.jsonl: a line of JSON for each finished run, appended whole, so that a kill costs only what had not ended."""

import contextlib
import fcntl
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from jaxrl_llm.metrics import RunError

NAME = "runs.jsonl"


class Ledger:
    """The finished runs of a folder, by (arm, seed, digest)."""

    def __init__(self, folder: pathlib.Path, say: Callable[[str], Any]):
        """Read the folder. A last line without an end was torn by a kill: it is cut off, and `say` hears of it.

        Raises RunError for any other damaged line, named by file and line.
        """
        self.path = folder / NAME
        folder.mkdir(parents=True, exist_ok=True)
        text = self.path.read_bytes() if self.path.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            say(f"{self.path}: the last line was torn by a kill and is dropped; its run is done again")
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
                os.fsync(file.fileno())
        self.runs: dict[tuple[str, int, str], dict[str, Any]] = {}
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                run = json.loads(line)
                self.runs[run["arm"], run["seed"], run["digest"]] = run
            except (ValueError, KeyError, TypeError) as error:
                raise RunError(f"{self.path}, line {number}, is damaged ({type(error).__name__}: {error})") from error

    def append(self, runs: list[dict[str, Any]]) -> None:
        """Add runs in one write that has reached the disk when this returns."""
        text = b"".join(json.dumps(_plain(run), allow_nan=False).encode() + b"\n" for run in runs)
        with self.path.open("ab", buffering=0) as file:
            file.write(text)
            os.fsync(file.fileno())
        for run in runs:
            self.runs[run["arm"], run["seed"], run["digest"]] = _plain(run)


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> Iterator[None]:
    """Hold a folder, until the end or a kill. Raises RunError where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder} is held by another sweep: wait for it, or choose another --out") from error
        yield


def _plain(value: Any) -> Any:
    """Numbers as JSON has them; what is not finite is null."""
    if isinstance(value, dict):
        return {name: _plain(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(x) for x in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value
