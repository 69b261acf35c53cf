"""What the bits of a checkpoint are: digests of its leaves, written once all else of the step is on the disk.

Orbax writes a step whole or not at all, but takes whatever bits it finds when it reads. So each process digests the
parts of the leaves that it saves, process 0 the files too, and their manifests are the last files of the step: a step
without them is unfinished. Before a step is read, its files must have their digests, so that no reader sees damaged
bytes; and what was read must have those of its leaves, which are parts of the logical arrays, whatever the mesh.
"""

import json
import math
import os
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl_llm.json_files import read_json
from jaxrl_llm.sharding import fetch

Part = tuple[tuple[slice, ...], np.ndarray]
"""Where a part of a leaf lies in it, and its values."""


class DamageError(ValueError):
    """A checkpoint that is unfinished or not what was saved; the message names the file, and the leaf where it can."""


def digest(values: np.ndarray) -> int:
    """crc32 of the bytes of an array, row by row."""
    return zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8))


def write_manifest(
    folder: pathlib.Path, leaves: Mapping[str, Sequence[Part]], metrics: Mapping[str, float], process: int, of: int
) -> None:
    """Write the manifest of process `process` of `of`, whole or not at all, and wait until the disk has it."""
    digests = {
        name: [[[[s.start, s.stop] for s in where], str(values.dtype), digest(values)] for where, values in parts]
        for name, parts in leaves.items()
    }
    files = {} if process else {name: _digest_of(folder / name) for name in _files(folder)}
    path = _path(folder, process)
    draft = path.with_name(path.name + ".draft")
    with draft.open("w", encoding="utf-8") as file:
        json.dump(sealed({"processes": of, "metrics": dict(metrics), "files": files, "leaves": digests}), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)
    _sync(folder)


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a manifest with its own crc32, that of its JSON text: figures in it decide which steps stay."""
    return {**content, "crc32": zlib.crc32(json.dumps(content).encode())}


def is_finished(folder: pathlib.Path) -> bool:
    """Whether all manifests of a step are there."""
    try:
        return bool(read_manifests(folder))
    except DamageError:
        return False


def read_manifests(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The manifests of a step, in the order of the processes that wrote it.

    Raises DamageError, which names the file, where one is missing or damaged.
    """
    found, of = [], 1
    while len(found) < of:
        path = _path(folder, len(found))
        try:
            content = read_json(path)
            expected = content.pop("crc32", None)
            if sealed(content)["crc32"] != expected:
                raise ValueError(f"its content does not have the crc32 {expected} that stands in it")
            found.append(content)
            of = found[0]["processes"]
            if type(of) is not int or not all(
                isinstance(found[-1][key], dict) for key in ("files", "leaves", "metrics")
            ):
                raise ValueError(f"{path} is no manifest")
        except FileNotFoundError as error:
            raise DamageError(f"{folder} is unfinished: there is no {path.name}") from error
        except (OSError, ValueError, KeyError) as error:
            raise DamageError(f"{path} cannot be read: {error}") from error
    return found


def require_files(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The manifests of a step. Raises DamageError unless its files are there and have the digests in them."""
    manifests = read_manifests(folder)
    for name, expected in manifests[0]["files"].items():
        try:
            found = _digest_of(folder / name)
        except OSError as error:
            raise DamageError(f"{folder / name} cannot be read: {error.strerror}") from error
        if found != expected:
            raise DamageError(f"{folder / name} is damaged: it has the size and crc32 {found}, not {expected}")
    return manifests


def require_leaves(folder: pathlib.Path, manifests: Sequence[Mapping[str, Any]], tree: Any) -> None:
    """Raise DamageError unless the leaves of a tree have the digests in the manifests of the step in `folder`.

    Collective where a leaf is spread over several processes, and the same on all of them.
    """
    flaws = [_flaw(name, fetch(x), [m["leaves"].get(name, []) for m in manifests]) for name, x in named(tree)]
    known = {name for name, _ in named(tree)}
    flaws += [f"leaf {name} is left over" for m in manifests for name in m["leaves"] if name not in known]
    found = [flaw for flaw in flaws if flaw]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise DamageError(f"{folder} is damaged: {found[0]}{more}")


def named(tree: Any) -> list[tuple[str, Any]]:
    """Leaves and their names."""
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]]


def forget(folder: pathlib.Path) -> None:
    """Make a step unfinished, so that nobody reads it while it is deleted."""
    for path in folder.glob("digests.*.json"):
        path.unlink(missing_ok=True)


def _flaw(name: str, values: np.ndarray, every: list[Any]) -> str | None:
    """What is wrong with a leaf, whose digests are listed process by process."""
    size = 0
    try:
        for where, kind, expected in (part for parts in every for part in parts):
            part = np.asarray(values[tuple(slice(start, stop) for start, stop in where)])
            size += part.size
            if str(part.dtype) != kind:
                return f"leaf {name} is of type {part.dtype}, not {kind}"
            if digest(part) != expected:
                return f"leaf {name} has the crc32 {digest(part)}, not {expected}"
    except (TypeError, ValueError, IndexError) as error:
        return f"the digest of leaf {name} is none ({error})"
    if size != math.prod(values.shape):
        return f"leaf {name} has {math.prod(values.shape)} values, of which {size} have a digest"
    return None


def _files(folder: pathlib.Path) -> list[str]:
    """Files of a step but for its manifests."""
    every = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("digests."))
    return sorted(path.relative_to(folder).as_posix() for path in every)


def _digest_of(path: pathlib.Path) -> list[int]:
    """Size and crc32 of a file."""
    size = crc = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            size, crc = size + len(block), zlib.crc32(block, crc)
    return [size, crc]


def _path(folder: pathlib.Path, process: int) -> pathlib.Path:
    return folder / f"digests.{process}.json"


def _sync(folder: pathlib.Path) -> None:
    """Wait until the disk has the names in a folder."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
