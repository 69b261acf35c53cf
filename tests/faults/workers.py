"""Workers that are killed, frozen or put to sleep at random moments of a supervised run of several processes.

    python tests/faults/workers.py --count 10 --procs 2 --devices 1 --seed 0

One run under `jaxrl-llm supervise` is struck `count` times in each way, in random order:

    kill    SIGKILL to one worker
    freeze  SIGSTOP: no heartbeat, no step
    sleep   alive, its heartbeats go on, and it never comes to the next collective

A strike passes when the supervisor names the worker, restarts the job once, and the job comes to a new step. In the end
the run must leave the metrics and samples of one that nobody disturbed, bit for bit. The last line is JSON; exit status
1 where anything failed.
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
    train --task digit_sort,length=2,heldout=20 --prompts-per-step 4 --answers-per-prompt 2 --eval-every 100000
    --eval-problems 8 --eval-samples 2 --checkpoint-every 5 --samples-every 7 --warmup.max-steps 0 --model.layers 1
    --model.width 16 --model.heads 2 --model.kv-heads 1 --model.head-size 8 --model.mlp-width 16 --learning-rate 1e-2
    --mesh.data -1 --mesh.fsdp 1 --no-measure-kl --quiet
""")


def start(options: argparse.Namespace, folder: pathlib.Path) -> subprocess.Popen:
    """A supervised run into folder/run, with what it says in folder/log."""
    folder.mkdir(parents=True)
    environment = os.environ | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # on CPUs only process 0 keeps what it compiles
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(options.devices),
        "JAX_COMPILATION_CACHE_DIR": str(options.cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "faults" / "asleep")]),
    }
    care = ["--procs", str(options.procs), "--stall-floor", str(options.floor), "--first-limit", "300"]
    care += ["--max-restarts", str(options.count * len(options.kinds))]
    command = [sys.executable, "-m", "jaxrl_llm", "supervise", *care, "--logs", str(folder / "logs"), "--", *TRAIN]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [*command, "--steps", str(options.steps), "--out", str(folder / "run")],
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
    path = folder / "run" / "metrics.jsonl"
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 10_000))
        lines = file.read().split(b"\n")[:-1]
    return json.loads(lines[-1])["step"] if lines else 0


def workers(supervisor: subprocess.Popen) -> list[int]:
    """Process ids of the training processes, in their order."""
    found = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == supervisor.pid:
                words = path.with_name("cmdline").read_bytes().split(b"\0")
                if b"--process-id" in words:  # one that is being started has not become itself yet
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


def strike(
    options: argparse.Namespace, supervisor: subprocess.Popen, folder: pathlib.Path, number: int, draws: random.Random
) -> dict:
    """One strike: what was done, how long the notice and the next new step took, and what is wrong; "" is nothing."""
    kind = options.order[number]
    at, rank = last_step(folder) + draws.randrange(1, 9), draws.randrange(options.procs)
    outcome = {"kind": kind, "rank": rank, "step": None, "notice": None, "new_step": None, "wrong": ""}
    if not await_that(lambda: last_step(folder) >= at, supervisor, options.limit):
        return outcome | {"wrong": f"never came to step {at}"}
    time.sleep(draws.random() * 0.05)
    os.kill(workers(supervisor)[rank], KINDS[kind])
    struck, outcome["step"] = time.monotonic(), last_step(folder)
    if not await_that(lambda: len(reports(folder)) > number, supervisor, options.limit):
        return outcome | {"wrong": "not noticed"}
    outcome["notice"] = round(time.monotonic() - struck, 2)
    if not await_that(lambda: last_step(folder) > outcome["step"], supervisor, options.limit):
        return outcome | {"wrong": f"no step after {outcome['step']}"}
    outcome["new_step"] = round(time.monotonic() - struck, 2)
    report = reports(folder)[number]
    named = {"kill": "was killed by SIGKILL", "freeze": ".*: frozen by SIGSTOP", "sleep": ".*: at "}[kind]
    if not re.search(rf"process {rank} {named}", report):
        return outcome | {"wrong": f"process {rank} is not named"}
    if f"restart {number + 1} of" not in report:
        return outcome | {"wrong": "not restarted exactly once"}
    return outcome


