"""A published model into the places where its parameters live, and back into a folder that `transformers` loads."""

import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
import jax
import numpy as np

from jaxrl_llm.json_files import read_json
from jaxrl_llm.policies.hub.config_json import Hub, read_config, write_config
from jaxrl_llm.policies.hub.gguf_file import GgufFile
from jaxrl_llm.policies.hub.names import Place, Span, places
from jaxrl_llm.policies.hub.safetensors_files import SafetensorsFolder
from jaxrl_llm.policies.hub.safetensors_save import replacing
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.sharding import assemble, fetch

SHOWN = 5  # names in an error
# Left in some files though nothing reads them: a table of old Llama files, and a head that is the embedding.
UNREAD = ("rotary_emb.inv_freq", "lm_head.weight", "output.weight", "rope_freqs.weight")


@runtime_checkable
class Source(Protocol):
    """Tensors of a file, read in parts."""

    def names(self) -> set[str]:
        """Of all tensors."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor."""

    def read(self, name: str, spans: tuple[Span, ...]) -> np.ndarray:
        """Part of a tensor, float32."""


def read_hub(folder: str | pathlib.Path) -> Hub:
    """What the config.json of a folder says. Raises OSError, and ValueError that names the file and the field."""
    path = pathlib.Path(folder) / "config.json"
    try:
        return read_config(read_json(path))
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def load_folder(folder: str | pathlib.Path, shardings: Callable[[Policy], Params]) -> tuple[Hub, Params]:
    """A Hugging Face folder: its description and its parameters, float32, each read into its place.

    shardings  policy -> tree of shardings of its parameters
    Raises OSError for a missing file, ValueError for a damaged one and for tensors that are missing, left over,
    transposed or of another shape, by name.
    """
    hub = read_hub(folder)
    with SafetensorsFolder(pathlib.Path(folder)) as source:
        try:
            return hub, load_params(hub, source, shardings, tensor_of=lambda place: place.tensor)
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error


def load_gguf(path: str | pathlib.Path, shardings: Callable[[Policy], Params]) -> tuple[Hub, Params]:
    """The same of a GGUF file, dequantised."""
    with GgufFile(path) as source:
        return source.hub, load_open_gguf(source, shardings)


def load_open_gguf(source: GgufFile, shardings: Callable[[Policy], Params]) -> Params:
    """The parameters of a GGUF file that is open already."""
    try:
        return load_params(source.hub, source, shardings, tensor_of=lambda place: place.gguf)
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}") from error


def load_params(
    hub: Hub, source: Source, shardings: Callable[[Policy], Params], tensor_of: Callable[[Place], str]
) -> Params:
    """Parameters from any source; a device reads only what it holds, one parameter after the other."""
    policy = Policy(hub.config, hub.vocab_size)
    shapes, table = shapes_of(policy), places(hub.config)
    check(source, {name: shape for name, shape, *_ in _tensors(hub, shapes, table, tensor_of)})
    targets, params = shardings(policy), {}
    for path, place in table.items():
        shape = shapes[path]
        stacked = path[0] == "blocks"
        each = [tensor_of(place).format(i) for i in range(shape[0])] if stacked else [tensor_of(place)]
        part = _reader(source, place, each, shape, stacked)
        _put(params, path, assemble(shape, _at(targets, path), part))
    return params


def _reader(source: Source, place: Place, names: list[str], shape: tuple[int, ...], stacked: bool):
    inner = shape[1:] if stacked else shape

    def part(index: tuple[slice, ...]) -> np.ndarray:
        spans = [s.indices(n)[:2] for s, n in zip(index, shape, strict=True)]
        rest = tuple(spans[1:] if stacked else spans)
        size = tuple(end - start for start, end in rest)
        wanted = names[slice(*spans[0])] if stacked else names
        found = [place.ours(_finite(source, name, place.spans(inner, rest)), size) for name in wanted]
        return np.stack(found) if stacked else found[0]

    return part


def _finite(source: Source, name: str, spans: tuple[Span, ...]) -> np.ndarray:
    part = source.read(name, spans)
    if not np.isfinite(part).all():
        raise ValueError(f"{name} holds weights that are not finite")
    return part


def check(source: Source, wanted: dict[str, tuple[int, ...]]) -> None:
    """Refuse a source that lacks a tensor, has one more, or has one of another shape."""
    compare(source.names(), source.shape, wanted)


def compare(there: set[str], shape_of: Callable[[str], tuple[int, ...]], wanted: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError with the names that are missing from `there`, have no place in `wanted`, or differ in shape."""
    missing = sorted(set(wanted) - there)
    extra = sorted(name for name in there - set(wanted) if not name.endswith(UNREAD))
    odd = []
    for name in sorted(set(wanted) & there):
        shape = shape_of(name)
        if shape != wanted[name]:
            how = "transposed" if shape == wanted[name][::-1] else "of another shape"
            odd.append(f"{name} is {how}: {list(shape)} instead of {list(wanted[name])}")
    told = [f"tensors are missing: {_some(missing)}"] if missing else []
    told += [f"tensors have no place in this model: {_some(extra)}"] if extra else []
    if told or odd:
        raise ValueError("; ".join(told + odd[:SHOWN] + ([f"and {len(odd) - SHOWN} more"] if len(odd) > SHOWN else [])))


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def save_folder(folder: str | pathlib.Path, hub: Hub, params: Params) -> None:
    """Write config.json, generation_config.json and the tensors in float32; a model that is there is replaced.

    Raises ValueError, before anything is written, for a decoder that its family cannot express.
    """
    fields, target = write_config(hub), pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    ids = {"bos_token_id": hub.bos, "eos_token_id": fields["eos_token_id"], "pad_token_id": hub.pad}
    ids = {name: value for name, value in ids.items() if value is not None}
    shapes, table = shapes_of(Policy(hub.config, hub.vocab_size)), places(hub.config)
    tensors, sizes = {}, {}
    for name, shape, path, layer in _tensors(hub, shapes, table, lambda place: place.tensor):
        tensors[name] = lambda path=path, layer=layer: _tensor(params, table[path], path, layer)
        sizes[name] = 4 * int(np.prod(shape))
    with replacing(target, tensors, sizes):
        for name, content in (("config.json", fields), ("generation_config.json", ids)):
            (target / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _tensor(params: Params, place: Place, path: tuple[str, ...], layer: int | None) -> np.ndarray:
    leaf = _at(params, path)
    return place.theirs(np.asarray(fetch(leaf if layer is None else leaf[layer]), np.float32))


def _tensors(hub: Hub, shapes, table, tensor_of) -> Iterator[tuple[str, tuple[int, ...], tuple[str, ...], int | None]]:
    """Name, shape, path of the parameter, and layer of every tensor."""
    for path, place in table.items():
        if path[0] == "blocks":
            for layer in range(hub.config.layers):
                yield tensor_of(place).format(layer), place.shape(shapes[path][1:]), path, layer
        else:
            yield tensor_of(place), place.shape(shapes[path]), path, None


def shapes_of(policy: Policy) -> dict[tuple[str, ...], tuple[int, ...]]:
    """Path -> shape of every parameter."""
    tree = nn.unbox(jax.eval_shape(policy.init, jax.random.key(0)))
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _put(tree: dict, path: tuple[str, ...], leaf: Any) -> None:
    for name in path[:-1]:
        tree = tree.setdefault(name, {})
    tree[path[-1]] = leaf
