"""Whether packing answers of unequal length into rows pays for an update.

    python benchmarks/packing.py                # 3 minutes on 2 cores; prints a table, and a line of JSON
    python benchmarks/packing.py --prompt 128   # longer prompts, of which each packed answer has a copy
    python benchmarks/packing.py --quick        # tiny sizes: only that everything runs

Gradients of log-probabilities and entropies of 2 prompts x 8 answers, of 40 tokens on average and 128 at most, by four
layers of the width of SmolLM2-135M: as they are, prompts shared and answers padded, and packed into rows as long as a
prompt with the longest answer. The layout on the host is timed with it. The two take turns.
"""

import argparse
import json
import pathlib
import statistics
import sys
import time

sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.packing import pack, packed_logp
from jaxrl_llm.policies.policy import Policy

SMOL = DecoderConfig(layers=4, width=576, heads=9, kv_heads=3, head_size=64, mlp_width=1536)
TINY = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=32)
P, G, T, MEAN = 2, 8, 128, 40


def batch(vocabulary: int, prompt_length: int) -> tuple[np.ndarray, ...]:
    """Prompts and answers; lengths are geometric, one answer has them all."""
    rng = np.random.default_rng(0)
    size = np.clip(rng.geometric(1 / MEAN, (P, G)), 1, T)
    size[0, 0] = T
    prompt, answer = (rng.integers(0, vocabulary, shape).astype(np.int32) for shape in ((P, prompt_length), (P, G, T)))
    return prompt, np.ones(prompt.shape, bool), answer, np.arange(T) < size[..., None]


def main() -> None:
    """Measure, print both and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of a prompt (default: 32)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each (default: 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    arguments = parser.parse_args()
    policy = Policy(TINY, 97) if arguments.quick else Policy(SMOL, 49152)
    params = nn.unbox(jax.jit(policy.init)(jax.random.key(0)))
    host = batch(policy.vocab_size, arguments.prompt)
    tokens = tuple(map(jnp.asarray, host))
    weights = jax.random.normal(jax.random.key(1), (P, G, T))
    packed = lambda: pack(*host, capacity=arguments.prompt + T)  # noqa: E731

    def weighed(logp, entropy):
        return jnp.sum(weights * logp) + 0.01 * jnp.sum(entropy)

    alone = jax.jit(jax.grad(lambda p: weighed(*answer_logp(policy, p, *tokens))))
    in_rows = jax.jit(jax.grad(lambda p, rows: weighed(*packed_logp(policy, p, rows, tokens[3]))))
    calls = {"padded": lambda: alone(params), "packed": lambda: in_rows(params, packed())}
    slopes = [jax.block_until_ready(call()) for call in calls.values()]
    gap = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in zip(*map(jax.tree.leaves, slopes)))  # noqa: B905
    assert gap < 1e-4, f"gradients differ by {gap} of the largest"
    times = {name: [] for name in calls}
    for turn in range(arguments.repeats):
        for name in calls if turn % 2 else reversed(calls):
            began = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(time.perf_counter() - began)
    size = {"padded": P * arguments.prompt + P * G * T, "packed": packed().token.size, "acted": int(host[3].sum())}
    ratios = sorted(b / a for a, b in zip(times["padded"], times["packed"], strict=True))
    for name, found in times.items():
        print(f"{name}: {size[name]} tokens, {statistics.median(found):.3g} s ({min(found):.3g} - {max(found):.3g})")
    print(f"packed / padded: tokens {size['packed'] / size['padded']:.2f}, time {statistics.median(ratios):.2f}")
    device = jax.local_devices()[0].device_kind
    print(json.dumps({"jax": jax.__version__, "device": device, "tokens": size, "s": times, "ratios": ratios}))


if __name__ == "__main__":
    main()
