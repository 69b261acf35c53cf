"""The command line, `jaxrl-llm COMMAND`. Every field of `Config` is a flag of `train`."""

import os
import pathlib
import signal
import sys
import textwrap
from typing import Annotated, Literal

import tyro

from jaxrl_llm import determinism, recipes, schedules, spec, tasks
from jaxrl_llm.checkpoint import Keep
from jaxrl_llm.config import Config
from jaxrl_llm.distributed import ALONE, Processes, RankError, connect, exit_status, leave
from jaxrl_llm.estimators import Question
from jaxrl_llm.gang import Care
from jaxrl_llm.sharding import described
from jaxrl_llm.supervise import supervise as watch


def train(
    config: Annotated[Config, tyro.conf.arg(name="")],
    out: pathlib.Path | None = None,
    resume: bool = False,
    quiet: bool = False,
    keep: Keep = Keep(),  # noqa: B008 (frozen)
    processes: Annotated[Processes, tyro.conf.arg(name="")] = ALONE,
    progress_file: pathlib.Path | None = None,
    deterministic: bool = False,
) -> None:
    """Warm a policy up, train it by policy gradient, and leave a folder with everything that happened.

    Args:
        config: The run.
        out: Folder of the run; default: runs/TASK-RECIPE-seedN.
        resume: Go on from the newest checkpoint in that folder; the numbers are those of a run that never stopped.
        quiet: Show only the table at the end.
        keep: Checkpoints that stay beside the newest ones.
        processes: Several processes as one run.
        progress_file: Where signs of life are written, for `jaxrl-llm supervise`.
        deterministic: Same bits from run to run on GPUs too, checked at the start; slower there, free elsewhere.
    """
    from jaxrl_llm import heartbeat
    from jaxrl_llm.journal import NonFiniteError
    from jaxrl_llm.train import StoppedError
    from jaxrl_llm.train import train as run

    if progress_file is not None:
        heartbeat.start(progress_file)
    try:
        result = run(config, out, resume=resume, quiet=quiet, keep=keep, deterministic=deterministic)
    except StoppedError as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # all is saved: a late one must not make it look lost
        print(f"jaxrl-llm: {error}", file=sys.stderr)
        sys.exit(error.status)
    except NonFiniteError as error:
        print(f"jaxrl-llm: {error}", file=sys.stderr)
        sys.exit(1)
    except RankError as error:
        print(f"jaxrl-llm: {error}", file=sys.stderr)
        sys.exit(error.status)
    finally:
        leave()
    print(f"\n{result.folder}/report.html shows the curves and answers of this run.")


def evaluate(
    run: tyro.conf.Positional[pathlib.Path],
    step: int | None = None,
    split: Literal["heldout", "train"] = "heldout",
    problems: int = 512,
    samples: int = 16,
    seed: int = 0,
) -> None:
    """Evaluate a checkpoint of a run: greedy accuracy, unbiased pass@k, majority vote, best constant answer.

    Args:
        run: Folder of the run.
        step: Which checkpoint; default: the newest.
        split: Which problems.
        problems: How many of them, at most.
        samples: Answers sampled per problem, for pass@k and majority vote.
        seed: Of the sampled answers.
    """
    from jaxrl_llm.inspect_run import evaluate_run

    evaluate_run(run, step=step, split=split, problems=problems, samples=samples, seed=seed)


