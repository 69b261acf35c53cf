"""Give graders fuzzed and hostile answers, and answers that hang: no hang, no crash of the pool, no lost order.

    python tests/faults/graders.py --count 100000 --seed 0 --budget 2

fuzz      so many answers of random characters, numbers, formulas and brackets, in batches: 44 in a hundred each to
          `numeric` and `math_verify`, 11 to the scorers of two reasoning-gym data sets, one to `code`, for which each
          is a program in a process of its own; and to each the answers of `hostile_answers.py`, 300 made by hand.
          Right answers among them must stay right, in their places
hangers   a batch of 448 usual answers to `math_verify` with 64 among them that never end, against the same without
          them: seconds until the last usual answer has its grade, in turn, five times

A grader fails where a right answer loses its grade, where a grader process crashes (none of these answers may do that),
where one call takes longer than the budget and half a second, and where the keeper has other than two living children
before or after. p50, p99 and total_max are of all rounds of an answer together, max_s of one.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[2])
    sys.path.insert(1, str(pathlib.Path(__file__).parent))

import numpy as np
from hostile_answers import HOSTILE

from jaxrl_llm.rewards.pool import GraderPool, _Worker

WORKERS, SLACK = 2, 0.5
DATASETS = ("products", "spell_backward")
PIECES = (
    *("0", "1", "7", "42", "-3", ".5", "1,000", "2e3", "1/3", "+", "-", "*", "/", "^", "=", "(", ")", "[", "]"),
    *("{", "}", "x", "y", "pi", "%", "!", "_", "nan", "inf", "'", '"', "__", "lambda", " ", "\n", "\t", "\x00"),
    *("\\frac{1}{2}", "\\sqrt", "\\boxed{", "$", "$$", "\\(", "\\)", "\\infty", "\\text{", "\u0663", "\u2212"),
    *("import os", "\u202e", "\U0001f642", "\xe9"),
)


class Clock:
    """Notes how long each answer was with a grader, all rounds together and the longest, and when the last ended."""

    def __init__(self):
        self.spent, self.done, self.longest, ask = {}, {}, {}, _Worker.ask

        def timed(worker, item, seconds):
            began = time.monotonic()
            try:
                return ask(worker, item, seconds)
            finally:
                place, seconds = item["place"], time.monotonic() - began
                self.done[place] = began + seconds
                self.spent[place] = self.spent.get(place, 0.0) + seconds
                self.longest[place] = max(self.longest.get(place, 0.0), seconds)

        _Worker.ask = timed

    def begin(self) -> float:
        """Forget what was noted."""
        self.spent, self.done, self.longest = {}, {}, {}
        return time.monotonic()


def fuzzed(count: int, rng: np.random.Generator) -> list[str]:
    """Random answers of up to 40 pieces."""
    return ["".join(rng.choice(PIECES, rng.integers(0, 40))) for _ in range(count)]


def living(pool: GraderPool) -> tuple[int, int]:
    """The keeper of a pool, and how many of its children live: a zombie does not."""
    keeper = pool._keepers.keeper.process.pid
    found = 0
    for task in pathlib.Path(f"/proc/{keeper}/task").iterdir():
        for pid in (task / "children").read_text().split():
            state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            found += state not in "ZX"
    return keeper, found


def target(name: str, pool: GraderPool) -> tuple[dict[str, Any], str]:
    """What a grader is told beside an answer, and a right answer."""
    if name == "code":
        return {"truth": '[["", "3"]]'}, "print(3)"
    if name not in DATASETS:
        return {"truth": "3"}, "3"
    ((question, right),) = pool.ask([{"answer": "", "problems": [0, 1], "place": -1}], seconds=60.0)[0]
    return {"index": 0, "question": question}, right


def make_pool(name: str, budget: float) -> GraderPool:
    """The pool of a grader, or of a data set's."""
    if name in DATASETS:
        options = {"name": name, "config": {"seed": 1, "size": 4}, "threshold": 1.0}
        return GraderPool("reasoning_gym", options, workers=WORKERS, seconds=budget)
    return GraderPool(name, {"seconds": budget} if name == "code" else {}, workers=WORKERS, seconds=budget)


