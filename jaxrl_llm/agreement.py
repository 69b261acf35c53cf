"""Do all processes of a run compute the same thing? Asked once at the start, and after every step.

In a program of several processes nothing else asks: a process with another seed, file or bit gives its share of every
sum, and the run goes on with numbers that belong to no configuration.
"""

import importlib.metadata
import json
import pathlib
import platform
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt

from jaxrl_llm import distributed, published
from jaxrl_llm.config import Config
from jaxrl_llm.distributed import RankError
from jaxrl_llm.programs import Programs, drawn
from jaxrl_llm.random import Stream, stream_key
from jaxrl_llm.sharding import fetch, holders, must_block, of_each_device, on_each_device, owners
from jaxrl_llm.types import Task

HOST = ("step", "stop")  # numbers of a process in front of the digests: its step, and whether it was asked to stop


class DisagreementError(RankError):
    """A process that computes something else than the others; the message names it, and what differs."""


def odd_one(values: Sequence[Any]) -> tuple[int, Any] | None:
    """The first process whose value is not that of the most, and what most say (a tie: what process 0 says)."""
    usual = max(Counter(values).items(), key=lambda item: (item[1], item[0] == values[0]))[0]
    return next(((rank, usual) for rank, value in enumerate(values) if value != usual), None)


def require_equal_start(config: Config, deterministic: bool = False) -> None:
    """Raise DisagreementError where a process was started with other code, configuration, data or weights."""
    if not distributed.several():
        return
    facts = {"code": code_digest(), **versions(), **config.to_json(), **data_digests(config.task)}
    facts |= {"deterministic": deterministic, **file_digests(config.pretrained)}
    every = [json.loads(text) for text in distributed.told(json.dumps(facts))]
    for name in dict.fromkeys(name for theirs in every for name in theirs):
        found = odd_one([json.dumps(theirs.get(name)) for theirs in every])
        if found:
            rank, usual = found
            raise DisagreementError(
                f"process {rank} was started with {name} {json.dumps(every[rank].get(name))}, the others with {usual}"
            )


def code_digest() -> int:
    """crc32 of the sources of this package."""
    crc = 0
    for path in sorted(pathlib.Path(__file__).parent.rglob("*.py")):
        crc = zlib.crc32(path.read_bytes(), crc)
    return crc


def versions() -> dict[str, str]:
    """What else computes the numbers."""
    libraries = ("jax", "jaxlib", "flax", "optax")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in libraries}


def data_digests(task: Task) -> dict[str, int]:
    """crc32 of the problems of both splits, and of what the grader is told of them."""
    digests = {"items": zlib.crc32(repr(list(getattr(task, "items", ()))).encode())}
    for split in ("train", "heldout"):
        crc = 0
        for x in jax.tree.leaves(getattr(task, split)):
            crc = zlib.crc32(np.ascontiguousarray(fetch(x)).tobytes(), crc)
        digests[split] = crc
    return digests


def file_digests(pretrained: str) -> dict[str, tuple[int, int]]:
    """Size and crc32 of each file of the model that the run starts from, see `published.digests`."""
    every = published.digests(pretrained) if pretrained else {}
    return {f"file {name} of pretrained": digest for name, digest in every.items()}


def bits_digest(x: Array) -> UInt[Array, ""]:
    """Sum of the bits of each element times an odd number of its place, mod 2**32: any one flipped bit changes it."""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        x = jax.lax.bitcast_convert_type(x, {2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize])
    bits = x.astype(jnp.uint32).ravel()
    return jnp.sum(bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1), dtype=jnp.uint32)


class StepCheck:
    """After each step: is it the same step with the same prompts on every process, and are copies of a parameter equal?

    Every device reads the parameters that it holds once, which costs less than the update did, and the digests are
    gathered. They are looked at once the next step is under way, so no device waits; on CPUs, at once.
    """

    def __init__(self, programs: Programs, params: Any):
        mesh = programs.mesh
        self._mesh, self._owners, self._late = mesh, owners(mesh), not must_block(mesh)
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        self._names = [jax.tree_util.keystr(path) for path, _ in leaves]
        self._holders = [holders(mesh, x) for _, x in leaves]
        places = _sharding(params), of_each_device(mesh, _numbers(0, 0)).sharding
        self._digests = on_each_device(mesh, _row(programs), places)
        self._pending: Array | None = None

    def __call__(self, step: int, params: Any, stop: bool) -> bool:
        """Whether any process was asked to stop; all of them get the same answer. Raises DisagreementError."""
        new = self._digests((params, of_each_device(self._mesh, _numbers(step, stop))))
        seen, self._pending = (self._pending, new) if self._late else (new, None)
        return False if seen is None else self._read(fetch(seen))

    def finish(self) -> None:
        """Look at what is not yet looked at."""
        if self._pending is not None:
            self._read(fetch(self._pending))

    def _read(self, table: np.ndarray) -> bool:
        step, stop, prompts, *leaves = table.T
        self._compare("step", step, [()] * len(step), step)
        self._compare("the prompts of the step", prompts, [()] * len(step), step)
        for name, digests, held in zip(self._names, leaves, self._holders, strict=True):
            self._compare(f"parameter {name}", digests, held, step)
        return bool(stop.any())

    def _compare(self, what: str, digests: np.ndarray, held: list[tuple], step: np.ndarray) -> None:
        """Devices that hold the same part must have the same digest of it."""
        for part in dict.fromkeys(held):
            devices = [d for d, other in enumerate(held) if other == part]
            found = odd_one([int(digests[d]) for d in devices])
            if found:
                rank = self._owners[devices[found[0]]]
                raise DisagreementError(
                    f"step {int(step[0])}: process {rank} disagrees with the others in {what} (digest "
                    f"{int(digests[devices[found[0]]])}, not {found[1]})"
                )


def _numbers(step: int, stop: bool | int) -> np.ndarray:
    return np.asarray([step, stop], np.uint32)


def _sharding(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.sharding, tree)


def _row(programs: Programs) -> Callable[[Any], UInt[Array, " K"]]:
    """What a device says: the numbers of its process, the prompts that it would draw, its parts of the parameters."""
    prompts, agenda, seed = drawn(programs.config)[0], programs.agenda, programs.config.seed

    def row(tree):
        params, (numbers,) = tree
        step = jnp.maximum(numbers[0].astype(jnp.int32), 1) - 1
        places = agenda.places(stream_key(seed, Stream.ORDER), step, prompts, len(agenda.rows))
        digests = [bits_digest(agenda.rows[places]), *(bits_digest(x) for x in jax.tree.leaves(params))]
        return jnp.concatenate([numbers, jnp.stack(digests)])

    return row
