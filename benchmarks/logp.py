"""What log-probabilities and entropies cost behind the hidden states, forward and backward, by blocks and plainly.

    python benchmarks/logp.py              # some minutes on 2 cores, 6 GB; prints a table, and a line of JSON
    python benchmarks/logp.py --bfloat16   # hidden states in bfloat16, for accelerators
    python benchmarks/logp.py --quick      # tiny sizes: only that everything runs

    blocks     `policies.readout.read`: blocks of the vocabulary, logits made again in the backward pass
    plain      log softmax of all logits, by automatic differentiation
    scratch    what the compiled program takes beside arguments and results, by its own statistics
    process    the most that a process held which did only this, less one that only holds arguments and results

Hidden states of 2,048 tokens at width 896 and a table of 151,936 rows: the output of Qwen2.5-0.5B. The two take turns.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxrl_llm.policies.readout import Head, logits_of, read

TOKENS, WIDTH, VOCABULARY = 2048, 896, 151936


def by_blocks(head: Head, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What learning uses."""
    out = read(0.0, head, token, None)
    return out.logp, out.entropy


def plainly(head: Head, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    """With all logits."""
    every = jax.nn.log_softmax(logits_of(head, 0.0), axis=-1)
    chosen = jnp.take_along_axis(every, token[:, None], axis=-1)[:, 0]
    return chosen, -jnp.sum(jnp.exp(every) * every, axis=-1)


PATHS = {"blocks": by_blocks, "plain": plainly}


def case(arguments: argparse.Namespace) -> tuple[Head, jax.Array, jax.Array]:
    """Hidden states with their table, chosen tokens, weights of their log-probabilities."""
    keys = jax.random.split(jax.random.key(0), 4)
    tokens, width, vocabulary = (64, 16, 4096) if arguments.quick else (arguments.tokens, WIDTH, VOCABULARY)
    hidden = jax.random.normal(keys[0], (tokens, width), jnp.bfloat16 if arguments.bfloat16 else jnp.float32)
    table = 0.02 * jax.random.normal(keys[1], (vocabulary, width))
    token = jax.random.randint(keys[2], (tokens,), 0, vocabulary)
    return jax.block_until_ready((Head(hidden, table), token, jax.random.normal(keys[3], (tokens,))))


def gradient(name: str):
    """Compiled gradient in hidden states and table of a policy-gradient loss with an entropy bonus."""

    def loss(head, token, weight):
        logp, entropy = PATHS[name](head, token)
        return jnp.mean(weight * logp + 0.01 * entropy)

    return jax.jit(jax.grad(loss))


def peak() -> int:
    """Bytes that this process has held at most. `getrusage` would count the parent that it was forked from."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def held(name: str, arguments: argparse.Namespace) -> int:
    """Bytes that a process of its own held at most."""
    options = [f"--tokens={arguments.tokens}", *(["--quick"] if arguments.quick else [])]
    options += ["--bfloat16"] if arguments.bfloat16 else []
    command = [sys.executable, __file__, "--memory-of", name, *options]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.splitlines()[-1])


def work(name: str, arguments: argparse.Namespace) -> None:
    """One call; `nothing` holds arguments and results alone."""
    given = case(arguments)
    if name == "nothing":
        jax.block_until_ready(jax.tree.map(lambda x: x + 1, given[0]))
    else:
        jax.block_until_ready(gradient(name)(*given))


def timed(arguments: argparse.Namespace) -> dict[str, dict]:
    """Scratch, and seconds of calls in turn."""
    given = case(arguments)
    calls = {name: gradient(name).lower(*given).compile() for name in PATHS}
    found = {name: {"scratch": call.memory_analysis().temp_size_in_bytes, "s": []} for name, call in calls.items()}
    first = [jax.block_until_ready(call(*given)) for call in calls.values()]
    for ours, theirs in zip(*map(jax.tree.leaves, first), strict=True):
        gap = jnp.max(jnp.abs((ours - theirs).astype(jnp.float32))) / jnp.max(jnp.abs(theirs).astype(jnp.float32))
        assert gap < (0.05 if arguments.bfloat16 else 1e-4), f"gradients differ by {gap} of the largest"
    del first
    for turn in range(arguments.repeats):
        for name in PATHS if turn % 2 else reversed(PATHS):
            began = time.perf_counter()
            jax.block_until_ready(calls[name](*given))
            found[name]["s"].append(time.perf_counter() - began)
    return found


def show(found: dict[str, dict]) -> dict[str, float]:
    """A row a path; ratios of blocks to plain."""
    table = Table(title="log-probabilities and entropies, forward and backward")
    for heading in ("", "scratch, MB", "process, MB", "s (range)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, x in found.items():
        spread = f"{statistics.median(x['s']):.3g} ({min(x['s']):.3g} - {max(x['s']):.3g})"
        table.add_row(name, f"{x['scratch'] / 1e6:,.1f}", f"{x['process'] / 1e6:,.0f}", spread)
    Console().print(table)
    blocks, plain = found["blocks"], found["plain"]
    times = sorted(a / b for a, b in zip(blocks["s"], plain["s"], strict=True))
    ratios = {
        "scratch": blocks["scratch"] / plain["scratch"],
        "process": max(blocks["process"], 0) / max(plain["process"], 1),
        "time": statistics.median(times),
    }
    print(
        f"blocks / plain: scratch {ratios['scratch']:.3f}, process {ratios['process']:.3f}, "
        f"time {ratios['time']:.2f} ({times[0]:.2f} - {times[-1]:.2f}); targets 0.1, 0.1, 1.3"
    )
    return ratios


def main() -> None:
    """Measure, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of each path (default: 3)")
    parser.add_argument("--bfloat16", action="store_true", help="hidden states and products in bfloat16")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--memory-of", choices=[*PATHS, "nothing"], help="do one call and print the most bytes held")
    arguments = parser.parse_args()
    if arguments.memory_of:
        work(arguments.memory_of, arguments)
        print(peak())
        return
    found = timed(arguments)
    base = held("nothing", arguments)
    for name, figures in found.items():
        figures["process"] = held(name, arguments) - base
    ratios = show(found)
    device = jax.local_devices()[0].device_kind
    print(json.dumps({"jax": jax.__version__, "device": device, "found": found, "ratio": ratios}))


if __name__ == "__main__":
    main()