def fuzz(clock: Clock, name: str, answers: list[str], budget: float) -> dict:
    """Figures of grading them with a right answer after every ninth; `wrong` counts right ones without their grade."""
    spent, longest, wrong = [], [0.0], 0
    with make_pool(name, budget) as pool:
        item, right = target(name, pool)

        def grade(texts: list[str]) -> list[float | None]:
            clock.begin()
            return pool.grade([{**item, "answer": text, "place": i} for i, text in enumerate(texts)])

        def usual() -> tuple[int, int]:  # twice as many as there are workers, so that each has begun
            if pool.ask([{**item, "answer": right, "place": i} for i in range(2 * WORKERS)], 60.0) != [1] * 2 * WORKERS:
                raise RuntimeError(f"{name}: a right answer is not right: {pool.last_error}")
            return living(pool)

        before = usual()
        for start in range(0, len(answers), 900):
            batch = answers[start : start + 900]
            mixed = [x for i, answer in enumerate(batch) for x in ([answer, right] if i % 9 == 8 else [answer])]
            grades = grade(mixed)
            wrong += sum(grades[i] != 1 for i in range(9, len(mixed), 10))
            spent += clock.spent.values()
            longest += clock.longest.values()
            if start // 900 % 10 == 9:
                print(f"{name}: {start + len(batch)} answers, {dict(pool.counts)}", file=sys.stderr)
        after = usual()
        figures = {"p50_ms": np.quantile(spent, 0.5) * 1e3, "p99_ms": np.quantile(spent, 0.99) * 1e3}
        figures |= {"total_max_s": max(spent), "max_s": max(longest)}
        told = {"answers": len(answers), **dict(pool.counts), "wrong": wrong}
        told |= {"processes": [before[1], after[1]], "same_keeper": before[0] == after[0]}
    return told | {name: round(float(x), 2) for name, x in figures.items()}


def complaints(told: dict, budget: float) -> list[str]:
    """What is wrong with the figures of a grader."""
    found = [name for name in ("wrong", "crashes") if told[name]]
    found += [] if told["max_s"] <= budget + SLACK else ["max_s"]
    found += [] if told["processes"] == [WORKERS, WORKERS] else ["processes"]
    return found + ([] if told["same_keeper"] else ["same_keeper"])


def hangers(clock: Clock, count: int, repeats: int, budget: float) -> dict:
    """Seconds until the last of 448 usual answers has its grade, with `count` hangers among them and without."""
    without, among = [], []
    for repeat in range(repeats):
        for many, seconds in ((0, without), (count, among)):
            seconds.append(last_usual(clock, many, budget, np.random.default_rng(repeat)))
    ratios = [round(b / a, 2) for a, b in zip(without, among, strict=True)]
    return {"slower": statistics.median(ratios), "ratios": ratios}


def last_usual(clock: Clock, many: int, budget: float, rng: np.random.Generator) -> float:
    """Seconds until the last of 448 usual answers has its grade, with so many hangers among them."""
    usual = [f"$x+{i}$" for i in range(448)]
    answers = np.asarray(usual + ["9^{9^{9^{9}}}"] * many, object)[rng.permutation(448 + many)]
    with GraderPool("math_verify", {}, workers=2, seconds=budget) as pool:
        pool.grade([{"answer": "$x+1$", "truth": "$1+x$", "place": i} for i in range(16)])  # all is loaded
        began = clock.begin()
        grades = pool.grade([{"answer": x, "truth": "$1+x$", "place": i} for i, x in enumerate(answers)])
    if any((grade is None) == (x in usual) for x, grade in zip(answers, grades, strict=True)):
        raise RuntimeError("an answer that hangs has a grade, or one that does not has none")
    return max(clock.done[i] for i, x in enumerate(answers) if x in usual) - began


def shares(count: int) -> dict[str, int]:
    """How many answers each grader gets."""
    few = {"code": count // 100} | {name: count * 11 // 200 for name in DATASETS}
    maths = (count - sum(few.values())) // 2
    return {"numeric": count - sum(few.values()) - maths, "math_verify": maths, **few}


def main() -> int:
    """Exit status 1 where there is a complaint about a grader, or hangers slow others more than twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of an answer")
    parser.add_argument("--hangers", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng, clock = np.random.default_rng(options.seed), Clock()
    told, failed = {}, {}
    for name, count in shares(options.count).items():
        told[name] = fuzz(clock, name, HOSTILE + fuzzed(count, rng), options.budget)
        failed |= {name: found} if (found := complaints(told[name], options.budget)) else {}
    told["hangers"] = hangers(clock, options.hangers, options.repeats, options.budget)
    failed |= {"hangers": ["slower"]} if told["hangers"]["slower"] > 2 else {}
    print(json.dumps(told | {"failed": failed}))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
