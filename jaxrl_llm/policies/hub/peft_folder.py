"""Adapters in the folder format of PEFT: adapter_config.json and adapter_model.safetensors, written and read.

PEFT stores Aᵀ as `lora_A.weight` [rank, in] and Bᵀ as `lora_B.weight` [out, rank], heads flattened as in the weight
that they belong to; the sum counts lora_alpha/r times, as here.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxrl_llm.json_files import read_json
from jaxrl_llm.policies.config import LINEARS, DecoderConfig, Lora
from jaxrl_llm.policies.hub.fields import flag, number, text
from jaxrl_llm.policies.hub.load import compare
from jaxrl_llm.policies.hub.names import places
from jaxrl_llm.policies.hub.safetensors_files import SafetensorsFolder
from jaxrl_llm.policies.lora import AdaptedPolicy
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.sharding import assemble, fetch
from jaxrl_llm.spec import nearest

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Of training, of the library or of the file: they change no logit of an adapter that is loaded.
IDLE = {
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("lora_dropout", "eva_config", "runtime_config", "megatron_core", "layers_pattern", "qalora_group_size"),
}
READ = ("peft_type", "r", "lora_alpha", "target_modules", "bias", "use_rslora", "init_lora_weights")
PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")  # others begin by changing the trunk


def modules(config: DecoderConfig) -> dict[str, str]:
    """Our name of each linear map -> the name of its module there."""
    table = places(config)
    found = {name: table["blocks", name].tensor.split(".")[-2] for name in LINEARS}
    return found if config.tied else found | {"head": "lm_head"}


def save_adapter(
    folder: str | pathlib.Path, config: DecoderConfig, lora: Lora, adapter: Params, base: str = ""
) -> None:
    """Write adapters in float32. `base` is the model that they stand on, where a reader will find it."""
    from safetensors.numpy import save_file

    target = pathlib.Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    known = modules(config)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha,
        "target_modules": [known[name] for name in lora.targets],
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    (target / CONFIG).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
    host = fetch(adapter)
    tensors = {}
    for name, path, layer in _tensors(config, lora):
        leaf = _at(host, path)
        side = path[-1]
        leaf = np.asarray(leaf if layer is None else leaf[layer], np.float32)
        flat = leaf.reshape(-1, leaf.shape[-1]) if side == "a" else leaf.reshape(leaf.shape[0], -1)
        tensors[name] = np.ascontiguousarray(flat.T)
    save_file(tensors, target / WEIGHTS, {"format": "pt"})


def load_adapter(
    folder: str | pathlib.Path,
    config: DecoderConfig,
    vocab_size: int,
    shardings: Callable[[AdaptedPolicy], Params],
) -> tuple[Lora, Params]:
    """What an adapter is, and its parameters, float32, each in its place.

    shardings  policy -> tree of shardings of its adapters
    Raises OSError for a missing file, ValueError, which names the file and the field or tensor, for one that is
    damaged, for a kind of adapter that is computed otherwise, and for tensors missing, left over or of another shape.
    """
    path = pathlib.Path(folder)
    try:
        lora = read_lora_json(read_json(path / CONFIG), config)
    except ValueError as error:
        raise ValueError(f"{path / CONFIG}: {error}") from error
    policy = AdaptedPolicy(config, vocab_size, lora)
    shapes, targets, adapter = policy.shapes(), shardings(policy), {}
    with SafetensorsFolder(path, WEIGHTS) as source:
        try:
            wanted = {name: _shape(_at(shapes, at), at, layer) for name, at, layer in _tensors(config, lora)}
            compare(source.names(), source.shape, wanted)
            found: dict[tuple[str, ...], list[np.ndarray]] = {}
            for name, at, layer in _tensors(config, lora):
                part = source.read(name, tuple((0, size) for size in wanted[name]))
                if not np.isfinite(part).all():
                    raise ValueError(f"{name} holds weights that are not finite")
                ours = _at(shapes, at).shape
                found.setdefault(at, []).append(part.T.reshape(ours if layer is None else ours[1:]))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    for at, parts in found.items():
        whole = parts[0] if at[0] == "head" else np.stack(parts)
        leaf = assemble(whole.shape, _at(targets, at), lambda index, whole=whole: whole[index])
        branch = adapter
        for name in at[:-1]:
            branch = branch.setdefault(name, {})
        branch[at[-1]] = leaf
    return lora, adapter


def read_lora_json(fields: Mapping[str, Any], config: DecoderConfig) -> Lora:
    """The adapters that an adapter_config.json describes. Raises ValueError, which names the field."""
    kind = text(fields, "peft_type")
    if kind != "LORA":
        raise ValueError(f"peft_type must be LORA, not {kind!r}")
    if text(fields, "bias", "none") != "none":
        raise ValueError(f"bias {fields['bias']!r}: biases that were trained too are not read")
    for name, value in fields.items():
        if name not in READ and name not in IDLE and value not in (None, False, [], {}, ""):
            raise ValueError(f"{name}={value!r} is not known here, and may change what the adapter computes")
    if (start := fields.get("init_lora_weights")) not in PLAIN_STARTS:
        raise ValueError(f"init_lora_weights={start!r} changes the weights that the adapter stands on, and is not read")
    rank = number(fields, "r")
    alpha = float(number(fields, "lora_alpha", kind=float))
    if flag(fields, "use_rslora", False):  # alpha/√r there
        alpha *= rank**0.5
    return Lora(rank=rank, alpha=alpha, targets=_targets(fields.get("target_modules"), config))


def _targets(named: Any, config: DecoderConfig) -> tuple[str, ...]:
    ours = {theirs: name for name, theirs in modules(config).items()}
    if named == "all-linear":
        return LINEARS
    if not isinstance(named, list) or not named:
        raise ValueError(f"target_modules must be a list of names or 'all-linear', not {named!r}")
    for name in named:
        if not isinstance(name, str) or name not in ours:
            raise ValueError(f"target_modules: the decoder has no linear map {name!r}{nearest(str(name), list(ours))}")
    return tuple(name for theirs, name in ours.items() if theirs in named)


def _tensors(config: DecoderConfig, lora: Lora) -> Iterator[tuple[str, tuple[str, ...], int | None]]:
    """Name, path of the parameter, and layer of every tensor."""
    table = places(config)
    for target in lora.targets:
        path = ("head",) if target == "head" else ("blocks", target)
        stem = PREFIX + table[path].tensor.removesuffix(".weight")
        for side in ("a", "b"):
            for layer in [None] if target == "head" else range(config.layers):
                yield f"{stem.format(layer)}.lora_{side.upper()}.weight", (*path, side), layer


def _shape(leaf: Any, path: tuple[str, ...], layer: int | None) -> tuple[int, ...]:
    shape = leaf.shape if layer is None else leaf.shape[1:]
    if path[-1] == "a":
        return shape[-1], int(np.prod(shape[:-1]))
    return int(np.prod(shape[1:])), shape[0]


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree
