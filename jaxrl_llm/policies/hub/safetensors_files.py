"""Tensors of a Hugging Face folder: one safetensors file, or several with an index. Nothing is unpickled."""

import contextlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.json_files import read_json
from jaxrl_llm.policies.hub.names import Span

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLOATS = ("F32", "F16", "BF16")


class SafetensorsFolder:
    """Reads parts of tensors where they lie. Files stay open until `close`, or the end of a `with`."""

    def __init__(self, folder: pathlib.Path, single: str = SINGLE):
        """`single` is the file, where it is one.

        Raises OSError where no file is, ValueError for one that is damaged; the message names the file.
        """
        self.folder, self._open = folder, {}
        self._where = _index(folder) if single == SINGLE else {}
        found: dict[str, pathlib.Path] = {}
        for file in sorted(set(self._where.values())) if self._where else [folder / single]:
            here = dict.fromkeys(self._handle(file).keys(), file)
            for name in here.keys() & found.keys():
                raise ValueError(f"{folder}: {name} stands in {found[name].name} and in {file.name}")
            found |= here
        if self._where:
            for name, file in self._where.items():
                if found.get(name) != file:
                    raise ValueError(f"{folder / INDEX} says that {name} is in {file.name}, where it is not")
        self._where = found

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Close the files."""
        for stack, _ in self._open.values():
            stack.close()
        self._open.clear()

    def _handle(self, file: pathlib.Path) -> Any:
        import safetensors

        if file not in self._open:
            if not file.is_file():
                raise FileNotFoundError(f"there is no file {file}")
            stack = contextlib.ExitStack()
            try:
                handle = stack.enter_context(safetensors.safe_open(file, framework="numpy"))
            except safetensors.SafetensorError as error:
                raise ValueError(f"{file} is no readable safetensors file: {error}") from error
            self._open[file] = stack, handle
        return self._open[file][1]

    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor. Raises ValueError for one that is not of F32, F16 or BF16."""
        part = self._handle(self._where[name]).get_slice(name)
        if part.get_dtype() not in FLOATS:
            raise ValueError(f"{self._where[name]}: {name} is {part.get_dtype()}, not one of {', '.join(FLOATS)}")
        return tuple(part.get_shape())

    def read(self, name: str, spans: tuple[Span, ...]) -> np.ndarray:
        """Part of a tensor, float32."""
        part = self._handle(self._where[name]).get_slice(name)
        return part[tuple(slice(*span) for span in spans)].astype(np.float32)


def _index(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Tensor -> file of an index; empty without one."""
    path = folder / INDEX
    if (folder / SINGLE).is_file() or not path.is_file():
        return {}
    fields = read_json(path)
    weights = fields.get("weight_map")
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"{path}: weight_map must be an object of tensors and their files")
    for name, file in weights.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{path}: {name} must be in a .safetensors file of the same folder, not {file!r}")
    return {name: folder / file for name, file in weights.items()}
