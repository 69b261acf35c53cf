"""Meshes, where every array lives, and the way between host and device. The only file that knows devices.

`pjit` today is `jax.jit` with `NamedSharding`: arrays are global, so a mean over a sharded axis is already the global
mean and no numeric code knows of a mesh.
"""

import dataclasses
import functools
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")

# Logical axis of a parameter -> mesh axis that cuts it.
RULES = {
    "vocab": "tensor",
    "embed": "fsdp",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Devices along each axis; one of them may be -1: whatever is left."""

    data: int = 1  # copies of the model, each with its share of the prompts
    fsdp: int = -1  # shards of parameters and of prompts
    tensor: int = 1  # shards of heads and hidden units

    def __post_init__(self):
        sizes = [getattr(self, axis) for axis in AXES]
        for axis, size in zip(AXES, sizes, strict=True):
            if size == 0 or size < -1:
                raise ValueError(f"mesh.{axis}={size}: mesh axes must be 1 or more, or -1 for the rest")
        if sizes.count(-1) > 1:
            raise ValueError(f"at most one mesh axis may be -1, not {sizes}")


def make_mesh(shape: MeshShape, devices: list | None = None) -> Mesh:
    """Arrange the devices (default: all). Raises ValueError where the sizes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    sizes = [getattr(shape, axis) for axis in AXES]
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if -1 in sizes or int(np.prod(sizes)) != len(devices):
        wanted = "x".join(str(size) for size in sizes)
        raise ValueError(f"mesh {wanted} (data x fsdp x tensor) does not fit {len(devices)} devices")
    return Mesh(np.asarray(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def prompt_shards(mesh: Mesh) -> int:
    """Into how many parts the prompts of a batch are cut; prompts_per_step must be a multiple."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def by_prompt(mesh: Mesh) -> NamedSharding:
    """Arrays whose first axis is P."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def state_shardings(mesh: Mesh, make: Callable[..., Any], *args: Any) -> Any:
    """Shardings of the (boxed) tree that `make(*args)` would build, by the logical names of its leaves.

    A dimension that its mesh axis does not divide stays whole: a vocabulary of 17 is not worth an error.
    """
    from flax.linen import Partitioned

    boxed = jax.eval_shape(make, *args)

    def sharding(leaf):
        names = leaf.names if isinstance(leaf, Partitioned) else ()
        shape = leaf.value.shape if isinstance(leaf, Partitioned) else leaf.shape
        axes = [RULES.get(name) for name in names]
        fits = [
            axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, shape, strict=False)
        ]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree.map(sharding, boxed, is_leaf=lambda leaf: isinstance(leaf, Partitioned))


def born_sharded(mesh: Mesh, make: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """Build a tree on the mesh, every leaf in its place from the start; return it unboxed, with its shardings."""
    from flax.linen import unbox

    shardings = state_shardings(mesh, make, *args)
    build = jax.jit(lambda *xs: unbox(make(*xs)), out_shardings=shardings)
    return build(*args), shardings


def place(tree: Any, sharding: Any) -> Any:
    """Host or device arrays to the devices of a sharding. Of several processes each holds the whole of every array, and
    fills the devices that are its own."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    return jax.tree.map(lambda x: assemble(x.shape, sharding, np.asarray(x).__getitem__), tree)


def assemble(shape: tuple[int, ...], sharding: Any, part: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    """An array of which each device asks `part` for its own slice, so that no host holds the whole of it."""
    return jax.make_array_from_callback(shape, sharding, part)


def fetch(tree: Any) -> Any:
    """Device arrays to the host, as numpy; waits until they are computed.

    What is spread over several processes is gathered first, so all of them have to ask for it, in the same order.
    """
    leaves, structure = jax.tree.flatten(tree)
    spread = [i for i, x in enumerate(leaves) if isinstance(x, jax.Array) and not _whole_here(x)]
    if spread:
        parts = jax.block_until_ready([leaves[i] for i in spread])  # no two programs in flight on CPUs
        for i, x in zip(spread, _gather(parts[0].sharding.mesh)(parts), strict=True):
            leaves[i] = x
    return jax.device_get(jax.tree.unflatten(structure, leaves))


def parts_here(x: jax.Array) -> list[tuple[tuple[slice, ...], np.ndarray]]:
    """Copies of the parts of an array that this process answers for, each with its place: of all processes together
    they are the whole array, once."""
    mine = [shard for shard in x.addressable_shards if shard.replica_id == 0]
    where = [tuple(slice(*s.indices(n)[:2]) for s, n in zip(shard.index, x.shape, strict=True)) for shard in mine]
    return [(place, np.array(shard.data)) for place, shard in zip(where, mine, strict=True)]


def _whole_here(x: jax.Array) -> bool:
    return x.is_fully_addressable or x.is_fully_replicated


@functools.cache
def _gather(mesh: Mesh) -> Callable[[list[jax.Array]], list[jax.Array]]:
    return jax.jit(lambda parts: parts, out_shardings=replicated(mesh))


def of_each_device(mesh: Mesh, row: np.ndarray) -> jax.Array:
    """An array [D K], D the devices of the mesh in its order, where each process writes its own `row` [K] for each of
    its devices."""
    sharding = NamedSharding(mesh, PartitionSpec(AXES))
    return jax.make_array_from_callback((mesh.size, *row.shape), sharding, lambda _: row[None])


def on_each_device(mesh: Mesh, fn: Callable[[Any], Any], shardings: Any) -> Callable[[Any], jax.Array]:
    """Compile `fn`, which makes a vector [K] of what a device holds of a tree with these shardings: the result is
    [D K], whole on every device. Copies of one value on two devices are not taken to be equal."""
    specs = jax.tree.map(lambda s: s.spec, shardings)
    alone = lambda tree: fn(tree)[None]  # noqa: E731
    each = jax.shard_map(alone, mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(AXES), check_vma=False)
    return jax.jit(each, out_shardings=replicated(mesh))


def owners(mesh: Mesh) -> list[int]:
    """The process of each device of the mesh, in its order."""
    return [device.process_index for device in mesh.devices.flat]


def holders(mesh: Mesh, x: Any) -> list[tuple]:
    """Which part of an array each device of the mesh holds, in its order: equal for two that hold the same."""
    parts = x.sharding.devices_indices_map(x.shape)
    return [tuple((s.start, s.stop) for s in parts[device]) for device in mesh.devices.flat]


def device_room(mesh: Mesh) -> int:
    """Bytes of memory of the smallest device of this process; CPUs share what the machine has left."""
    devices = mesh.local_devices
    stats = [device.memory_stats() or {} for device in devices]
    if all("bytes_limit" in each for each in stats):
        return min(each["bytes_limit"] for each in stats)
    try:
        words = dict(line.split(":", 1) for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
        return int(words["MemAvailable"].split()[0]) * 1024 // len(devices)
    except (OSError, KeyError, ValueError):
        return sys.maxsize  # nobody knows


def described() -> str:
    """One line: which process this is, of how many, with which devices."""
    return (
        f"process {jax.process_index()} of {jax.process_count()}, {jax.local_device_count()} of {jax.device_count()} "
        f"{jax.default_backend()} devices"
    )


def must_block(mesh: Mesh) -> bool:
    """Whether every program must be waited for: several CPU "devices" of one process deadlock in their all-reduce
    when two programs are in flight."""
    return mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
