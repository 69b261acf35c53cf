"""What each estimator costs next to the plainest of its family.

    python benchmarks/estimators.py            # P=64, G=16, T=1024: a few minutes on 2 cores
    python benchmarks/estimators.py --quick    # small shapes, few repeats: does everything run?

One row for every public advantage transform, surrogate, correction, penalty and aggregation, found by listing the
packages; arguments without a default are in `estimator_arguments.py`. Each is a program of its own, compiled as in a
run and waited for. A row is timed right after the plainest of its family, in turn with all others, repeat by repeat;
the ratio is taken within a pair, and its median and range are printed. A machine whose speed drifts moves both sides:
quote ratios.

    advantages    rewards [P G] to credit of tokens [P G T]; transforms of tokens follow no_baseline on every token
    surrogates    value, and gradient in the log-probabilities
    corrections   coefficients of the whole batch
    penalties     value, and gradient in the log-probabilities, the entropy and the exact divergence
    aggregations  weights of tokens from their mask

Scratch is the memory that the compiled program takes beside its inputs and outputs, in arrays [P G T] of float32. What
compares the answers of a group token by token shows there.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from estimator_arguments import ARGUMENTS, PENALTIES

from jaxrl_llm import advantages, losses
from jaxrl_llm.advantages import AdvantageTransform, at_end, chain, no_baseline, per_token
from jaxrl_llm.losses import Tokens, token_mean
from jaxrl_llm.losses.tea import tea_coefficients
from jaxrl_llm.types import Rollout

# Public names that make no estimator: records, and what puts estimators together or looks at them.
NOT_MEASURED = {
    *("AdvantageTransform", "Traits", "apply", "at_end", "bare_rollout", "chain", "per_token", "stateless"),
    *("Aggregate", "Correction", "Objective", "Penalty", "Surrogate", "Tokens", "bare_tokens"),
    *("effective_positives", "effective_sample_size"),
}
PLAINEST = {
    "advantages": "no_baseline",
    "surrogates": "reinforce",
    "corrections": "truncated_token",
    "penalties": "k1",
    "aggregations": "token_mean",
}
# Transforms of tokens that spread a reward paid at the end; the others of their room take the same credit everywhere.
OF_REWARDS = {"dense_rewards", "gae", "prime", "reward_to_go", "span_credit"}


class Row(NamedTuple):
    """A program and what it is called on."""

    family: str
    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Figures(NamedTuple):
    """Milliseconds, the ratio to the plainest within each pair, and bytes of scratch memory."""

    family: str
    name: str
    seconds: list[float]
    ratios: list[float]
    scratch: int


def synthetic(prompts: int, group: int, length: int) -> tuple[Rollout, Tokens]:
    """Answers of random lengths with 0/1 rewards and everything that any estimator reads."""
    rng = np.random.default_rng(0)
    p, g, t = prompts, group, length
    uniform = lambda *shape: jnp.asarray(rng.uniform(size=shape), jnp.float32)  # noqa: E731
    acted = jnp.arange(t) < jnp.asarray(rng.integers(1, t + 1, size=(p, g, 1)))
    behaviour = -3 * uniform(p, g, t)
    extras = {name: uniform(p) for name in ("difficulty", "drift", "greedy_reward", "pool_mean", "pool_std")}
    extras |= {name: uniform(p, g) + 0.1 for name in ("duration", "energy")} | {"noise": uniform(p, g)}
    names = ("entropy", "process_score", "token_energy", "token_reward", "token_score", "value")
    extras |= {name: uniform(p, g, t) for name in names}
    extras |= {"role": jnp.asarray(rng.integers(0, 2, (p, g)), jnp.int32), "selected": uniform(p, g) < 0.5}
    components = (uniform(p, g, 2) < 0.4).astype(jnp.float32)
    rollout = advantages.bare_rollout(components[..., 0], acted=acted, **extras)
    masked = jnp.where(acted, behaviour, 0)
    rollout = rollout_with(rollout, components=components, behaviour_logp=masked, policy_logp=masked)
    tokens = losses.bare_tokens(
        acted,
        logp=jnp.minimum(behaviour + 0.1 * uniform(p, g, t), 0),
        behaviour_logp=behaviour,
        policy_logp=behaviour + 0.01 * uniform(p, g, t),
        reference_logp=-3 * uniform(p, g, t),
        advantage=jnp.broadcast_to(components[..., :1] - 0.4, (p, g, t)),
        entropy=uniform(p, g, t),
        exact_kl=uniform(p, g, t),
        noise=uniform(p, g, t),
    )
    return rollout, tokens


def rollout_with(rollout: Rollout, **fields: jax.Array) -> Rollout:
    """The rollout with some fields replaced."""
    return Rollout(**{name: fields.get(name, getattr(rollout, name)) for name in Rollout.__dataclass_fields__})


def built(name: str, function: Callable[..., Any]) -> Any:
    """The estimator of that name, with its arguments."""
    try:
        return function(**ARGUMENTS.get(name, {}))
    except TypeError as error:
        raise LookupError(f"{name} has no row in ARGUMENTS of this benchmark ({error})") from error


def lifted(name: str, function: Callable[..., AdvantageTransform]) -> AdvantageTransform:
    """A transform as one that ends at tokens."""
    transform = built(name, function)
    if ".advantages.tokens." in function.__module__:
        return chain((at_end if name in OF_REWARDS else per_token)(no_baseline()), transform)
    return per_token(transform)


def of_advantages(rollout: Rollout) -> list[Row]:
    """A row for each transform."""
    rows = []
    for name in sorted(set(advantages.__all__) - NOT_MEASURED):
        transform = lifted(name, getattr(advantages, name))
        arguments = (rollout, transform.init())
        rows.append(Row("advantages", name, lambda r, s, t=transform: t.update(r.reward, s, r), arguments))
    return rows


def of_losses(tokens: Tokens) -> list[Row]:
    """A row for each surrogate, correction, penalty and aggregation."""
    weights = token_mean()(tokens.where)

    def slope(values: Callable[[Tokens], jax.Array], *argnums: int) -> Callable[..., Any]:
        def total(logp, entropy, exact_kl, tokens, weights):
            fields = {name: getattr(tokens, name) for name in Tokens.__dataclass_fields__}
            fields |= {"logp": logp, "entropy": entropy, "exact_kl": exact_kl}
            return jnp.sum(weights * values(Tokens(**fields)))

        return lambda t, w: jax.value_and_grad(total, argnums)(t.logp, t.entropy, t.exact_kl, t, w)

    tea = lambda t: tea_coefficients(t.advantage, t.logp, t.where)  # noqa: E731
    rows = [Row("corrections", "tea_coefficients", tea, (tokens,))]
    for name in sorted(set(losses.__all__) - NOT_MEASURED):
        function = getattr(losses, name)
        family = family_of(function)
        if family == "aggregations":
            rows.append(Row(family, name, built(name, function), (tokens.where,)))
        elif family == "surrogates":
            surrogate = losses.cross_entropy if name == "cross_entropy" else built(name, function)
            rows.append(Row(family, name, slope(surrogate, 0), (tokens, weights)))
        elif name == "per_decision_returns":
            rows.append(Row(family, name, function, (tokens, tokens.entropy)))
        else:
            made = PENALTIES[name]() if name in PENALTIES else built(name, function)
            if isinstance(made, losses.Correction):
                rows.append(Row("corrections", name, made.weight, (tokens,)))
            else:
                rows.append(Row("penalties", name, slope(cost_of(made), 0, 1, 2), (tokens, weights)))
    return rows


def family_of(function: Callable[..., Any]) -> str:
    """The family that a function of `jaxrl_llm.losses` belongs to, by the file it is in."""
    file = function.__module__.removeprefix("jaxrl_llm.losses.")
    if file.startswith("surrogates") or file == "supervised":
        return "surrogates"
    known = {"aggregate": "aggregations", "corrections": "corrections", "selections": "corrections"}
    known |= {"penalties": "penalties", "per_decision": "corrections"}
    if file not in known:
        raise LookupError(f"{function.__name__} is in {function.__module__}, which has no family in this benchmark")
    return known[file]


def cost_of(penalty: losses.Penalty | Callable[[Tokens], jax.Array]) -> Callable[[Tokens], jax.Array]:
    """A penalty as it is in a loss, with its weight from the batch."""
    if not isinstance(penalty, losses.Penalty):
        return penalty
    weight = penalty.weight
    share = (lambda t: jax.lax.stop_gradient(weight.weight(t))) if weight else (lambda t: 1.0)
    return lambda tokens: penalty.coefficient * share(tokens) * penalty.cost(tokens)


def clock(call: Callable[[], Any], times: int = 1) -> float:
    """Seconds of one call, each waited for, the mean over some in a row."""
    began = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(call())
    return (time.perf_counter() - began) / times


def measure(rows: list[Row], repeats: int, block: float) -> list[Figures]:
    """Compile everything, then time in turn, each row right after the plainest of its family.

    One timing is of about `block` seconds, of 50 calls at most.
    """
    calls, scratch, times = {}, {}, {}
    for number, row in enumerate(rows, 1):
        progress(f"compiling {number}/{len(rows)} {row.name}")
        program = jax.jit(row.function).lower(*row.arguments).compile()
        memory = program.memory_analysis()
        key = row.family, row.name
        scratch[key] = 0 if memory is None else memory.temp_size_in_bytes
        calls[key] = lambda program=program, row=row: program(*row.arguments)
        clock(calls[key])
        # Programs of microseconds are called many times in a row, or the clock would measure the machine's other work.
        times[key] = min(max(round(block / clock(calls[key])), 1), 50)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    ratios: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for repeat in range(1, repeats + 1):
        progress(f"timing, repeat {repeat}/{repeats}")
        for key, call in calls.items():
            plainest = key[0], PLAINEST[key[0]]
            plain = clock(calls[plainest], times[plainest])
            seconds[key].append(clock(call, times[key]))
            ratios[key].append(seconds[key][-1] / plain)
    return [Figures(*key, seconds[key], ratios[key], scratch[key]) for key in calls]


def progress(text: str) -> None:
    """A line that replaces the one before on a terminal, and nothing in a file."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")


