"""Workers that are killed, frozen or put to sleep at random moments of a supervised run of several processes.

    python tests/faults/workers.py --count 10 --procs 2 --devices 2 --seed 0

Each trial starts `jaxrl-llm supervise`, lets the run come to a random step, and then strikes one worker:

    kill    SIGKILL
    freeze  SIGSTOP: no heartbeat, no step
    sleep   alive, its heartbeats go on, and it never comes to the next collective

A trial passes when the supervisor names a worker, the job comes to a new step, ends with 0, and leaves the metrics and
samples of a run that nobody disturbed, bit for bit. The last line is JSON; exit status 1 where a trial failed.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
KINDS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "sleep": signal.SIGUSR2}
TRAIN = shlex.split("""
    train --task digit_sort,length=2,heldout=20 --prompts-per-step 8 --answers-per-prompt 4 --eval-every 10
    --eval-problems 8 --eval-samples 2 --checkpoint-every 5 --samples-every 3 --warmup.max-steps 5 --warmup.batch 16
    --warmup.accuracy 1 --model.layers 1 --model.width 16 --model.heads 2 --model.kv-heads 1 --model.head-size 8
    --model.mlp-width 16 --learning-rate 1e-2
""")


def start(options: argparse.Namespace, folder: pathlib.Path) -> subprocess.Popen:
    """A supervised run into folder/run, with what it says in folder/log."""
    folder.mkdir(parents=True)
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(options.devices),
        "JAX_COMPILATION_CACHE_DIR": str(options.cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "faults" / "asleep")]),
    }
    environment.pop("XLA_FLAGS", None)
    care = ["--procs", str(options.procs), "--stall-floor", str(options.floor), "--first-limit", "300"]
    command = [sys.executable, "-m", "jaxrl_llm", "supervise", *care, "--logs", str(folder / "logs"), "--", *TRAIN]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--steps", str(options.steps), "--out", str(folder / "run"), "--quiet"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def rows(folder: pathlib.Path) -> list[dict]:
    """The log without wall-clock figures; a last line without an end is left out."""
    path = folder / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in found]


def last_step(folder: pathlib.Path) -> int:
    """The newest step in the log; 0: none."""
    found = rows(folder)
    return found[-1]["step"] if found else 0


def workers(supervisor: subprocess.Popen) -> list[int]:
    """Process ids of the training processes, in their order."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == supervisor.pid:
                words = path.with_name("cmdline").read_bytes().split(b"\0")
                found[int(words[words.index(b"--process-id") + 1])] = int(path.parent.name)
    return [found[rank] for rank in sorted(found)]


def await_that(condition, supervisor: subprocess.Popen, seconds: float) -> bool:
    """Wait until the condition holds; False where the supervisor ends or the time is over first."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        if supervisor.poll() is not None:
            return bool(condition())
        time.sleep(0.02)
    return False


def strike(options: argparse.Namespace, folder: pathlib.Path, kind: str, draws: random.Random) -> dict:
    """One trial: what was done, how long the notice and the next new step took, and what is wrong; "" is nothing."""
    at, rank, wait = draws.randrange(1, options.steps - 5), draws.randrange(options.procs), draws.random() * 0.2
    outcome = {"kind": kind, "at": at, "rank": rank, "notice": None, "new_step": None, "wrong": ""}
    supervisor = start(options, folder)
    log = folder / "log"
    try:
        if not await_that(lambda: last_step(folder) >= at, supervisor, options.limit):
            return outcome | {"wrong": f"never came to step {at}"}
        time.sleep(wait)
        os.kill(workers(supervisor)[rank], KINDS[kind])
        struck, seen = time.monotonic(), last_step(folder)
        if not await_that(lambda: b"jaxrl-llm supervise: " in log.read_bytes(), supervisor, options.limit):
            return outcome | {"wrong": "not noticed"}
        outcome["notice"] = round(time.monotonic() - struck, 2)
        if not await_that(lambda: last_step(folder) > seen, supervisor, options.limit):
            return outcome | {"wrong": f"no step after {seen}"}
        outcome["new_step"] = round(time.monotonic() - struck, 2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(options.limit)
        return outcome | {"wrong": verdict(options, folder, supervisor.poll(), kind, rank)}
    finally:
        end(supervisor)


def end(supervisor: subprocess.Popen) -> None:
    """Kill the supervisor and its workers, each by its process group."""
    for pid in [*workers(supervisor), supervisor.pid] if supervisor.poll() is None else []:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    supervisor.wait()


def verdict(options: argparse.Namespace, folder: pathlib.Path, status: int | None, kind: str, rank: int) -> str:
    """What is wrong with a run that has ended; "": nothing."""
    said = (folder / "log").read_text()
    whole = options.work / "whole"
    named = {
        "kill": rf"process {rank} was killed by SIGKILL",
        "freeze": rf"process {rank} .*frozen by SIGSTOP",
        "sleep": rf"process {rank} .*: at ",
    }
    if status != 0:
        return f"exit status {status}"
    if not re.search(named[kind], said):
        return f"process {rank} is not named"
    if "restart 1 of" not in said or "restart 2 of" in said:
        return "not restarted exactly once"
    if rows(folder) != rows(whole):
        return "other metrics"
    if (folder / "run" / "samples.jsonl").read_bytes() != (whole / "run" / "samples.jsonl").read_bytes():
        return "other samples"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="trials of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--procs", type=int, default=2, help="processes of the run")
    parser.add_argument("--devices", type=int, default=2, help="forced CPU devices of each")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--floor", type=float, default=5.0, help="seconds without a sign of life, at least")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for each part of a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, help="folder for the runs; default: a new one, removed at the end")
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / ".jax_cache", help="of compiled programs")
    options = parser.parse_args()
    temporary = options.work is None
    options.work = options.work or pathlib.Path(tempfile.mkdtemp(prefix="workers-"))
    whole = start(options, options.work / "whole")
    try:
        whole.wait(options.limit)
    finally:
        end(whole)
    if whole.returncode != 0:
        sys.exit(f"the undisturbed run failed: {(options.work / 'whole' / 'log').read_text()[-4000:]}")
    draws, outcomes = random.Random(options.seed), []
    for number in range(options.count):
        for kind in options.kinds:
            outcomes.append(strike(options, options.work / f"{kind}{number}", kind, draws))
            print(json.dumps(outcomes[-1]), flush=True)
    if temporary and not any(o["wrong"] for o in outcomes):
        shutil.rmtree(options.work)
    print(json.dumps(summary(options, outcomes)))
    sys.exit(any(o["wrong"] for o in outcomes))


def summary(options: argparse.Namespace, outcomes: list[dict]) -> dict:
    """The figures of a campaign, by kind."""
    figures = {"procs": options.procs, "devices": options.devices, "floor": options.floor, "seed": options.seed}
    for kind in options.kinds:
        mine = [o for o in outcomes if o["kind"] == kind]
        passed = [o for o in mine if not o["wrong"]]
        figures[kind] = {"passed": len(passed), "of": len(mine)}
        for name in ("notice", "new_step"):
            times = sorted(o[name] for o in passed)
            figures[kind][f"{name}_seconds"] = {"median": times[len(times) // 2], "max": times[-1]} if times else None
    return figures


if __name__ == "__main__":
    main()
