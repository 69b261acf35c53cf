"""Arms x seeds: every arm is run with every seed from one base policy, and what is finished is never run again.

    python experiments/sweep.py rloo grpo rloo@learning_rate=1e-3 --seeds 8 --out runs/sweep
    python experiments/sweep.py rloo grpo --smoke      # a few steps of two seeds on a tiny model: within a minute

Where the task grades on the device, the whole of RL is one compiled program over the seeds, and over the arms that
differ only in the learning rate; no Python runs between steps. Other tasks go run by run.
"""

import pathlib
import sys

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

import dataclasses
import importlib.metadata
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import serialization
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from experiments.arms import SMOKE, Arm, arm_config, base_digest, digest, read_arm, smaller
from experiments.ledger import Ledger, alone
from experiments.present import Findings
from experiments.whole_run import Trajectory, by_hand, compiled, on_one_device
from jaxrl_llm.config import Config, ConfigError
from jaxrl_llm.evaluate import Evaluator
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs
from jaxrl_llm.runs import write_json
from jaxrl_llm.sharding import fetch
from jaxrl_llm.warmup import attempts, warm_up

CURVES = (
    "reward/mean",
    "reward/std",
    "entropy",
    "kl",
    "grad_norm",
    "advantage/std",
    "frac_reward_zero_std",
    "answers_drawn",
)
PLAIN = {"soft_wrap": True, "highlight": False}
POINTS = 50  # of a curve of training metrics, at most

Key = tuple[str, int, str]  # arm, seed, digest
Done = tuple[list[Key], list[Trajectory], float, int]  # runs, what they left, seconds, how many the program held


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """Runs of several arms with several seeds.

    base    what the arms share; `base.seed` makes the base policy
    arms    name -> what the arm changes, by field (a dict for `warmup` and `model`), or a whole `Config`
    seeds   of order, answers, selection and evaluation; arms share them, so that their runs can be paired
    chunk   runs in one program; they end together, so a kill costs at most so many
    quick   compile in a fifth of the time what then runs slower

    All runs of a (task, model, warm-up) start from one base policy, warmed up once, as papers start from one base
    model; a screening of the training problems reads its answers once, too. Raises ConfigError, before anything is
    compiled, for an arm that cannot be run, for two arms that are the same run, for no seed or the same one twice.
    """

    base: Config
    arms: Mapping[str, Arm]
    seeds: Sequence[int]
    chunk: int = 8
    quick: bool = False

    def __post_init__(self):
        if not self.arms:
            raise ConfigError("a sweep needs at least one arm")
        if self.chunk < 1:
            raise ConfigError(f"chunk must be 1 or more, not {self.chunk}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds must be different and at least one, not {list(self.seeds)}")
        for seed in self.seeds:
            dataclasses.replace(self.base, seed=seed)
        configs = {name: arm_config(self.base, name, arm) for name, arm in self.arms.items()}
        seen: dict[str, str] = {}
        for name, config in configs.items():
            if (twin := seen.setdefault(digest(config), name)) != name:
                raise ConfigError(f"arms {twin!r} and {name!r} are the same run: no field and no spelling differs")
        object.__setattr__(self, "configs", configs)

    def smoke(self) -> "Sweep":
        """The same arms, so small that all is over within a minute: it shows that they run, and nothing else."""
        return Sweep(
            base=dataclasses.replace(self.base, **SMOKE),
            arms={name: smaller(arm) for name, arm in self.arms.items()},
            seeds=self.seeds[:2],
            chunk=self.chunk,
            quick=True,
        )

    def run(self, out: pathlib.Path, *, console: Console | None = None, quiet: bool = False) -> list[dict[str, Any]]:
        """Do what the folder `out` lacks, and return the record of every run, arm by arm.

        A record: arm, seed, digest, `figures` and `before` (held-out), `failed` ("" or where it could not go on),
        `curves` {name: [steps, values]}, `seconds` of the program that did it and how many runs it held, `together`.
        Raises RunError where another sweep writes there or the file of runs is damaged.
        """
        console = console or Console()
        wanted = [(name, seed, digest(config)) for name, config in self.configs.items() for seed in self.seeds]
        with alone(out), _bar(console, quiet) as bar:
            ledger = Ledger(out, console.print)
            other = sum((arm, seed) in {key[:2] for key in wanted} for arm, seed, _ in ledger.runs.keys() - {*wanted})
            if other:
                console.print(f"{out}: {other} runs of these arms were done with other settings and are not used")
            task = bar.add_task("runs", total=len(wanted), completed=sum(key in ledger.runs for key in wanted))
            write_json(out / "sweep.json", self._description())
            for names in self._groups():
                keys = [key for key in wanted if key[0] in names and key not in ledger.runs]
                if not keys:
                    continue
                bar.update(task, description=", ".join(names))
                size = min(self.chunk, len(names) * len(self.seeds))
                for done, trajectories, seconds, together in self._group(keys, size, out, console):
                    ledger.append([_record(*x, seconds, together) for x in zip(done, trajectories, strict=True)])
                    bar.advance(task, len(done))
                    if not quiet and not console.is_terminal:
                        count = sum(key in ledger.runs for key in wanted)
                        console.print(f"{count}/{len(wanted)} runs  {', '.join(names)}  {seconds:.0f} s", **PLAIN)
            return [ledger.runs[key] for key in wanted]

    def _groups(self) -> list[list[str]]:
        """Arms that one program can hold."""
        groups: dict[str, list[str]] = {}
        for name, config in self.configs.items():
            same = digest(config, but=("learning_rate",)) if config.task.on_device else name
            groups.setdefault(same, []).append(name)
        return list(groups.values())

    def _group(self, keys: list[Key], size: int, out: pathlib.Path, console: Console) -> Iterator[Done]:
        config = self.configs[keys[0][0]]
        programs = on_one_device(config) if config.task.on_device else Programs(config)
        params = base_policy(programs, out / "base", console)
        if config.recipe.screening:
            programs.screen(attempts(programs, params))
        if not config.task.on_device:
            for key in keys:
                own = Programs(dataclasses.replace(config, seed=key[1]))
                own.agenda = programs.agenda
                began = time.perf_counter()
                trajectory = by_hand(own, evaluator_of(own), params)
                yield [key], [trajectory], time.perf_counter() - began, 1
            return
        run = compiled(programs, quick=self.quick)
        for start in range(0, len(keys), size):
            part = keys[start : start + size]
            # The last chunk is filled up with copies: another number of runs would be another program.
            full = (part * size)[:size]
            began = time.perf_counter()
            all_of = run(params, [seed for _, seed, _ in full], [self.configs[name].learning_rate for name, *_ in full])
            yield part, all_of[: len(part)], time.perf_counter() - began, size

    def _description(self) -> dict[str, Any]:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")}
        arms = {name: config.to_json() for name, config in self.configs.items()}
        device = jax.local_devices()[0].device_kind
        return {"arms": arms, "seeds": list(self.seeds), "versions": versions, "device": device}


