"""A sweep as one program under `vmap`, against the same runs one after another; and our loop against one in PyTorch.

    python benchmarks/sweep.py               # some minutes on 2 cores; prints tables, and a line of JSON
    python benchmarks/sweep.py --repeats 1   # quicker, noisier
    python benchmarks/sweep.py --quick       # tiny sizes, without PyTorch: only that everything runs

Everything runs in one process and in turn, so that a machine whose speed drifts moves all of it together: quote the
ratios. Compilation is left out, and stated.

    together        16 seeds in one program: sampling, grading, learning, held-out evaluation, no Python between steps
    one program     the same program holding one run, called 16 times
    step by step    the loop of `jaxrl-llm train` without its log and checkpoints, 16 times; that `train` compiles anew
                    for every seed is left out
    PyTorch         sampling with a KV cache, grading and a step of AdamW for the same decoder, task and batch, eagerly;
                    without evaluation, and so is ours beside it
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable

sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.sweep import evaluator_of
from experiments.whole_run import by_hand, compiled, on_one_device
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs

SEEDS = 16
STEPS = 50
MODEL = DecoderConfig(layers=2, width=64, heads=2, kv_heads=1, head_size=32, mlp_width=128)
TORCH_STEPS = 20


def configuration() -> Config:
    """Small enough for two cores; two looks at the held-out problems."""
    return Config(
        **{"task": "addition,digits=2,heldout=256", "recipe": "rloo", "steps": STEPS, "prompts_per_step": 32},
        **{"answers_per_prompt": 8, "eval_every": 25, "eval_problems": 128, "eval_samples": 4},
        **{"model": MODEL, "warmup": WarmUp(max_steps=0), "measure_kl": False, "max_grad_norm": 0.0},
    )


def tiny() -> Config:
    """The same, over in seconds."""
    small = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=32)
    sizes = {"steps": 2, "prompts_per_step": 8, "answers_per_prompt": 2, "eval_every": 1, "eval_problems": 8}
    return dataclasses.replace(configuration(), model=small, **sizes)


def warmed_up(programs: Programs, steps: int = 200) -> Params:
    """Parameters that end their answers."""
    state = programs.start(programs.imitator, programs.fresh_params())
    for step in range(1, steps + 1):
        state, _ = programs.imitate(state, step)
    return state.params


def in_turn(work: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each call, repeat by repeat, and of the first one, which compiles."""

    def timed(call):
        began = time.perf_counter()
        call()
        return time.perf_counter() - began

    first = {name: timed(call) for name, call in work.items()}
    rows = [[timed(call) for call in work.values()] for _ in range(repeats)]
    return {name: list(times) for name, times in zip(work, zip(*rows, strict=True), strict=True)}, first


def sweeps(config: Config, seeds: int, repeats: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """The three ways to do a run for each seed."""
    programs = on_one_device(config)
    params = warmed_up(programs)
    run = compiled(programs)
    alone, rate = on_one_device(dataclasses.replace(config, seed=1)), config.learning_rate
    evaluator = evaluator_of(alone)
    work = {
        "together": lambda: run(params, range(seeds), [rate] * seeds),
        "one program": lambda: [run(params, [seed], [rate]) for seed in range(seeds)],
        "step by step": lambda: [by_hand(alone, evaluator, params) for _ in range(seeds)],  # compiled once for all
    }
    return in_turn(work, repeats)


def loops(repeats: int, threads: int) -> dict[str, list[float]]:
    """Seconds of TORCH_STEPS steps of our loop and of PyTorch's, from the same parameters, without evaluation."""
    import torch
    from peer import TorchLoop

    torch.set_num_threads(threads)
    config = configuration()
    programs = on_one_device(config)
    params = warmed_up(programs)
    start = programs.start(programs.learner, jax.tree.map(lambda x: x.copy(), params))
    rows = np.asarray(programs.agenda.rows)
    peer = TorchLoop(config, jax.device_get(params))
    peer.check()

    def ours():
        state = jax.tree.map(lambda x: x.copy(), start)
        for step in range(1, TORCH_STEPS + 1):
            state, metrics, _ = programs.learn(state, None, programs.sample(state.params, step))
        jax.block_until_ready((state, metrics))

    def theirs():
        peer.reset()
        for step in range(1, TORCH_STEPS + 1):
            peer.step(rows[np.arange(config.prompts_per_step) + step * config.prompts_per_step])

    return in_turn({"jaxrl_llm": ours, f"PyTorch, {threads} threads": theirs}, repeats)[0]


def show(console: Console, title: str, seconds: dict[str, list[float]], answers: int) -> None:
    """A row a way, with its ratio to the first, taken repeat by repeat."""
    table = Table(title=title)
    for heading in ("", "s, median", "range", "answers/s", "ratio to the first (range)"):
        table.add_column(heading, justify="left" if not heading else "right")
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(times, first, strict=True)]
        middle, ends = statistics.median(times), f"{min(times):.2f} - {max(times):.2f}"
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
        table.add_row(name, f"{middle:.2f}", ends, f"{answers / middle:,.0f}", ratio)
    console.print(table)


def main() -> None:
    """Measure, print the tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each way (default: 5)")
    parser.add_argument("--only", choices=["sweep", "torch"], help="leave the other half out")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="of PyTorch (default: all cores)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one repeat, without PyTorch")
    arguments = parser.parse_args()
    config, seeds, repeats = configuration(), SEEDS, arguments.repeats
    if arguments.quick:
        config, seeds, repeats, arguments.only = tiny(), 2, 1, "sweep"
    console = Console()
    answers = config.prompts_per_step * config.answers_per_prompt
    found = {"jax": jax.__version__, "device": jax.local_devices()[0].device_kind}
    if arguments.only != "torch":
        found["sweep"], found["first"] = sweeps(config, seeds, repeats)
        show(console, f"{seeds} runs of {config.steps} steps", found["sweep"], seeds * config.steps * answers)
        first = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in found["first"].items())
        console.print(f"first calls, with compilation: {first}")
    if arguments.only != "sweep":
        try:
            import torch
        except ImportError:
            console.print("No PyTorch here: pip install 'jaxrl_llm[benchmarks]' adds the comparison with a loop in it")
        else:
            found["torch"], found["loops"] = torch.__version__, loops(arguments.repeats, arguments.threads)
            show(console, f"{TORCH_STEPS} steps of one run", found["loops"], TORCH_STEPS * answers)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
