"""Kill a small run with SIGKILL at random moments, take it up again, and compare what it leaves with a whole run.

    python tests/faults/kill.py --count 200 --nested 50 --seed 0

150 runs are killed at a moment drawn uniformly from the whole duration of a run: start, rollouts, grades, updates,
saves, evaluations, report. 50 of them are killed once more, at any moment of their second life, which begins by
restoring what the first one saved. Then they are left to end. Their metrics (but for times), samples, summary and the
bits of their last state must be those of a run that was never killed; so no prompt was skipped or repeated.
"""

import argparse
import json
import pathlib
import shutil
import signal
import sys
import tempfile
from collections import Counter

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[2])
    sys.path.insert(1, str(pathlib.Path(__file__).parent))

import numpy as np
import tiny_run


def trial(folder: pathlib.Path, moments: list[float], wanted: dict) -> tuple[list[str], str]:
    """Stages at which a run was killed, and what is wrong with its end; empty: nothing."""
    stages = []
    for moment in moments:
        life = tiny_run.Life(folder)
        stages.append(life.strike(signal.SIGKILL, moment))
        code = life.end()
        if code not in (-signal.SIGKILL, 0):
            return stages, f"exit status {code} before the kill: {life.said()}"
    life = tiny_run.Life(folder)
    code = life.end()
    if code:
        return stages, f"exit status {code} of the last life: {life.said()}"
    return stages, tiny_run.differences(tiny_run.marks(folder), wanted)


def campaign(count: int, nested: int, seed: int, work: pathlib.Path) -> tuple[Counter, list[str]]:
    """How often which stage was struck, and what failed."""
    rng, stages, failures = np.random.default_rng(seed), Counter(), []
    wanted, seconds = tiny_run.whole_run(work)
    for number in range(count - nested):
        moments = [float(rng.uniform(0, seconds))]
        if number < nested:
            moments.append(float(rng.uniform(0, seconds)))
        found, wrong = trial(work / "run", moments, wanted)
        stages.update(found)
        if number % 10 == 9:
            print(f"{number + 1} runs, {len(failures)} failed", file=sys.stderr)
        if wrong:
            failures.append(f"trial {number}, killed after {moments} s in {found}: {wrong}")
        for path in work.glob("run*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return stages, failures


def main() -> int:
    """Exit status 1 where a run did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--nested", type=int, default=50, help="of them, those of a second life")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        stages, failures = campaign(options.count, options.nested, options.seed, pathlib.Path(work))
    print(*failures, sep="\n")
    landed = sum(count for stage, count in stages.items() if stage != "ended")  # a run that has ended cannot be killed
    told = {"kills": landed, "of": options.count, "failed": len(failures), "stages": dict(stages)}
    print(json.dumps(told))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
