"""What saving costs: steps of the default run with a checkpoint every ten of them, against steps without.

    python benchmarks/checkpoint.py                        # a minute on 2 cores; prints a table, and a line of JSON
    python benchmarks/checkpoint.py --quick                # only that it runs

Both take turns in one process, block by block, so that a machine whose speed drifts moves them together; quote the
ratio. A block is so many steps, the wait for its last checkpoint included, though a run would go on meanwhile.
"""

import argparse
import json
import pathlib
import statistics
import sys
import tempfile
import time

sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import jax
from rich.console import Console

from jaxrl_llm.checkpoint import Checkpoints
from jaxrl_llm.config import Config
from jaxrl_llm.programs import Programs


def block(programs: Programs, state, reference, steps: int, store: Checkpoints | None) -> tuple[object, float]:
    """The state after so many steps from the last one on, and the seconds that they took."""
    began, first = time.perf_counter(), int(state.step) + 1
    for step in range(first, first + steps):
        rollout = programs.sample(state.params, step)
        state, _, _ = programs.learn(state, reference, rollout)
        jax.block_until_ready(state)
        if store and step % 10 == 0:
            store.save(step, state)
    if store:
        store.wait()
    return state, time.perf_counter() - began


def main() -> None:
    """Print the ratio of each pair of blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30, help="of a block")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    repeats, steps = (1, 10) if options.quick else (options.repeats, options.steps)
    programs = Programs(Config(task="addition", recipe="grpo"))
    state, reference = programs.begin(programs.fresh_params())
    plain, saving = [], []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(pathlib.Path(folder)) as store:
        state, _ = block(programs, state, reference, 10, store)  # everything is compiled
        for _ in range(repeats):
            state, seconds = block(programs, state, reference, steps, None)
            plain.append(seconds / steps)
            state, seconds = block(programs, state, reference, steps, store)
            saving.append(seconds / steps)
    ratios = [b / a for a, b in zip(plain, saving, strict=True)]
    size = sum(x.nbytes for x in jax.tree.leaves(state)) / 1e6
    Console().print(
        f"{size:.1f} MB of state; a step {statistics.median(plain) * 1e3:.0f} ms, with a checkpoint every ten steps "
        f"{statistics.median(ratios):.3f} times that ({min(ratios):.3f} - {max(ratios):.3f})"
    )
    print(json.dumps({"device": jax.devices()[0].device_kind, "jax": jax.__version__, "ratios": ratios}))


if __name__ == "__main__":
    main()
