"""A run of seconds, in a process that is forked off ready to start, so that hundreds of them can be struck."""

import functools
import json
import mmap
import os
import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence

# Most of a life is spent on getting its programs; every one of them is worth keeping.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax
import matplotlib.pyplot  # noqa: F401 (these are loaded before the fork, too)
import numpy as np
import orbax.checkpoint  # noqa: F401
import tensorboardX  # noqa: F401

from jaxrl_llm import cli, heartbeat, manifest, train
from jaxrl_llm.checkpoint import Checkpoints
from jaxrl_llm.programs import Programs
from jaxrl_llm.runs import read_summary

# Half of such a life would be plots, which nothing is taken up from.
train.write_report = lambda runs, path: path.write_text("report")

STEPS = 6
PARTS = {  # of a run, at which strikes can be aimed; a save goes on in the background, and then is finished
    "rollout": (Programs, "sample"),
    "grade": (Programs, "grade"),
    "update": (Programs, "learn"),
    "save": (Checkpoints, "save"),
    "finish": (Checkpoints, "_finish"),
    "restore": (Checkpoints, "_read"),
}
# Shared with the processes that are forked off: how often a part has begun, how often it has ended, its seconds.
BOARD = np.frombuffer(mmap.mmap(-1, 8 * 3 * len(PARTS)), np.float64).reshape(len(PARTS), 3)


def noting(row: int, work):
    """The work, with its begin and its end on the board. It is waited for, so that it is there that it happens."""

    @functools.wraps(work)
    def noted(*given, **named):
        BOARD[row, 0] += 1
        began = time.monotonic()
        out = jax.block_until_ready(work(*given, **named))
        BOARD[row, 1:] += 1, time.monotonic() - began
        return out

    return noted


for row, (owner, name) in enumerate(PARTS.values()):
    setattr(owner, name, noting(row, getattr(owner, name)))
FLAGS = shlex.split(f"""
    train --task digit_sort,length=2,heldout=20 --recipe grpo --steps {STEPS} --prompts-per-step 8
    --answers-per-prompt 4 --eval-every 3 --eval-problems 8 --eval-samples 1 --checkpoint-every 1 --no-measure-kl
    --samples-every 2 --warmup.max-steps 0 --model.layers 1 --model.width 16 --model.no-recompute
    --model.heads 2 --model.kv-heads 1 --model.head-size 8 --model.mlp-width 16
""")


class Life:
    """One process of the run in a folder, begun or taken up again."""

    def __init__(self, folder: pathlib.Path, more: Sequence[str] = ()):
        self.folder, self.begun = folder, time.monotonic()
        self.sign = folder.with_name(folder.name + ".sign")
        self.log = folder.with_name(folder.name + ".log")
        self.sign.unlink(missing_ok=True)
        BOARD[:] = 0
        resume = ["--resume"] if (folder / "config.json").exists() else []
        self.pid = os.fork()
        if self.pid == 0:
            self._live([*FLAGS, "--out", str(folder), "--progress-file", str(self.sign), *resume, *more])

    def _live(self, arguments: list[str]) -> None:
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        code = 1
        try:
            cli.main(arguments)
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def strike(self, number: signal.Signals, after: float) -> str:
        """Send a signal so many seconds after the start; in which stage. A process that has ended is left alone."""
        time.sleep(max(0.0, self.begun + after - time.monotonic()))
        if self._ended():
            return "ended"
        os.kill(self.pid, number)
        return heartbeat.read(self.sign).get("stage", "start")

    def strike_in(self, number: signal.Signals, part: str, time_of: int, after: float) -> str:
        """The same so many seconds after a part of the run has begun for the n-th time; in which part it then was."""
        row = list(PARTS).index(part)
        while BOARD[row, 0] < time_of:
            if self._ended():
                return "ended"
            time.sleep(2e-4)
        time.sleep(after)
        if self._ended():
            return "ended"
        os.kill(self.pid, number)
        inside = [name for name, (begun, ended, _) in zip(PARTS, BOARD, strict=True) if begun > ended]
        return "+".join(inside) or "between"

    def _ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def end(self) -> int:
        """Wait for it; the exit status, or minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def seconds(self) -> float:
        """Since its start."""
        return time.monotonic() - self.begun

    def said(self) -> str:
        """The end of what all processes of the run have printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-3000:]


def marks(folder: pathlib.Path) -> dict:
    """All that must be the same of two runs: log without times, samples, summary, and the bits of the last state."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = folder / "checkpoints" / str(STEPS)
    manifest.require_files(last)
    return {
        "metrics": [{name: x for name, x in row.items() if not name.startswith("perf/")} for row in lines],
        "samples": (folder / "samples.jsonl").read_text(),
        "summary": read_summary(folder),
        "leaves": manifest.read_manifests(last)[0]["leaves"],
        "report": (folder / "report.html").exists(),
    }


def whole_run(folder: pathlib.Path) -> tuple[dict, float]:
    """Marks of a run that nobody strikes, and its seconds with a warm cache of compiled programs."""
    for name in ("first", "again"):
        life = Life(folder / name)
        if life.end():
            raise RuntimeError(f"the run itself fails: {life.said()}")
        seconds = life.seconds()
    if marks(folder / "first") != marks(folder / "again"):
        raise RuntimeError("two runs that nobody struck differ")
    return marks(folder / "first"), seconds


def differences(found: dict, wanted: dict) -> str:
    """Which marks differ; empty: none."""
    return ", ".join(name for name in wanted if found[name] != wanted[name])
