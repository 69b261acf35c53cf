"""Tensors of a Hugging Face folder written, in the place of what an earlier save left there."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxrl_llm.policies.hub.safetensors_files import INDEX, SINGLE

FILE_BYTES = 4 * 2**30  # of one file
# Files of an earlier save, and drafts of one that was killed. Nothing else in the folder is touched.
SHARD, DRAFT = (
    re.compile(r"model-\d{5}-of-\d{5}\.safetensors"),
    re.compile(r"\.model.*\.safetensors(\.index\.json)?\.draft"),
)


@contextlib.contextmanager
def replacing(folder: pathlib.Path, tensors: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[None]:
    """Write tensors to one file, or to several with an index where they exceed FILE_BYTES.

    tensors  name -> function without arguments that gives the array; called one file at a time
    sizes    bytes of each

    What stood in the folder stays until all that is new is whole; the body, which writes the descriptions, runs when
    the old weights are gone and before the new ones have their names. Wherever this is killed, the folder holds the old
    model, the new one, or no weights: never the weights of one with the description of the other.
    """
    drafts: dict[str, pathlib.Path] = {}
    try:
        for file, content in _contents(tensors, sizes):
            drafts[file] = folder / f".{file}.draft"
            _write(drafts[file], content)
    except BaseException:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
        raise
    for name in (SINGLE, INDEX):  # what a reader looks for first
        (folder / name).unlink(missing_ok=True)
    yield
    for file, draft in drafts.items():  # the index last
        os.replace(draft, folder / file)
    for path in folder.iterdir():
        if path.name not in drafts and (SHARD.fullmatch(path.name) or DRAFT.fullmatch(path.name)):
            path.unlink()


def _contents(tensors: Mapping[str, Any], sizes: Mapping[str, int]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Name of each file, and what makes its tensors, or the index: no two files are in memory at a time."""
    files: list[list[str]] = [[]]
    for name in tensors:
        if files[-1] and sum(sizes[x] for x in files[-1]) + sizes[name] > FILE_BYTES:
            files.append([])
        files[-1].append(name)
    count = len(files)
    named = [SINGLE] if count == 1 else [f"model-{i + 1:05}-of-{count:05}.safetensors" for i in range(count)]
    for file, names in zip(named, files, strict=True):
        yield file, lambda names=names: {name: np.ascontiguousarray(tensors[name]()) for name in names}
    if count > 1:
        where = {name: file for file, names in zip(named, files, strict=True) for name in names}
        yield INDEX, lambda: {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}


def _write(path: pathlib.Path, content: Callable[[], Any]) -> None:
    """To the disk, and not only to the system's memory: the old weights are removed next."""
    from safetensors.numpy import save_file

    if path.name == f".{INDEX}.draft":
        path.write_text(json.dumps(content(), indent=2), encoding="utf-8")
    else:
        save_file(content(), path, {"format": "pt"})
    with path.open("rb") as file:
        os.fsync(file.fileno())
