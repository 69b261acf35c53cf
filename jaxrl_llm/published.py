"""A published model by its name: a Hugging Face folder, a GGUF file, or OWNER/NAME of the hub.

Weights of a folder are safetensors, or an Orbax checkpoint beside its `config.json` and tokenizer.
"""

import functools
import pathlib
import re
import zlib
from collections.abc import Callable
from typing import Any

from jaxrl_llm.published_tokenizer import PublishedTokenizer, load_published

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]  # of a hub repository; nothing that runs code

BLOCK, BLOCKS = 1 << 20, 64  # bytes, and how many such blocks of a large file are looked at before a run


def is_published(name: str) -> bool:
    """Whether the name looks like that of a model: a folder, a .gguf file, or OWNER/NAME."""
    return name.endswith(".gguf") or pathlib.Path(name).is_dir() or bool(HUB_NAME.fullmatch(name))


@functools.lru_cache(maxsize=8)
def locate(name: str) -> pathlib.Path:
    """The file or folder on this machine; a hub name is downloaded into the hub's cache, or found there.

    Raises OSError where it does not exist or cannot be downloaded.
    """
    path = pathlib.Path(name)
    if path.exists():
        return path
    if name.endswith(".gguf") or not HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"there is no model folder or .gguf file {name!r}, and it is no OWNER/NAME of the hub")
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, allow_patterns=WANTED))
    except Exception as error:  # the library raises whatever its network raises
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OSError(f"{name} is no folder here and cannot be downloaded: {cause}; or give a local folder") from error


def describe(name: str) -> Any:
    """Shape, family and vocabulary size (`policies.hub.config_json.Hub`).

    Raises OSError for a missing file, ValueError, which names the file and the field, for one that cannot be used.
    """
    path = locate(name)
    return _gguf(path).hub if path.suffix == ".gguf" else _folder(path)


@functools.lru_cache(maxsize=8)
def tokenizer_of(name: str) -> PublishedTokenizer:
    """The tokenizer that the model comes with. Raises as `describe`."""
    path = locate(name)
    if path.suffix != ".gguf":
        return load_published(path)
    from jaxrl_llm.policies.hub.gguf_vocabulary import load_gguf_tokenizer

    return load_gguf_tokenizer(_gguf(path))


def digests(name: str) -> dict[str, tuple[int, int]]:
    """Size and crc32 of each file that the model is read from, by its name.

    Of a file of more than BLOCKS blocks of BLOCK bytes the crc32 is that of so many blocks, evenly spread from the
    first, which holds the header, to the last: other weights differ everywhere, and reading all of them twice would
    take minutes. So a bit that flipped between those blocks is not seen.
    """
    path = locate(name)
    files = [path] if path.is_file() else sorted({file for pattern in WANTED for file in path.glob(pattern)})
    return {file.name: _digest(file) for file in files if file.is_file()}


def _digest(path: pathlib.Path) -> tuple[int, int]:
    size, crc = path.stat().st_size, 0
    whole = size <= BLOCKS * BLOCK
    places = range(0, size, BLOCK) if whole else [i * (size - BLOCK) // (BLOCKS - 1) for i in range(BLOCKS)]
    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            crc = zlib.crc32(file.read(BLOCK), crc)
    return size, crc


def load(name: str, shardings: Callable[[Any], Any]) -> Any:
    """Parameters, float32, each part read onto the device that holds it. Raises as `describe`.

    shardings  policy -> tree of shardings of its parameters
    """
    from jaxrl_llm.policies.hub.load import load_folder, load_open_gguf
    from jaxrl_llm.policies.hub.orbax_files import holds_orbax, load_orbax

    path = locate(name)
    if path.suffix == ".gguf":
        return load_open_gguf(_gguf(path), shardings)
    if holds_orbax(path) and not any(path.glob("*.safetensors*")):
        return load_orbax(path, _folder(path), shardings)
    return load_folder(path, shardings)[1]


@functools.lru_cache(maxsize=2)
def _gguf(path: pathlib.Path) -> Any:
    """Opened once: reading the header of a large vocabulary takes seconds."""
    try:
        from jaxrl_llm.policies.hub.gguf_file import GgufFile

        return GgufFile(path)
    except ImportError as error:
        raise OSError(f"{path}: pip install 'jaxrl_llm[gguf]' to read GGUF files") from error


@functools.lru_cache(maxsize=8)
def _folder(path: pathlib.Path) -> Any:
    from jaxrl_llm.policies.hub.load import read_hub

    return read_hub(path)
