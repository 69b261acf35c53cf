"""Several processes as one run: how they find each other, and what they tell each other over the host.

On one process nothing here does anything. Whatever is called on one process and talks to the others (`told`, `first`,
`any_process`, `together`) must be called on all of them, in the same order; an exception of one is told, never kept.
"""

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import jax
import numpy as np

T = TypeVar("T")
TOLD = "the other processes of the run were told, and stop too"  # a note on an error that is no longer a lone one


class RankError(RuntimeError):
    """Something that one process of a run could not do; the message names the process. Every process raises it.

    `status` is the exit status that the error itself would have had.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """Which processes compute a run together. It is the same run however many they are: this is no part of Config."""

    cluster: Literal["auto", "on", "off"] = "auto"  # join the processes that Cloud TPU, Slurm, Kubernetes or Open MPI
    # started; auto: where the environment says that there are several
    coordinator: str = ""  # HOST:PORT of process 0, where no cluster is found; the next two with it
    num_processes: int | None = None  # how many processes there are
    process_id: int | None = None  # which one this is, from 0
    local_device_ids: tuple[int, ...] = ()  # devices of this machine that the process takes; default: jax chooses
    init_timeout: int = 1800  # seconds until all processes must be there
    heartbeat_timeout: int = 30  # seconds of silence until a process counts as dead, and the others end themselves
    shutdown_timeout: int = 60  # seconds that a process waits for the others at the end

    def __post_init__(self):
        given = [bool(self.coordinator), self.num_processes is not None, self.process_id is not None]
        if any(given) and not all(given):
            raise ValueError("coordinator, num_processes and process_id are given together, or found by a cluster")
        if all(given) and not 0 <= self.process_id < self.num_processes:
            raise ValueError(f"process_id must be from 0 to {self.num_processes - 1}, not {self.process_id}")
        if self.coordinator and not self.coordinator.rpartition(":")[2].isdecimal():
            raise ValueError(f"coordinator must be HOST:PORT, not {self.coordinator!r}")
        for name in ("init_timeout", "heartbeat_timeout", "shutdown_timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 s or more, not {getattr(self, name)}")


ALONE = Processes()


def in_cluster(environment: Mapping[str, str]) -> bool:
    """Whether a launcher says that it has started more than one process. A shell inside a Slurm allocation is none."""
    slurm = environment.get("SLURM_NTASKS", "1") if {"SLURM_JOB_ID", "SLURM_PROCID"} <= environment.keys() else "1"
    mpi = environment.get("OMPI_COMM_WORLD_SIZE", "1")
    hosts = environment.get("TPU_PROCESS_ADDRESSES") or environment.get("TPU_WORKER_HOSTNAMES") or ""
    return int(slurm) > 1 or int(mpi) > 1 or "," in hosts


def connect(processes: Processes) -> bool:
    """Join the other processes, once, before JAX has touched a device; whether there are any.

    Raises ValueError or RuntimeError where they cannot be joined within `init_timeout`.
    """
    if jax.distributed.is_initialized():
        return True
    wanted = {"on": True, "off": False, "auto": in_cluster(os.environ)}[processes.cluster]
    if not wanted and not processes.coordinator:
        return False
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # two programs in flight deadlock in their collectives
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, which saves and ends the run
    jax.distributed.initialize(
        coordinator_address=processes.coordinator or None,
        num_processes=processes.num_processes,
        process_id=processes.process_id,
        local_device_ids=processes.local_device_ids or None,
        cluster_detection_method="deactivate" if processes.coordinator else None,
        initialization_timeout=processes.init_timeout,
        heartbeat_timeout_seconds=processes.heartbeat_timeout,
        shutdown_timeout_seconds=processes.shutdown_timeout,
    )
    return True


def several() -> bool:
    """Whether the run has more than one process."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is process 0, the only one that writes metrics, samples, configuration and report."""
    return jax.process_index() == 0


def told(text: str) -> list[str]:
    """What every process says, in their order."""
    if not several():
        return [text]
    from jax.experimental.multihost_utils import process_allgather

    said = np.frombuffer(text.encode(), np.uint8)
    sizes = process_allgather(np.asarray([len(said)], np.int32)).ravel()
    every = process_allgather(np.pad(said, (0, int(sizes.max()) - len(said))))
    return [row[:size].tobytes().decode() for row, size in zip(every, sizes, strict=True)]


def together(fn: Callable[[], T]) -> T:
    """`fn()` on every process. Where it raises on some, all of them raise: those their own error, the others RankError,
    which names the first of them and its error."""
    if not several():
        return fn()
    result, error = None, None
    try:
        result = fn()
    except Exception as raised:  # whatever it is, the others wait for this process
        error = raised
    every = [json.loads(text) for text in told(json.dumps(error and [exit_status(error), _named(error)]))]
    if error is not None:
        error.add_note(TOLD)
        raise error
    for rank, failure in enumerate(every):
        if failure:
            raise RankError(f"process {rank}: {failure[1]}", failure[0])
    return result


def first(fn: Callable[[], Any]) -> None:
    """`fn()` on process 0 alone; the others wait, and raise RankError where it raised there."""
    together(lambda: fn() if is_first() else None)


def exit_status(error: BaseException) -> int:
    """2 where the request was wrong, 1 where the run failed."""
    return getattr(error, "status", 2 if isinstance(error, ValueError | OSError) else 1)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def lone_errors_end_it(*shared: type[Exception]) -> Iterator[None]:
    """An exception inside that is none of the `shared` ones, which all processes raise together, and was not told them
    ends the process at once: to unwind would be to wait for the others, which wait for this one. On a single process
    nothing changes."""
    try:
        yield
    except BaseException as error:
        if several() and not isinstance(error, shared) and TOLD not in getattr(error, "__notes__", ()):
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
        raise


def leave() -> None:
    """Wait for the others to be done too, and take leave of them."""
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def any_process(flag: bool) -> bool:
    """Whether any process says yes."""
    return flag if not several() else any(text == "yes" for text in told("yes" if flag else "no"))


def summed(counts: Mapping[str, int]) -> dict[str, int]:
    """The counts of all processes together."""
    every = [json.loads(text) for text in told(json.dumps(dict(counts)))] if counts else []
    return {name: sum(theirs[name] for theirs in every) for name in counts}


def share(rows: int) -> slice:
    """The rows of a batch that this process has: equal blocks in the order of the processes, the row i of P at
    process floor(i·n/P)."""
    n, rank = jax.process_count(), jax.process_index()
    bounds = [-(-rows * r // n) for r in range(n + 1)]
    return slice(bounds[rank], bounds[rank + 1])


def joined(parts: Any, rows: int) -> Any:
    """Arrays [rows ...] of which each process has made its `share`, whole on every process; numpy, bit for bit."""
    if not several():
        return parts
    from jax.experimental.multihost_utils import process_allgather

    n = jax.process_count()
    sizes = [-(-rows * (r + 1) // n) - -(-rows * r // n) for r in range(n)]

    def join(x):
        x = np.ascontiguousarray(x)
        padded = np.zeros((max(sizes), *x.shape[1:]), x.dtype)
        padded[: len(x)] = x
        raw = process_allgather(padded.view(np.uint8).reshape(max(sizes), -1))  # no cast on the way
        kept = np.concatenate([np.asarray(block)[:size] for block, size in zip(raw, sizes, strict=True)])
        return np.ascontiguousarray(kept).view(x.dtype).reshape(rows, *x.shape[1:])

    return jax.tree.map(join, parts)
