"""One update of a published shape against a step of PyTorch: the same weights, tokens, loss and AdamW, in one run.

    python benchmarks/train_step.py                     # SmolLM2-135M, some minutes on 2 cores, 8 GB
    python benchmarks/train_step.py --model qwen2.5-0.5b --bfloat16   # a GPU of 24 GB or more
    python benchmarks/train_step.py --quick             # tiny sizes: only that everything runs

Needs the extra `[parity]`. Weights are random, drawn by transformers and read by us from the folder that it saves.

    ours     gradient of the mean of -log π of every token (layers scanned and rematerialised, log-probabilities by
             blocks of the vocabulary), clipped by nothing, and AdamW of optax; one compiled program, donated
    torch    forward, backward and torch.optim.AdamW of the transformers model, eagerly, nothing recomputed
    share    6 x (parameters in products) x tokens, a second, over what products of 2048 x 2048 matrices reach on this
             machine in the same library; attention's own products and recomputation are not counted

The losses of the first step must agree before anything is timed. The two take turns.
"""

import argparse
import dataclasses
import functools
import json
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the two libraries share a device
sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import transformers
from rich.console import Console
from rich.table import Table

from jaxrl_llm.policies.hub.load import load_folder
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

FIXED = {"tie_word_embeddings": True, "attention_dropout": 0.0, "use_cache": False}
MODELS = {
    "smollm2-135m": lambda: transformers.LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        **FIXED,
    ),
    "qwen2.5-0.5b": lambda: transformers.Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        **FIXED,
    ),
    "tiny": lambda: transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **FIXED,
    ),
}
ADAM = {"b1": 0.9, "b2": 0.99, "weight_decay": 0.01}
RATE = 1e-5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Step = Callable[[], float]


def theirs(model: torch.nn.Module, tokens: np.ndarray, bfloat16: bool) -> Step:
    """A step of PyTorch; the loss before it. With bfloat16 products are under autocast, weights stay float32."""
    model.to(DEVICE).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(ADAM["b1"], ADAM["b2"]), weight_decay=ADAM["weight_decay"]
    )
    ids = torch.from_numpy(tokens.astype(np.int64)).to(DEVICE)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bfloat16):
            logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def ours(policy: Policy, params, tokens: np.ndarray) -> tuple[Step, dict[str, float]]:
    """A compiled update, and its scratch in bytes and seconds to compile. The first token is the prompt."""
    optimizer = optax.adamw(RATE, **ADAM)
    prompt, answer = jnp.asarray(tokens[:, :1]), jnp.asarray(tokens[:, None, 1:])
    batch = (prompt, jnp.ones(prompt.shape, bool), answer, jnp.ones(answer.shape, bool))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state):
        params, moments = state
        loss, slope = jax.value_and_grad(lambda p: -jnp.mean(answer_logp(policy, p, *batch)[0]))(params)
        change, moments = optimizer.update(slope, moments, params)
        return (optax.apply_updates(params, change), moments), loss

    state = [(params, optimizer.init(params))]
    began = time.perf_counter()
    program = update.lower(state[0]).compile()
    costs = {"compile": time.perf_counter() - began, "scratch": program.memory_analysis().temp_size_in_bytes}

    def step() -> float:
        state[0], loss = program(state[0])
        return float(jax.block_until_ready(loss))

    return step, costs


def pair(arguments: argparse.Namespace) -> tuple[dict[str, Step], dict[str, float], int]:
    """Both steps from the same weights; costs of ours; FLOP of the products of a step."""
    name, shape = ("tiny", (2, 9)) if arguments.quick else (arguments.model, (arguments.rows, arguments.tokens + 1))
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(MODELS[name](), attn_implementation="sdpa")
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        place = lambda policy: state_shardings(mesh, policy.init, jax.random.key(0))  # noqa: E731
        hub, params = load_folder(pathlib.Path(folder), place)
    policy = Policy(dataclasses.replace(hub.config, bfloat16=arguments.bfloat16), hub.vocab_size)
    tokens = np.random.default_rng(0).integers(0, hub.vocab_size, shape).astype(np.int32)
    multiplied = sum(x.size for x in jax.tree.leaves(params) if x.ndim > 1)  # the tied table once, as the head
    step, costs = ours(policy, params, tokens)
    work = 6 * multiplied * shape[0] * (shape[1] - 1)
    return {"ours": step, "torch": theirs(model, tokens, arguments.bfloat16)}, costs, work


def rates(bfloat16: bool, quick: bool) -> dict[str, float]:
    """FLOP/s of square products in either library, the best of several."""
    size, times = 256 if quick else 2048, {"ours": [], "torch": []}
    x = jnp.ones((size, size), jnp.bfloat16 if bfloat16 else jnp.float32)
    y = torch.ones((size, size), dtype=torch.bfloat16 if bfloat16 else torch.float32, device=DEVICE)
    product = jax.jit(lambda x: x @ x)
    calls = {"ours": lambda: jax.block_until_ready(product(x)), "torch": lambda: float((y @ y)[0, 0])}
    for call in calls.values():
        call()
    for _ in range(8):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: 2 * size**3 / min(found) for name, found in times.items()}


def show(found: dict) -> None:
    """A row a library; the ratio of the times."""
    table = Table(title=f"an update of {found['model']}")
    for heading in ("", "s (range)", "tokens/s", "GFLOP/s of products", "of the matmul rate"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, times in found["s"].items():
        middle = statistics.median(times)
        rate = found["flop"] / middle
        spread = f"{middle:.3g} ({min(times):.3g} - {max(times):.3g})"
        share = f"{rate / found['matmul'][name]:.0%} of {found['matmul'][name] / 1e9:,.0f}"
        table.add_row(name, spread, f"{found['tokens'] / middle:,.0f}", f"{rate / 1e9:,.0f}", share)
    Console().print(table)
    ratios = sorted(a / b for a, b in zip(found["s"]["ours"], found["s"]["torch"], strict=True))
    found["ratio"] = statistics.median(ratios)
    print(f"ours / torch {found['ratio']:.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f}); target at most 1")
    print(f"ours: compiled in {found['costs']['compile']:.1f} s, scratch {found['costs']['scratch'] / 1e9:.2f} GB")


def main() -> None:
    """Measure, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=[x for x in MODELS if x != "tiny"], default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128, help="of a row (default: 128)")
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each (default: 3)")
    parser.add_argument("--bfloat16", action="store_true", help="products in bfloat16, weights and moments in float32")
    parser.add_argument("--threads", type=int, help="of PyTorch; 1 where other work runs beside")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    transformers.logging.disable_progress_bar()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    steps, costs, work = pair(arguments)
    losses = {name: step() for name, step in steps.items()}
    assert abs(losses["ours"] - losses["torch"]) < (0.05 if arguments.bfloat16 else 1e-4), losses
    times = {name: [] for name in steps}
    for turn in range(arguments.repeats):
        for name in steps if turn % 2 else reversed(steps):
            began = time.perf_counter()
            steps[name]()
            times[name].append(time.perf_counter() - began)
    found = {"model": "tiny" if arguments.quick else arguments.model, "s": times, "flop": work, "costs": costs}
    found |= {"tokens": 16 if arguments.quick else arguments.rows * arguments.tokens}
    found |= {"matmul": rates(arguments.bfloat16, arguments.quick), "losses": losses}
    show(found)
    versions = {"jax": jax.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions | {"device": jax.local_devices()[0].device_kind} | found))


if __name__ == "__main__":
    main()
