"""The folder of a run: where it is, what is written into it and read back, and how a run is stopped."""

import contextlib
import importlib.metadata
import io
import json
import os
import pathlib
import re
import signal
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxrl_llm.config import Config
from jaxrl_llm.json_files import read_json
from jaxrl_llm.metrics import RunError, run_folder
from jaxrl_llm.writing import writing

SUMMARY = ("before", "constant_accuracy", "constant_answer", "problems")  # what the end of a run reads of its beginning
BESIDE = ("versions", "devices", "deterministic")  # what stands in config.json and is no field of Config
CRC = 4  # bytes


def default_folder(config: Config) -> pathlib.Path:
    """runs/TASK-RECIPE-seedN."""
    words = [config.task.spec.split(",")[0], config.recipe.spec.split(",")[0], f"seed{config.seed}"]
    return pathlib.Path("runs") / re.sub(r"[^\w.-]+", "_", "-".join(words))


def check_folder(
    config: Config, out: str | os.PathLike[str] | None, resume: bool, deterministic: bool = False
) -> pathlib.Path:
    """The folder of a new run, or of the run to resume; nothing is written.

    Raises RunError: a new run in a folder that holds one; a resumed run whose folder holds none, or another
    configuration (the first field that differs is named). Its mesh may be another: see `moved`.
    """
    folder = default_folder(config) if out is None else pathlib.Path(out)
    if not resume:
        if (folder / "config.json").exists():
            raise RunError(f"{folder} holds a run already: continue it with --resume, or choose another --out")
        return folder
    theirs = {"deterministic": False} | _read_fields(folder)
    for name, value in {**json.loads(json.dumps(config.to_json())), "deterministic": deterministic}.items():
        if name != "mesh" and theirs.get(name) != value:
            raise RunError(
                f"{folder} was run with {name}={theirs.get(name)!r}, not {value!r}: resume it as it was begun"
            )
    return folder


def write_config(folder: pathlib.Path, config: Config, devices: Mapping[str, int], deterministic: bool) -> None:
    """Make the folder and write config.json: every field, and what else computes the numbers (see BESIDE).

    devices  how many there are along each axis of the mesh
    """
    folder.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
    beside = {"versions": versions, "devices": dict(devices), "deterministic": deterministic}
    write_json(folder / "config.json", config.to_json() | beside)


def moved(folder: pathlib.Path, config: Config, devices: Mapping[str, int]) -> str:
    """Of a run that goes on on another mesh: what is to be said of it; empty: it is the same. Writes config.json anew,
    so that its checkpoints are read on the mesh that is here."""
    fields = _read_fields(folder)
    before, now = fields.get("devices"), dict(devices)
    mesh = config.to_json()["mesh"]
    if (before, fields.get("mesh")) == (now, mesh):
        return ""
    write_json(folder / "config.json", fields | {"mesh": mesh, "devices": now})
    if before in (now, None):
        return ""
    told = [" x ".join(f"{axis} {size}" for axis, size in each.items()) for each in (before, now)]
    return f"resumed on a mesh of {told[1]}, before of {told[0]}: the same bits are promised on the same mesh only"


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The fields of `Config` in config.json. Raises RunError where there is no run or the file is damaged."""
    return {name: value for name, value in _read_fields(folder).items() if name not in BESIDE}


def _read_fields(folder: str | os.PathLike[str]) -> dict[str, Any]:
    path = run_folder(folder) / "config.json"
    try:
        return read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error


def write_json(path: pathlib.Path, value: Any) -> None:
    """Write a file whole or not at all. Raises WriteError, which names it."""
    _write_whole(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def _write_whole(path: pathlib.Path, content: bytes) -> None:
    draft = path.with_name(path.name + ".draft")
    with writing(path):
        draft.write_bytes(content)
        os.replace(draft, path)


def read_summary(folder: pathlib.Path) -> dict[str, Any]:
    """summary.json, which is there from the first checkpoint on. Raises RunError where it is absent or damaged."""
    path = folder / "summary.json"
    try:
        summary = read_json(path)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    missing = [name for name in SUMMARY if name not in summary]
    if missing:
        raise RunError(f"{path} is damaged: it has no {missing[0]!r}")
    return summary


def write_attempts(folder: pathlib.Path, correct: np.ndarray) -> None:
    """Write which attempts [N S] at the training problems were right, whole or not at all.

    Behind the array stands the crc32 of its bytes: a flipped bit would be another choice of problems.
    """
    content = io.BytesIO()
    np.save(content, correct, allow_pickle=False)
    raw = content.getvalue()
    _write_whole(folder / "attempts.npy", raw + zlib.crc32(raw).to_bytes(CRC, "little"))


def read_attempts(folder: pathlib.Path) -> np.ndarray:
    """The inverse of `write_attempts`. Raises RunError where the file is absent or damaged."""
    path = folder / "attempts.npy"
    try:
        content = path.read_bytes()
        raw, crc = content[:-CRC], int.from_bytes(content[-CRC:], "little")
        if zlib.crc32(raw) != crc:
            raise ValueError(f"it is damaged: it has the crc32 {zlib.crc32(raw)}, not {crc}")
        correct = np.load(io.BytesIO(raw), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if correct.ndim != 2 or correct.dtype != bool:
        raise RunError(f"{path} must hold a table of booleans, not {correct.dtype} of shape {correct.shape}")
    return correct


class Stop:
    """Whether someone asked the run to end after this step: `requested` is the name of the signal."""

    requested: str | None = None


@contextlib.contextmanager
def stoppable() -> Iterator[Stop]:
    """Turn the first SIGINT or SIGTERM into a request. A further SIGTERM changes nothing: launchers send it to each
    process, and supervisors pass theirs on, while the run saves. A further SIGINT, of a user, acts as it always did.

    Outside the main thread signals cannot be caught, and are not.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number, _):
        stop.requested = stop.requested or signal.Signals(number).name
        signal.signal(signal.SIGINT, before[signal.SIGINT])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