def base_policy(programs: Programs, folder: pathlib.Path, console: Console) -> Params:
    """The policy before RL: read from the folder, or warmed up and written there, whole or not at all."""
    path = folder / f"{base_digest(programs.config)}.msgpack"
    if not path.exists():
        params, outcome = warm_up(programs, evaluator_of(programs), lambda step, row: None, lambda: False)
        console.print(f"base policy: {outcome['steps']} steps of warm-up, greedy accuracy {outcome['accuracy']:.1%}")
        folder.mkdir(exist_ok=True)
        draft = path.with_suffix(".draft")
        draft.write_bytes(serialization.msgpack_serialize(fetch(params)))
        os.replace(draft, path)
    return jax.tree.map(jnp.asarray, serialization.msgpack_restore(path.read_bytes()))


def evaluator_of(programs: Programs) -> Evaluator:
    """Of the held-out problems, as a run has it."""
    c = programs.config
    return Evaluator(programs.policy, c.task, programs.mesh, c.seed, c.eval_problems, c.eval_samples)


def _record(key: Key, trajectory: Trajectory, seconds: float, together: int) -> dict[str, Any]:
    metrics, looks, failed = trajectory
    steps = len(metrics["loss"])
    at = np.unique(np.linspace(0, steps - 1, min(steps, POINTS)).round().astype(int))
    curves = {
        name: [(at + 1).tolist(), [float(f"{x:.6g}") for x in metrics[name][at]]] for name in CURVES if name in metrics
    }
    for name in looks[0]:
        curves[name] = [list(looks), [figures[name] for figures in looks.values()]]
    arm, seed, code = key
    return {
        **{"arm": arm, "seed": seed, "digest": code, "figures": looks[steps], "before": looks[0], "failed": failed},
        **{"curves": curves, "seconds": round(seconds, 3), "together": together},
    }


def _bar(console: Console, quiet: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, disable=quiet or not console.is_terminal)


def main(
    arms: tyro.conf.Positional[tuple[str, ...]],
    base: Annotated[Config, tyro.conf.arg(name="")],
    seeds: int = 8,
    chunk: int = 8,
    out: pathlib.Path = pathlib.Path("runs/sweep"),
    smoke: bool = False,
) -> None:
    """Run arms x seeds and compare their held-out accuracy.

    Args:
        arms: Arms, each RECIPE[@FIELD=VALUE...]; the first is what the others are compared with.
        base: What the arms share; its seed makes the base policy.
        seeds: How many seeds, from 0.
        chunk: Runs in one program; a kill costs at most so many.
        out: Folder of the sweep; finished runs in it are not run again.
        smoke: A few steps of two seeds on a tiny model.
    """
    sweep = Sweep(base=base, arms=dict(map(read_arm, arms)), seeds=range(seeds), chunk=chunk)
    if smoke:
        sweep, out = sweep.smoke(), out.with_name(out.name + "-smoke")
    console = Console()
    findings = Findings(sweep.run(out, console=console))
    findings.write(out)
    console.print(findings.table())
    console.print(f"{out}: runs.jsonl, table.md, table.csv, plot.png")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except (ValueError, OSError) as error:
        print(f"sweep: {error}", file=sys.stderr)
        sys.exit(2)
