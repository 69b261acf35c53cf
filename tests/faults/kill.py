"""Kill a small run with SIGKILL at random moments, take it up again, and compare what it leaves with a whole run.

    python tests/faults/kill.py --count 200 --nested 50 --seed 0

Every second kill falls at a moment drawn uniformly from the whole duration of a run: start, rollouts, grades, updates,
saves, evaluations, report. The others are aimed at one of the parts in turn, at a random one of its six times: a
rollout, a grade, an update, a save, the end of a save in the background. 50 runs are killed once more in their second
life, every second of them while it restores what the first one saved. A kill that comes too late is drawn again. Then
the runs are left to end. Their metrics (but for times), samples, summary and the bits of their last state must be
those of a run that was never killed; so no prompt was skipped or repeated.
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

AIMS = [part for part in tiny_run.PARTS if part != "restore"]


def draw(rng: np.random.Generator, number: int, seconds: float, lengths: dict[str, float]) -> tuple:
    """A strike: how to aim, and what at."""
    if number % 2:
        return "strike", float(rng.uniform(0, seconds))
    part = AIMS[number // 2 % len(AIMS)]
    return "strike_in", part, int(rng.integers(1, tiny_run.STEPS + 1)), float(rng.uniform(0, lengths[part]))


def trial(folder: pathlib.Path, strikes: list[tuple], wanted: dict) -> tuple[list[str], str]:
    """Where a run was killed, and what is wrong with its end; empty: nothing."""
    found = []
    for how, *aim in strikes:
        life = tiny_run.Life(folder)
        found.append(getattr(life, how)(signal.SIGKILL, *aim))
        code = life.end()
        if code not in (-signal.SIGKILL, 0):
            return found, f"exit status {code} before the kill: {life.said()}"
    life = tiny_run.Life(folder)
    code = life.end()
    if code:
        return found, f"exit status {code} of the last life: {life.said()}"
    return found, tiny_run.differences(tiny_run.marks(folder), wanted)


def campaign(count: int, nested: int, seed: int, work: pathlib.Path) -> tuple[Counter, list[str], int]:
    """How often a run was killed where, what failed, and how often the second life too."""
    rng, places, failures, twice, number = np.random.default_rng(seed), Counter(), [], 0, 0
    wanted, seconds = tiny_run.whole_run(work)
    ran = zip(tiny_run.PARTS, tiny_run.BOARD.tolist(), strict=True)
    lengths = {name: spent / ended for name, (_, ended, spent) in ran if ended}
    while (landed := sum(places.values())) < count and number < 3 * count:
        strikes = [draw(rng, number, seconds, lengths)]
        if twice < nested and landed + 2 <= count:
            restoring = ("strike_in", "restore", 1, float(rng.uniform(0, seconds / 50)))
            strikes.append(restoring if number % 4 < 2 else ("strike", float(rng.uniform(0, seconds))))
        found, wrong = trial(work / "run", strikes, wanted)
        hits = [place for place in found if place != "ended"]
        places.update(hits)
        number, twice = number + 1, twice + (len(hits) == 2)
        if number % 10 == 0:
            print(f"{number} runs, {sum(places.values())} kills, {len(failures)} failed", file=sys.stderr)
        if wrong:
            failures.append(f"trial {number}, {strikes}, killed in {found}: {wrong}")
        for path in work.glob("run*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return places, failures, twice


def main() -> int:
    """Exit status 1 where a run did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="kills")
    parser.add_argument("--nested", type=int, default=50, help="of them, those of a second life")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        places, failures, twice = campaign(options.count, options.nested, options.seed, pathlib.Path(work))
    print(*failures, sep="\n")
    killed = sum(places.values())
    told = {"kills": killed, "twice": twice, "failed": len(failures), "places": dict(places)}
    print(json.dumps(told))
    return int(bool(failures) or killed < options.count)


if __name__ == "__main__":
    sys.exit(main())
