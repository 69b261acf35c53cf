"""Real processes as one run on this machine: started with forced CPU devices, waited for, killed by their groups."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import socket
import subprocess
import sys
import time

import jax

FLAGS = shlex.split("""
    --task digit_sort,length=2,heldout=20 --steps 6 --prompts-per-step 8 --answers-per-prompt 4 --epochs 2
    --eval-every 3 --eval-problems 8 --eval-samples 2 --checkpoint-every 2 --samples-every 3 --warmup.max-steps 5
    --warmup.batch 16 --warmup.accuracy 1 --model.layers 1 --model.width 16 --model.heads 2 --model.kv-heads 1
    --model.head-size 8 --model.mlp-width 16 --learning-rate 1e-2 --quiet
""")


def environment(devices: int, cache: str | None = None) -> dict[str, str]:
    """For a process with so many CPU devices, and the compile cache of the tests."""
    kept = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
    return kept | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": cache or jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[1]),
    }


def ranks(processes: int) -> list[list[str]]:
    """The flags that make each of the processes part of one run; none for a single one."""
    if processes == 1:
        return [[]]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    who = ["--coordinator", address, "--num-processes", str(processes)]
    return [[*who, "--process-id", str(rank), "--init-timeout", "60"] for rank in range(processes)]


def finish(
    commands: list[list[str]], folder: pathlib.Path, devices: int, seconds: float = 200.0
) -> list[tuple[int | None, str]]:
    """Run the commands of python side by side; exit status (None: killed after `seconds`) and output of each."""
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"rank{rank}.log" for rank in range(len(commands))]
    started = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("wb") as file:
            started.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    env=environment(devices),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    deadline = time.monotonic() + seconds
    try:
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, deadline - time.monotonic()))
        return [(process.poll(), log.read_text()) for process, log in zip(started, logs, strict=True)]
    finally:
        for process in started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def train(folder: pathlib.Path, processes: int, devices: int, *more: str) -> pathlib.Path:
    """The folder of a finished run of so many processes with so many devices each."""
    out = folder / f"{processes}x{devices}"
    commands = [["-m", "jaxrl_llm", "train", *FLAGS, *more, *rank, "--out", str(out)] for rank in ranks(processes)]
    for rank, (status, text) in enumerate(finish(commands, folder / f"logs{processes}x{devices}", devices)):
        assert status == 0, f"process {rank} of {processes} ended with {status}:\n{text[-4000:]}"
    return out


def rows(out: pathlib.Path) -> list[dict]:
    """metrics.jsonl without wall-clock figures."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in lines]
