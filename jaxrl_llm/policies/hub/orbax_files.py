"""Parameters out of an Orbax checkpoint, of a run or of a bare tree, into the decoder that a folder describes."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import compare, shapes_of
from jaxrl_llm.policies.policy import Params, Policy

TREE = "_METADATA"  # the file in which Orbax describes a tree


def load_orbax(path: str | pathlib.Path, hub: Hub, shardings: Callable[[Policy], Params]) -> Params:
    """Parameters, float32, of a checkpoint for the decoder of `hub`; a device reads only what it holds.

    path       folder of a run, of its checkpoints, of one of them, or of a tree of parameters that Orbax saved; of
               several checkpoints the newest is taken, and of a training state its `params`
    shardings  policy -> tree of shardings of its parameters
    Raises OSError where there is no checkpoint, ValueError for a damaged one and for leaves that are missing, left
    over, transposed, of another shape, no floating-point numbers or not finite, by name.
    """
    import orbax.checkpoint as ocp

    folder = _folder(pathlib.Path(path).absolute())
    policy = Policy(hub.config, hub.vocab_size)
    wanted = {".".join(name): shape for name, shape in shapes_of(policy).items()}
    reader = ocp.PyTreeCheckpointer()
    try:
        tree, inside = _parameters(reader.metadata(folder).item_metadata.tree)
        _require_fit(tree, wanted)
        target = jax.tree.map(_abstract, tree, shardings(policy))
        target = {"params": target} if inside else target
        how = ocp.args.PyTreeRestore(
            item=target,
            restore_args=ocp.checkpoint_utils.construct_restore_args(target),
            partial_restore=True,
        )
        found = reader.restore(folder, args=how)
    except Exception as error:  # the library raises whatever its storage raises
        raise ValueError(f"{path}: {error}") from error
    params = found["params"] if inside else found
    for name, leaf in _leaves(params).items():
        if not bool(jnp.isfinite(leaf).all()):
            raise ValueError(f"{path}: {name} holds weights that are not finite")
    return params


def holds_orbax(path: pathlib.Path) -> bool:
    """Whether `load_orbax` finds a checkpoint there."""
    try:
        return bool(_folder(path))
    except FileNotFoundError:
        return False


def _folder(path: pathlib.Path) -> pathlib.Path:
    """Where the tree lies that a path means."""
    steps = [each for each in (path / "checkpoints", path) if each.is_dir()]
    numbered = [child for each in steps for child in each.iterdir() if child.name.isdecimal()]
    newest = sorted(numbered, key=lambda child: int(child.name), reverse=True)
    for place in (path, path / "default", *(child / "default" for child in newest), *newest):
        if (place / TREE).is_file():
            return place
    raise FileNotFoundError(f"there is no Orbax checkpoint in {path}")


def _parameters(tree: Any) -> tuple[Mapping[str, Any], bool]:
    """Those of a training state, or the whole tree; and whether they were inside of one."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"the checkpoint holds no tree of names but a {type(tree).__name__}")
    inside = isinstance(tree.get("params"), Mapping)
    return (tree["params"], True) if inside else (tree, False)


def _require_fit(tree: Mapping[str, Any], wanted: dict[str, tuple[int, ...]]) -> None:
    there = _leaves(tree)
    compare(set(there), lambda name: tuple(there[name].shape), wanted)
    odd = [f"{name} ({leaf.dtype})" for name, leaf in there.items() if not jnp.issubdtype(leaf.dtype, jnp.floating)]
    if odd:
        raise ValueError(f"not floating-point numbers: {', '.join(sorted(odd))}")


def _abstract(leaf: Any, sharding: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, jnp.float32, sharding=sharding)


def _leaves(tree: Any) -> dict[str, Any]:
    """Leaves by their dotted names."""
    return {keystr(path, simple=True, separator="."): leaf for path, leaf in tree_leaves_with_path(tree)}
