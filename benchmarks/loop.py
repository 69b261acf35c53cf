"""Where a step of the default run spends its time, against the same work dispatched token by token from Python.

    python benchmarks/loop.py                # a few minutes on 2 cores; prints a table, and a line of JSON
    python benchmarks/loop.py --repeats 3    # quicker, noisier

All variants run in one process and in turn, repeat by repeat, so that a machine whose speed drifts moves them together;
quote the ratios. Each figure is the median over repeats, with the range.

    rollout, grade, update    the three parts of `jaxrl-llm train`, each waited for
    token by token            the same decode step as a compiled program of its own, called from a Python loop that asks
                              after every token whether all answers have ended
    prompts not shared        every answer gets a prompt of its own: P·G prompts with one answer each
    no early stop             always T tokens, although every answer has ended
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from jaxrl_llm import random
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.programs import Programs
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import SamplingRules, draw
from jaxrl_llm.rollouts.stopping import Stopping
from jaxrl_llm.types import Rollout


def token_by_token(policy: Policy, stopping: Stopping, rules: SamplingRules) -> Callable[..., jax.Array]:
    """A sampler whose loop is in Python: one dispatch, and one look at the device, a token."""
    prefill = jax.jit(policy.prefill)

    @jax.jit
    def step(params, prefix, cache, keys, token, live, column):
        logits, cache = policy.step(params, prefix, cache, token, column)
        token, behaviour_logp, policy_logp = draw(random.position_keys(keys, column), logits, rules)
        token = jnp.where(live, token, stopping.pad)
        return token, live & (token != stopping.eos), cache, behaviour_logp, policy_logp

    def sample(params: Params, prompt: jax.Array, mask: jax.Array, keys: jax.Array) -> jax.Array:
        prefix = prefill(params, prompt, mask)
        shape = keys.shape
        cache = policy.empty_cache(*shape, stopping.length)
        token, live = jnp.broadcast_to(prefix.last[:, None], shape), jnp.ones(shape, bool)
        tokens = []
        for column in range(stopping.length):
            token, live, cache, *_ = step(params, prefix, cache, keys, token, live, jnp.int32(column))
            tokens.append(token)
            if not bool(live.any()):
                break
        return jnp.stack(tokens, axis=-1)

    return sample


def variants(config: Config) -> tuple[dict[str, Callable[[], object]], Rollout]:
    """What is timed, by name; each call does the work once and is waited for by the caller."""
    programs = Programs(config)
    policy, task = programs.policy, config.task
    params = warmed_up(programs)
    rollout = programs.sample(params, 1)
    truth = jax.tree.map(lambda x: x[rollout.prompt_id], task.train.truth)
    state = programs.start(programs.learner, params)
    stopping = Stopping.of(task)
    p, g = config.prompts_per_step, config.answers_per_prompt
    keys = random.answer_keys(random.stream_key(0, random.Stream.ROLLOUT), 1, rollout.prompt_id, g)
    by_hand = token_by_token(policy, stopping, config.sampling)

    def compiled(stopping: Stopping, shared: bool) -> Callable[[], object]:
        k = keys if shared else keys.reshape(p * g, 1)
        prompt, mask = ((x if shared else jnp.repeat(x, g, axis=0)) for x in (rollout.prompt, rollout.prompt_mask))
        run = jax.jit(lambda w: generate(policy, w, prompt, mask, k, config.sampling, stopping))
        return lambda: run(params)

    # Room for eight times the tokens that the task needs, as an RL run has it: this is what early stop is for.
    roomy = dataclasses.replace(stopping, length=8 * stopping.length)
    learn = jax.jit(programs.learner.learn)
    work = {
        "rollout": compiled(stopping, shared=True),
        "grade": lambda: programs.grade(rollout, truth),
        "update": lambda: learn(state, params, rollout),
        "rollout, token by token": lambda: by_hand(params, rollout.prompt, rollout.prompt_mask, keys),
        "rollout, prompts not shared": compiled(stopping, shared=False),
        "rollout, room for 8x the tokens": compiled(roomy, shared=True),
        "rollout, 8x, no early stop": compiled(dataclasses.replace(roomy, early=False), shared=True),
    }
    return work, rollout


def warmed_up(programs: Programs, steps: int = 100) -> Params:
    """Parameters that end their answers: an untrained policy would never stop early."""
    state = programs.start(programs.imitator, programs.fresh_params())
    for step in range(1, steps + 1):
        state, _ = programs.imitate(state, step)
    return state.params


def measure(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each variant, in turn, after one call that compiles."""
    for call in work.values():
        jax.block_until_ready(call())
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, call in work.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure, print the table and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="timed calls of each variant (default: 15)")
    parser.add_argument("--task", default="addition", help="task of the run (default: addition)")
    arguments = parser.parse_args()
    config = Config(task=arguments.task, warmup=WarmUp())
    work, rollout = variants(config)
    seconds = measure(work, arguments.repeats)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    step = middle["rollout"] + middle["grade"] + middle["update"]
    against = {
        "rollout, token by token": "rollout",
        "rollout, prompts not shared": "rollout",
        "rollout, room for 8x the tokens": "rollout",
        "rollout, 8x, no early stop": "rollout, room for 8x the tokens",
    }
    answers = rollout.reward.size
    table = Table(title=f"{config.task.spec}: {answers} answers a step on {jax.devices()[0].device_kind}")
    for heading in ("", "ms, median", "range", "ratio"):
        table.add_column(heading, justify="left" if heading == "" else "right")
    for name, values in seconds.items():
        # Ratio of neighbours within a repeat, then the median: drift of the machine cancels.
        base = seconds[against[name]] if name in against else None
        ratio = (
            f"{statistics.median(a / b for a, b in zip(values, base, strict=True)):.2f} x {against[name]}"
            if base
            else ""
        )
        share = ratio or f"{middle[name] / step:.0%} of a step"
        table.add_row(name, f"{1e3 * middle[name]:.1f}", f"{1e3 * min(values):.1f} - {1e3 * max(values):.1f}", share)
    console = Console()
    console.print(table)
    console.print(f"{1 / step:.2f} steps/s, {answers / step:.0f} answers/s (sum of the three parts, each waited for)")
    print(json.dumps({"jax": jax.__version__, "answers": answers, "seconds": middle}))


if __name__ == "__main__":
    main()