def printed(figures: list[Figures], array: int) -> str:
    """A markdown table for each family, the dearest first."""
    lines = []
    for family, plainest in PLAINEST.items():
        head = f"| {family} | ratio to {plainest} | range | ms | scratch, [P G T] |"
        lines += ["", head, "| :--- | ---: | ---: | ---: | ---: |"]
        mine = [f for f in figures if f.family == family]
        for f in sorted(mine, key=lambda f: -statistics.median(f.ratios)):
            span = f"{min(f.ratios):.2f} - {max(f.ratios):.2f}"
            middle, ms = statistics.median(f.ratios), 1e3 * statistics.median(f.seconds)
            lines.append(f"| `{f.name}` | {middle:.2f} | {span} | {ms:.2f} | {f.scratch / array:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the tables and one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, help="timed calls of each row (default: 15, quick: 1)")
    parser.add_argument("--quick", action="store_true", help="P=4, G=4, T=16, one repeat: the figures mean nothing")
    arguments = parser.parse_args()
    repeats = arguments.repeats or (1 if arguments.quick else 15)
    shape = (4, 4, 16) if arguments.quick else (64, 16, 1024)
    rollout, tokens = synthetic(*shape)
    figures = measure([*of_advantages(rollout), *of_losses(tokens)], repeats, 0.0 if arguments.quick else 0.01)
    progress("")
    device = jax.devices()[0].device_kind
    versions = f"jax {jax.__version__}, Python {sys.version.split()[0]}"
    print(f"P={shape[0]}, G={shape[1]}, T={shape[2]}, {repeats} repeats on {device}; {versions}")
    print(printed(figures, 4 * math.prod(shape)))
    medians = {f"{f.family}.{f.name}": round(statistics.median(f.ratios), 3) for f in figures}
    print(json.dumps({"jax": jax.__version__, "device": device, "shape": shape, "ratio": medians}))


if __name__ == "__main__":
    main()