def sample(
    run: tyro.conf.Positional[pathlib.Path],
    prompts: tyro.conf.Positional[tuple[str, ...]] = (),
    step: int | None = None,
    answers: int = 4,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> None:
    """Print sampled answers of a checkpoint, to given prompts or to a few held-out problems.

    Args:
        run: Folder of the run.
        prompts: Prompts in the task's own form; default: the first held-out problems, with their rewards.
        step: Which checkpoint; default: the newest.
        answers: Answers per prompt.
        temperature: Of sampling; 0: the likeliest token every time.
        top_k: Sample from this many likeliest tokens; 0: all.
        top_p: Sample from the fewest likeliest tokens with this probability; 1: all.
        seed: Of the sampled answers.
    """
    from jaxrl_llm.inspect_run import sample_run
    from jaxrl_llm.rollouts.sampling import SamplingRules

    rules = SamplingRules(temperature=temperature, top_k=top_k, top_p=top_p)
    sample_run(run, list(prompts), step=step, answers=answers, rules=rules, seed=seed)


def variance(
    run: tyro.conf.Positional[pathlib.Path],
    question: Annotated[Question, tyro.conf.arg(name="")],
    out: pathlib.Path | None = None,
) -> None:
    """Compare gradient estimators on one frozen batch of a checkpoint: bias, spread and error of each, with intervals.

    Args:
        run: Folder of the run.
        question: What is compared, and on which answers.
        out: Folder for the table and the plot; default: RUN/variance-stepN.
    """
    from jaxrl_llm.variance_run import compare_run

    compare_run(run, question, out)


def report(runs: tyro.conf.Positional[tuple[pathlib.Path, ...]], out: pathlib.Path | None = None) -> None:
    """Build report.html anew, and overlay several runs.

    Args:
        runs: Folders of runs.
        out: The file to write; default: report.html in the folder of a single run, ./report.html for several.
    """
    from jaxrl_llm.metrics import RunError
    from jaxrl_llm.report import write_report

    if not runs:
        raise RunError("name at least one run folder")
    target = out or (runs[0] / "report.html" if len(runs) == 1 else pathlib.Path("report.html"))
    write_report(list(runs), target)
    print(target)


def export(
    run: tyro.conf.Positional[pathlib.Path], out: pathlib.Path, step: int | None = None, adapter: bool = False
) -> None:
    """Write a checkpoint as a Hugging Face folder, which `transformers` and inference servers load.

    Args:
        run: Folder of the run.
        out: The folder to write; it must be absent or empty.
        step: Which checkpoint; default: the newest.
        adapter: Of a run with lora.rank: its adapters alone, in the format of PEFT; default: merged into the weights.
    """
    from jaxrl_llm.export import export_run

    export_run(run, out, step, adapter)


def supervise(command: tyro.conf.Positional[tuple[str, ...]], care: Annotated[Care, tyro.conf.arg(name="")]) -> None:
    """Watch a training run from outside: `jaxrl-llm supervise [FLAGS] -- train ...`; restart it when it dies or hangs.

    Args:
        command: `train` and its flags, behind `--`.
        care: How it is watched.
    """
    if command[:1] != ("train",):
        raise ValueError(f"supervise runs `train`: jaxrl-llm supervise [FLAGS] -- train ..., not {' '.join(command)!r}")
    sys.exit(watch(command, care))


def show_recipes(name: tyro.conf.Positional[str] = "") -> None:
    """Print the table of recipes, or what one of them is made of.

    Args:
        name: A recipe, with or without arguments: NAME[,KEY=VALUE...]; default: all of them.
    """
    from rich.console import Console

    from jaxrl_llm.recipe_table import composition, table

    console = Console(soft_wrap=bool(name))
    console.print(composition(name) if name else table(console.width))


def choices() -> str:
    """The names that --task, --recipe and --schedule take, and what they are."""
    parts = [
        f"--recipe NAME[,KEY=VALUE...]: one of {len(recipes.__all__)}; `jaxrl-llm recipes` describes them",
        textwrap.fill(", ".join(recipes.__all__), 96, initial_indent="  ", subsequent_indent="  "),
    ]
    for flag, module in (("task", tasks), ("schedule", schedules)):
        parts.append(f"--{flag} NAME[,KEY=VALUE...]")
        for name, function in spec.public_functions(module).items():
            parts.append(
                f"  {spec.signature(name, function)}\n      {(function.__doc__ or '').strip().splitlines()[0]}"
            )
    return "\n".join(parts)


COMMANDS = {
    "train": train,
    "eval": evaluate,
    "sample": sample,
    "variance": variance,
    "report": report,
    "export": export,
    "recipes": show_recipes,
    "supervise": supervise,
}


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 the run failed, 2 the request was wrong, 130 stopped by
    SIGINT; SIGTERM is 0, once all is saved."""
    arguments = sys.argv[1:] if arguments is None else arguments
    _keep_compiled_programs()
    try:
        if arguments[:1] == ["train"] and "--deterministic" in arguments:
            determinism.switch_on()
        _join_processes(arguments)
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="jaxrl-llm",
            description="Policy-gradient reinforcement learning of language models.\n\n" + choices(),
            args=arguments,
        )
    except (ValueError, OSError) as error:
        print(f"jaxrl-llm: {error}", file=sys.stderr)
        sys.exit(exit_status(error))


def _join_processes(arguments: list[str]) -> None:
    """Read the flags of `Processes` first: the problems of a configuration are arrays on devices, and processes have to
    find each other before JAX looks for devices."""
    if arguments[:1] == ["train"] and not {"-h", "--help"} & set(arguments):
        processes, _ = tyro.cli(Processes, args=arguments[1:], return_unknown_args=True)
        if connect(processes):
            print(described(), flush=True)


def _keep_compiled_programs() -> None:
    """Reuse what an earlier run compiled, unless the user has set a cache of their own."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxrl_llm" / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
