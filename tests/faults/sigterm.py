"""Ask a small run to stop with SIGTERM at random moments: is the step saved, and the exit status 0, in time?

    python tests/faults/sigterm.py --count 50 --seed 0 --grace 30

Moments are drawn from the part of a run that has something to save, from its first checkpoint on. The step that it
says it has saved must be there, finished and undamaged, and the run must end as one that nobody stopped.
"""

import argparse
import json
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[2])
    sys.path.insert(1, str(pathlib.Path(__file__).parent))

import numpy as np
import tiny_run

from jaxrl_llm import heartbeat, manifest


def trial(folder: pathlib.Path, share: float, seconds: float, wanted: dict) -> tuple[str, float, str]:
    """Stage at which a run was stopped, seconds that it took to end, and what is wrong; empty: nothing. The stage is
    "ended" where the run was at its end before it noticed, and so had nothing more to save.

    `share` is where in the steps of the run the signal comes, which take `seconds`.
    """
    life = tiny_run.Life(folder)
    while heartbeat.read(life.sign).get("stage") not in ("step", "save"):
        if life.seconds() > 300:
            return "start", 0.0, f"no step within 300 s: {life.said()}"
        time.sleep(0.002)
    stage = life.strike(signal.SIGTERM, life.seconds() + share * seconds)
    asked = time.monotonic()
    code = life.end()
    took = time.monotonic() - asked
    said = re.findall(r"step (\d+) of \d+ is saved", life.said().replace("\n", " "))
    over = (folder / "report.html").exists()
    if code and not (over and code == -signal.SIGTERM):  # at the very end nobody listens to it any more
        return stage, took, f"exit status {code}: {life.said()}"
    if not said and not over:
        return stage, took, f"it neither ended nor said what is saved: {life.said()}"
    for step in said:
        manifest.require_files(folder / "checkpoints" / step)
    if said and tiny_run.Life(folder).end():
        return stage, took, "it does not go on"
    return stage if said else "ended", took, tiny_run.differences(tiny_run.marks(folder), wanted)


def campaign(count: int, seed: int, work: pathlib.Path) -> tuple[dict, list[str]]:
    """Figures, and what failed."""
    rng, stages, times, failures = np.random.default_rng(seed), [], [], []
    wanted, seconds = tiny_run.whole_run(work)
    while len(stages) - stages.count("ended") < count:
        stage, took, wrong = trial(work / "run", float(rng.uniform()), 0.3 * seconds, wanted)
        stages.append(stage)
        times.append(took)
        if len(stages) % 10 == 0:
            print(f"{len(stages)} runs, {len(failures)} failed", file=sys.stderr)
        if wrong:
            failures.append(f"trial {len(stages)}, stopped in {stage}: {wrong}")
        for path in work.glob("run*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    counts = {stage: stages.count(stage) for stage in sorted(set(stages))}
    return {"saved": count, "stages": counts, "seconds_most": round(max(times), 2)}, failures


def main() -> int:
    """Exit status 1 where a run did not end as it should, or not within its grace."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grace", type=float, default=30.0, help="seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        told, failures = campaign(options.count, options.seed, pathlib.Path(work))
    if told["seconds_most"] > options.grace:
        failures.append(f"it took {told['seconds_most']} s to stop")
    print(*failures, sep="\n")
    print(json.dumps({"stops": options.count, "failed": len(failures), **told}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
