"""Give graders fuzzed and hostile answers, and answers that hang: no hang, no crash of the pool, no lost order.

    python tests/faults/graders.py --count 100000 --seed 0 --budget 2

fuzz      so many answers of random characters, numbers, formulas and brackets, nine in ten to `numeric`, one to
          `math_verify`, in batches; with the answers of `hostile_answers.py`, 300 made by hand, to both. Right answers
          among them must stay right, in their places
hangers   a batch of 448 usual answers to `math_verify` with 64 among them that never end, against the same without
          them: seconds until the last usual answer has its grade, in turn, five times
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[2])
    sys.path.insert(1, str(pathlib.Path(__file__).parent))

import numpy as np
from hostile_answers import HOSTILE

from jaxrl_llm.rewards.pool import GraderPool, _Worker

PIECES = (
    *("0", "1", "7", "42", "-3", ".5", "1,000", "2e3", "1/3", "+", "-", "*", "/", "^", "=", "(", ")", "[", "]"),
    *("{", "}", "x", "y", "pi", "%", "!", "_", "nan", "inf", "'", '"', "__", "lambda", " ", "\n", "\t", "\x00"),
    *("\\frac{1}{2}", "\\sqrt", "\\boxed{", "$", "$$", "\\(", "\\)", "\\infty", "\\text{", "\u0663", "\u2212"),
    *("import os", "\u202e", "\U0001f642", "\xe9"),
)


class Clock:
    """Notes how long each answer was with a grader, all rounds together, and when the last of them ended."""

    def __init__(self):
        self.spent, self.done, ask = {}, {}, _Worker.ask

        def timed(worker, item, seconds):
            began = time.monotonic()
            try:
                return ask(worker, item, seconds)
            finally:
                self.done[item["place"]] = time.monotonic()
                self.spent[item["place"]] = self.spent.get(item["place"], 0.0) + time.monotonic() - began

        _Worker.ask = timed

    def begin(self) -> float:
        """Forget what was noted."""
        self.spent, self.done = {}, {}
        return time.monotonic()


def fuzzed(count: int, rng: np.random.Generator) -> list[str]:
    """Random answers of up to 40 pieces."""
    return ["".join(rng.choice(PIECES, rng.integers(0, 40))) for _ in range(count)]


def fuzz(clock: Clock, grader: str, answers: list[str], budget: float) -> dict:
    """Figures of grading them with a right answer after every ninth; `wrong` counts right ones without their grade."""
    spent, wrong = [], 0
    with GraderPool(grader, {}, workers=2, seconds=budget) as pool:
        pool.grade([{"answer": "3", "truth": "3", "place": -1}])
        for start in range(0, len(answers), 900):
            batch = answers[start : start + 900]
            mixed = [x for i, answer in enumerate(batch) for x in ([answer, "3"] if i % 9 == 8 else [answer])]
            clock.begin()
            grades = pool.grade([{"answer": x, "truth": "3", "place": i} for i, x in enumerate(mixed)])
            right = [i for i in range(len(mixed)) if i % 10 == 9]
            wrong += sum(grades[i] != 1 for i in right)
            spent += clock.spent.values()
            if start // 900 % 10 == 9:
                print(f"{grader}: {start + len(batch)} answers, {dict(pool.counts)}", file=sys.stderr)
        figures = {"p50_ms": np.quantile(spent, 0.5) * 1e3, "p99_ms": np.quantile(spent, 0.99) * 1e3}
        told = {"answers": len(answers), **dict(pool.counts), "wrong": wrong, "idle_workers": pool._idle.qsize()}
    return told | {name: round(float(x), 2) for name, x in figures.items()} | {"max_s": round(max(spent), 2)}


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


def main() -> int:
    """Exit status 1 where a right answer was not right, a worker was lost, or hangers slow others more than twice."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds of an answer")
    parser.add_argument("--hangers", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    maths, clock = options.count // 10, Clock()
    told = {
        "numeric": fuzz(clock, "numeric", HOSTILE + fuzzed(options.count - maths, rng), options.budget),
        "math_verify": fuzz(clock, "math_verify", HOSTILE + fuzzed(maths, rng), options.budget),
        "hangers": hangers(clock, options.hangers, options.repeats, options.budget),
    }
    print(json.dumps(told))
    lost = any(told[name]["wrong"] or told[name]["idle_workers"] != 2 for name in ("numeric", "math_verify"))
    return int(lost or told["hangers"]["slower"] > 2)


if __name__ == "__main__":
    sys.exit(main())
