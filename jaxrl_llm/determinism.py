"""`--deterministic`: two runs of one configuration on the same devices give the same bits, also on GPUs.

CPUs and TPUs give them anyway, and pay nothing for the switches. On GPUs sums by scatter (the gradient of an embedding)
are put in an order, and matrix products take a fixed kernel and not the one that was fastest when they were timed:
steps are slower, by how much depends on the model; `perf/step_seconds` tells. It changes numbers, once.
"""

import functools
import os
import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.xla_bridge import backends_are_initialized  # nothing public tells

from jaxrl_llm.config import ConfigError
from jaxrl_llm.sharding import by_prompt, fetch, place

XLA = {"xla_gpu_deterministic_ops": "true", "xla_gpu_autotune_level": "0"}
NCCL = {"NCCL_ALGO": "Ring"}  # the order in which GPUs add up
REPEATS = 8
COST = "CPUs and TPUs need none of it and pay nothing; on GPUs steps get slower (by how much is not measured)"


def switch_on() -> None:
    """Set the switches of this process, before JAX has looked for devices; what the user has set stays.

    Raises ConfigError where it is too late, or where the user has set a switch to something else.
    """
    if backends_are_initialized():
        raise ConfigError(f"deterministic: JAX has begun; start the program with XLA_FLAGS='{_wanted()}'")
    given = os.environ.get("XLA_FLAGS", "")
    missing = [f"--{name}={value}" for name, value in XLA.items() if f"--{name}=" not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()
    for name, value in NCCL.items():
        os.environ.setdefault(name, value)
    require_switches()


def require_switches() -> None:
    """Raise ConfigError for the first switch that is not as it must be."""
    given = dict(word.removeprefix("--").partition("=")[::2] for word in os.environ.get("XLA_FLAGS", "").split())
    for name, value in XLA.items():
        if given.get(name) != value:
            raise ConfigError(f"deterministic: XLA_FLAGS must have --{name}={value}, and has {given.get(name)}")
    for name, value in NCCL.items():
        if not os.environ.get(name):
            raise ConfigError(f"deterministic: the environment variable {name} must be set, say to {value}")
    if not jax.config.jax_threefry_partitionable:
        raise ConfigError("deterministic: jax_threefry_partitionable must be on: draws must not depend on the mesh")


def verify(mesh: Any, work: Callable[[], Any] | None = None) -> str:
    """Look at the switches, then repeat what is known to vary on GPUs, and compare the bits. A line that says so.

    `work`: what is repeated; default: `probe`. Raises ConfigError where a switch is not set or the bits differ.
    """
    require_switches()
    work = work or functools.partial(probe(), *_numbers(mesh))
    seen = [_digests(work()) for _ in range(REPEATS)]
    for name, first in seen[0].items():
        if any(each[name] != first for each in seen[1:]):
            raise ConfigError(f"deterministic: {REPEATS} runs of one {name} gave different bits, switches or not")
    return f"deterministic: {_wanted()}; {', '.join(seen[0])} gave the same bits {REPEATS} times. {COST}"


def probe() -> Callable[..., dict[str, Any]]:
    """A compiled function of numbers [N] and places [N]: sums in an order that a device may choose."""

    def work(x, at):
        rows = x.reshape(-1, 64)
        scatter = jnp.zeros(64).at[at].add(x)
        return {"scatter": scatter, "sum": jnp.sum(x), "matrix product": rows.T @ rows}

    return jax.jit(work)


def _numbers(mesh: Any) -> tuple[Any, Any]:
    """Numbers of very different sizes, whose sum depends on the order, spread over the devices."""
    rng = np.random.default_rng(0)
    count = 4096 * mesh.size
    x = rng.normal(size=count) * 10.0 ** rng.uniform(-4, 4, count)
    at = rng.integers(0, 64, count)
    return place((x.astype(np.float32), at.astype(np.int32)), by_prompt(mesh))


def _digests(tree: dict[str, Any]) -> dict[str, int]:
    return {name: zlib.crc32(np.ascontiguousarray(x).tobytes()) for name, x in fetch(tree).items()}


def _wanted() -> str:
    return " ".join(f"--{name}={value}" for name, value in XLA.items())
