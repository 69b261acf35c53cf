"""Compare estimators on a frozen batch of a checkpoint."""

import dataclasses
import pathlib

from rich.console import Console

from jaxrl_llm.estimators import Question, estimators_of, measured, needs_of, sampling_recipe
from jaxrl_llm.inspect_run import load_run
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.empirical_backends import count_sketch, exact
from jaxrl_llm.variance.empirical_compare import compare
from jaxrl_llm.variance.empirical_pool import compare_pool
from jaxrl_llm.variance.empirical_tables import COLUMNS, NARROW, WIDE, Comparison
from jaxrl_llm.variance.empirical_units import Settings


def frozen_batch(
    programs: Programs, params: Params, step: int, *, prompts: int, answers: int, needs: tuple[str, ...] = ()
) -> Rollout:
    """Graded answers of a policy to the training problems of a step, from its plain distribution, with `needs`."""
    config = dataclasses.replace(
        programs.config,
        recipe=sampling_recipe(needs),
        prompts_per_step=prompts,
        answers_per_prompt=answers,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        accumulation=1,
        variance_every=0,
    )
    sampler = Programs(config)
    return measured(sampler.policy, params, sampler.sample(params, step), needs)


def compare_run(run: pathlib.Path, question: Question, out: pathlib.Path | None = None) -> Comparison:
    """Score one frozen batch of a checkpoint with many recipes; print the table, and write it with a plot.

    Leaves variance.md, variance.csv and variance.png in `out` (default: RUN/variance-stepN). Raises SpecError,
    EstimatorError or ConfigError before anything is compiled, ValueError for an estimator without meaning on the batch.
    """
    chosen = estimators_of(question.estimators)
    programs, params, step = load_run(run, question.step)
    sizes = {"prompts": question.prompts, "answers": question.answers}
    rollout = frozen_batch(programs, params, step + 1, needs=needs_of(chosen), **sizes)
    settings = Settings(
        group_size=question.group_size,
        prompts=question.unit,
        baseline=question.baseline,
        level=question.level,
        seed=question.seed,
    )
    scores = {
        "backend": count_sketch(size=question.sketch) if question.sketch else exact(),
        "segments": question.segments,
    }
    if question.view == "pool":
        result = compare_pool(chosen, programs.policy, params, rollout, settings, **scores)
    else:
        result = compare(chosen, programs.policy, params, rollout, **scores, **dataclasses.asdict(settings))
    folder = out or run / f"variance-step{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "variance.md").write_text(result.markdown(), encoding="utf-8")
    (folder / "variance.csv").write_text(result.csv(), encoding="utf-8")
    result.plot(folder / "variance.png")
    console = Console()
    console.print(result.table(COLUMNS if console.width >= WIDE else NARROW))
    console.print(f"{folder} holds variance.png, variance.md and variance.csv, with all figures.")
    return result