def reports(folder: pathlib.Path) -> list[str]:
    """What the supervisor has said so far, restart by restart."""
    return (folder / "log").read_text(errors="replace").split("jaxrl-llm supervise: ")[1:]


def end(supervisor: subprocess.Popen) -> None:
    """Kill the supervisor and its workers, each by its process group."""
    for pid in [*workers(supervisor), supervisor.pid] if supervisor.poll() is None else []:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    supervisor.wait()


def verdict(options: argparse.Namespace, struck: pathlib.Path, status: int | None) -> str:
    """What is wrong with the run that has ended; "": nothing."""
    whole = options.work / "whole"
    if status != 0:
        return f"exit status {status}"
    if [row["step"] for row in rows(struck)] != list(range(1, options.steps + 1)):
        return "steps are missing or twice there"
    if rows(struck) != rows(whole):
        return "other metrics"
    if (struck / "run" / "samples.jsonl").read_bytes() != (whole / "run" / "samples.jsonl").read_bytes():
        return "other samples"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="strikes of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--procs", type=int, default=2, help="processes of the run")
    parser.add_argument("--devices", type=int, default=1, help="forced CPU devices of each")
    parser.add_argument("--steps", type=int, help="default: 20 for each strike")
    parser.add_argument("--floor", type=float, default=5.0, help="seconds without a sign of life, at least")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds for each part of a strike")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, help="folder for the runs; default: a new one, removed at the end")
    parser.add_argument("--cache", type=pathlib.Path, default=ROOT / ".jax_cache", help="of compiled programs")
    options = parser.parse_args()
    temporary = options.work is None
    options.work = options.work or pathlib.Path(tempfile.mkdtemp(prefix="workers-"))
    draws = random.Random(options.seed)
    options.order = options.kinds * options.count
    draws.shuffle(options.order)
    options.steps = options.steps or 20 * len(options.order)
    whole = start(options, options.work / "whole")
    try:
        whole.wait(10 * options.limit)
    finally:
        end(whole)
    if whole.returncode != 0:
        sys.exit(f"the undisturbed run failed: {(options.work / 'whole' / 'log').read_text()[-4000:]}")
    outcomes, struck = [], options.work / "struck"
    supervisor = start(options, struck)
    try:
        for number in range(len(options.order)):
            outcomes.append(strike(options, supervisor, struck, number, draws))
            print(json.dumps(outcomes[-1]), flush=True)
            if supervisor.poll() is not None:
                break
        with contextlib.suppress(subprocess.TimeoutExpired):
            supervisor.wait(10 * options.limit)
        wrong = verdict(options, struck, supervisor.poll())
    finally:
        end(supervisor)
    figures = summary(options, outcomes) | {"steps": options.steps, "run": wrong or "bit-identical"}
    failed = bool(wrong) or len(outcomes) < len(options.order) or any(o["wrong"] for o in outcomes)
    if temporary and not failed:
        shutil.rmtree(options.work)
    print(json.dumps(figures))
    sys.exit(failed)


def summary(options: argparse.Namespace, outcomes: list[dict]) -> dict:
    """The figures of a campaign, by kind."""
    figures = {"procs": options.procs, "devices": options.devices, "floor": options.floor, "seed": options.seed}
    for kind in options.kinds:
        mine = [o for o in outcomes if o["kind"] == kind]
        passed = [o for o in mine if not o["wrong"]]
        figures[kind] = {"passed": len(passed), "of": options.count}
        for name in ("notice", "new_step"):
            times = sorted(o[name] for o in passed)
            figures[kind][f"{name}_seconds"] = {"median": times[len(times) // 2], "max": times[-1]} if times else None
    return figures


if __name__ == "__main__":
    main()
