"""What the variance laboratory costs: exact enumeration, and one frozen batch under many estimators.

    python benchmarks/variance.py            # 3 minutes on 2 cores; prints tables, and a line of JSON
    python benchmarks/variance.py --quick    # tiny sizes: only that everything runs

    enumeration   bias, variance and the rest of 20 estimators, over all groups of 4 among the 15 answers of the bigram
                  policy: 50,625 groups each, float64
    comparison    12 recipes on 64 prompts x 8 answers of a policy of a million parameters, scores sketched by
                  `count_sketch`; and one recipe alone, in turn
    memory        the most that a process held which did only this, less one that only imports

The first call compiles; it is listed apart.
"""

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import jax
from rich.console import Console
from rich.table import Table

from experiments.atlas import estimators as of_problem
from experiments.problems import named
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.estimators import estimators_of, needs_of
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.programs import Programs
from jaxrl_llm.variance.empirical_compare import compare
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance_run import frozen_batch

RECIPES = (
    *("rloo", "grpo", "dr_grpo", "bnpo", "opo", "reinforce", "reinforce_pp", "remax", "cispo_grpo", "gspo_grpo"),
    *("nsr", "w_reinforce"),
)
ESTIMATORS, GROUP = 20, 4
TINY = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=32)
Work = Callable[[], object]


def enumeration(quick: bool) -> Work:
    """All estimators, one after another."""
    group = 2 if quick else GROUP
    with jax.enable_x64(True):
        table, chosen = named("B"), dict(list(of_problem("B", group).items())[:ESTIMATORS])
    assert len(chosen) == ESTIMATORS

    def work():
        with jax.enable_x64(True):
            return [jax.block_until_ready(moments(transform, table, group).trace_var) for transform in chosen.values()]

    return work


@functools.cache
def batch(quick: bool):
    """The policy, its parameters, and graded answers with all that the recipes ask for."""
    sizes = {"prompts": 16, "answers": 4} if quick else {"prompts": 64, "answers": 8}
    config = Config(
        **{"task": "addition,digits=2", "recipe": "rloo", "prompts_per_step": sizes["prompts"]},
        **{"answers_per_prompt": sizes["answers"], "warmup": WarmUp(max_steps=0)},
        model=TINY if quick else DecoderConfig(),
    )
    programs = Programs(config)
    params, chosen = programs.fresh_params(), estimators_of(RECIPES)
    return programs.policy, params, frozen_batch(programs, params, 1, needs=needs_of(chosen), **sizes)


def comparison(recipes: tuple[str, ...], quick: bool) -> Work:
    """`compare` of the recipes on the batch."""
    policy, params, rollout = batch(quick)
    chosen = estimators_of(recipes)
    half = rollout.reward.shape[1] // 2
    return lambda: compare(chosen, policy, params, rollout, group_size=half, prompts=2)


WORK = {
    "enumeration": enumeration,
    "comparison, 12": lambda quick: comparison(RECIPES, quick),
    "comparison, 1": lambda quick: comparison(RECIPES[:1], quick),
}


def seconds(work: Work) -> float:
    """Of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def timed(quick: bool, repeats: int) -> dict[str, dict]:
    """First call and later ones of each kind of work; the two comparisons take turns."""
    found = {}
    for names in (("enumeration",), ("comparison, 12", "comparison, 1")):
        work = {name: WORK[name](quick) for name in names}
        found |= {name: {"first": seconds(call), "later": []} for name, call in work.items()}
        for turn in range(repeats):
            for name in names if turn % 2 else names[::-1]:
                found[name]["later"].append(seconds(work[name]))
    return found


def peak() -> int:
    """Bytes that this process has held at most. `getrusage` would count the parent that it was forked from."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def held(name: str, quick: bool) -> int:
    """Bytes that a process of its own held at most."""
    command = [sys.executable, __file__, "--memory-of", name, *(["--quick"] if quick else [])]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.splitlines()[-1])


def show(console: Console, found: dict[str, dict]) -> None:
    """A row a kind of work."""
    table = Table(title="the variance laboratory")
    for heading in ("", "first call, s", "later, s (range)", "memory, MB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, figures in found.items():
        later = figures["later"]
        spread = f"{statistics.median(later):.2f} ({min(later):.2f} - {max(later):.2f})"
        table.add_row(name, f"{figures['first']:.1f}", spread, f"{figures['bytes'] / 1e6:,.0f}")
    console.print(table)
    pairs = zip(found["comparison, 12"]["later"], found["comparison, 1"]["later"], strict=True)
    ratios = sorted(a / b for a, b in pairs)
    console.print(
        f"12 recipes take {statistics.median(ratios):.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f}) times as long as one"
    )


def main() -> None:
    """Measure, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="later calls of each kind (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, two repeats")
    parser.add_argument(
        "--memory-of", choices=[*WORK, "imports"], help="do one kind of work and print the most bytes held"
    )
    arguments = parser.parse_args()
    if arguments.memory_of:
        if arguments.memory_of != "imports":
            WORK[arguments.memory_of](arguments.quick)()
        else:
            jax.block_until_ready(jax.numpy.zeros(1))
        print(peak())
        return
    found = timed(arguments.quick, 2 if arguments.quick else arguments.repeats)
    base = held("imports", arguments.quick)
    for name, figures in found.items():
        figures["bytes"] = held(name, arguments.quick) - base
    show(Console(), found)
    print(json.dumps({"jax": jax.__version__, "device": jax.local_devices()[0].device_kind, "found": found}))


if __name__ == "__main__":
    main()
