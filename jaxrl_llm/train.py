"""The loop: sample, grade, credit, update, log one step late."""

import contextlib
import dataclasses
import os
import pathlib
from typing import Any

import jax
from rich.console import Console

from jaxrl_llm import heartbeat
from jaxrl_llm.agreement import StepCheck, require_equal_start
from jaxrl_llm.checkpoint import Checkpoints, Keep
from jaxrl_llm.config import Config
from jaxrl_llm.determinism import require_switches, verify
from jaxrl_llm.display import Progress, before_after_table
from jaxrl_llm.distributed import RankError, any_process, first, is_first, lone_errors_end_it, several, together
from jaxrl_llm.evaluate import Evaluator, best_constant
from jaxrl_llm.journal import Journal, NonFiniteError
from jaxrl_llm.learner import TrainState
from jaxrl_llm.metrics import MetricsLog, read_metrics
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.preflight import require_room
from jaxrl_llm.programs import Programs
from jaxrl_llm.report import write_report
from jaxrl_llm.rollouts.sampler import Sampler
from jaxrl_llm.runs import (
    check_folder,
    moved,
    read_attempts,
    read_summary,
    stoppable,
    write_attempts,
    write_config,
    write_json,
)
from jaxrl_llm.sharding import must_block
from jaxrl_llm.warmup import attempts, warm_up
from jaxrl_llm.watch import Watch

ELSEWHERE = "the stop of another process"


class StoppedError(RuntimeError):
    """The run was asked to stop, and has saved what it needs to go on. `status`: that of a program which then ends."""

    def __init__(self, cause: str, message: str):
        super().__init__(f"{cause}{message}")
        self.status = 130 if cause == "SIGINT" else 0


@dataclasses.dataclass(frozen=True)
class Result:
    """A finished run: its folder, final parameters, and held-out figures before and after RL."""

    folder: pathlib.Path
    params: Params
    before: dict[str, float]
    after: dict[str, float]
    constant_accuracy: float | None


def train(
    config: Config,
    out: str | os.PathLike[str] | None = None,
    *,
    resume: bool = False,
    quiet: bool = False,
    console: Console | None = None,
    sampler: Sampler | None = None,
    keep: Keep | None = None,
    deterministic: bool = False,
) -> Result:
    """Run a configuration from warm-up to report; everything stands in the folder `out` (default: runs/...).

    With `resume` the run in that folder goes on from its newest checkpoint, with the numbers of one that never stopped;
    on another mesh, with those that it gives.
    A checkpoint that is damaged or unfinished is named and passed over; `keep` says which stay beside the newest. A
    `sampler` draws answers of training elsewhere. SIGINT and SIGTERM end the run after the step, with a checkpoint.
    `deterministic` demands the switches of the module `determinism`, and tries them.

    Several processes (`distributed.connect`) call it alike, on a file system that all of them see; process 0 writes.

    Raises ConfigError or RunError before anything is compiled (where the devices lack memory: before anything runs),
    NonFiniteError after `max_nonfinite` refused updates in a row (the site named; no checkpoint
    has one of them in it), StoppedError when asked to stop.
    """
    require_equal_start(config, deterministic)
    folder = together(lambda: check_folder(config, out, resume, deterministic))
    programs = Programs(config, sampler=sampler)
    evaluator = Evaluator(
        programs.policy,
        config.task,
        programs.mesh,
        config.seed,
        config.eval_problems,
        config.eval_samples,
        batch=config.eval_batch,
    )
    together(lambda: require_room(programs, evaluator))
    quiet, shown = quiet or not is_first(), console or Console()
    if deterministic:
        together(require_switches)
        said = verify(programs.mesh)
        first(lambda: shown.print(said, soft_wrap=True))
    devices = programs.mesh.shape
    if resume:
        first(lambda: _tell(shown, moved(folder, config, devices)))
    else:
        first(lambda: write_config(folder, config, devices, deterministic))
    heartbeat.begun()
    with stoppable() as stop:  # to the very end: a run that is stopped in its last report has nothing left but that
        return _run(programs, evaluator, folder, stop, resume=resume, keep=keep, quiet=quiet, console=shown)


def _run(
    programs: Programs,
    evaluator: Evaluator,
    folder: pathlib.Path,
    stop: Any,
    *,
    resume: bool,
    keep: Keep | None,
    quiet: bool,
    console: Console,
) -> Result:
    """All of a run but its checks."""
    config = programs.config
    with contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(folder / "checkpoints", config.keep_checkpoints, keep))
        reference_store = stack.enter_context(Checkpoints(folder / "reference", 1, keep))
        found = checkpoints.take_up(programs.state_like()) if resume else None
        start = found and found[0]
        progress = stack.enter_context(
            Progress(
                config.steps,
                warmup_steps=0 if start is not None else config.warmup.max_steps,
                resume_from=start or 0,
                quiet=quiet,
                console=console,
            )
        )
        log = together(lambda: MetricsLog(folder, (start or 0) if resume else None) if is_first() else None)
        stack.enter_context(log or contextlib.nullcontext())
        stack.enter_context(lone_errors_end_it(RankError, StoppedError, NonFiniteError))
        if start is None:
            params, summary = _begin(programs, evaluator, progress, stop, folder)
            heartbeat.beat("begin")
            reference_store.clear()  # of a start that was cut short
            reference_store.save(0, params)
            reference_store.wait()
            state, reference = programs.begin(params)
            first(lambda: write_json(folder / "summary.json", summary))
            checkpoints.save(0, state)
        else:
            state = found[1]
            # Its one copy may be damaged: that must not end a run which has no use for it.
            wanted = needs_reference(config) or config.lora.rank
            like = programs.trained.params_like()
            reference = programs.trained.reference(reference_store.restore(like, 0)) if wanted else None
            summary = read_summary(folder)
            if config.recipe.screening:
                programs.screen(read_attempts(folder))
        journal = Journal(programs, log, progress, _so_far(folder) if is_first() else {})
        try:
            state = _loop(programs, evaluator, checkpoints, journal, stop, state, reference)
        except NonFiniteError:
            first(lambda: write_report([folder], folder / "report.html"))  # the curves show how it came about
            raise
        checkpoints.wait()
    heartbeat.beat("report", config.steps)
    after = journal.evaluation or evaluator(programs.trained.acting(state.params), config.steps)
    first(lambda: _end(folder, summary, after, console))
    return Result(folder, programs.trained.merged(state.params), summary["before"], after, summary["constant_accuracy"])


def _tell(console: Console, text: str) -> None:
    if text:
        console.print(text, soft_wrap=True)


def _end(folder: pathlib.Path, summary: dict, after: dict[str, float], console: Console) -> None:
    write_json(folder / "summary.json", summary | {"after": after})
    write_report([folder], folder / "report.html")
    console.print(
        before_after_table(
            summary["before"],
            after,
            summary["constant_accuracy"],
            problems=summary["problems"],
            constant_answer=summary["constant_answer"],
        )
    )


def _begin(
    programs: Programs, evaluator: Evaluator, progress: Progress, stop: Any, folder: pathlib.Path
) -> tuple[Params, dict]:
    """Warm up, evaluate, and screen the training problems: the policy before RL, and what is known of it."""
    asked = lambda: any_process(stop.requested is not None)  # noqa: E731
    params, outcome = warm_up(programs, evaluator, progress.warmup, asked)
    if asked():
        raise StoppedError(stop.requested or ELSEWHERE, " during warm-up: nothing is saved yet, --resume starts over")
    constant = best_constant(programs.task, evaluator.problems)
    summary = {
        "warmup": outcome,
        "before": evaluator(params, 0),
        "constant_accuracy": constant and constant[0],
        "constant_answer": constant and constant[1],
        "problems": evaluator.problems,
        "parameters": programs.trained.counts,
    }
    if programs.config.recipe.screening:
        correct = attempts(programs, params)
        programs.screen(correct)
        first(lambda: write_attempts(folder, correct))
        summary["screening"] = {
            "problems": len(programs.agenda.rows),
            "of": len(correct),
            "attempts": correct.shape[1],
            "pass_rate": float(correct.mean()),
        }
        progress.show(
            f"{len(programs.agenda.rows)} of {len(correct)} training problems stay: of {correct.shape[1]} attempts at "
            f"each, {correct.mean():.1%} were right"
        )
    return params, summary


def _loop(
    programs: Programs,
    evaluator: Evaluator,
    checkpoints: Checkpoints,
    journal: "Journal",
    stop: Any,
    state: TrainState,
    reference: Params | None,
) -> TrainState:
    c = programs.config
    anchor = reference if needs_reference(c) else None
    blocking = must_block(programs.mesh)
    watch = Watch(c, programs.policy) if c.variance_every else None
    begun = int(state.step)
    check = StepCheck(programs, state.params) if several() else None
    if check:
        check(begun, state.params, False)
    for step in range(begun + 1, c.steps + 1):
        heartbeat.beat("step", step)
        last = step == c.steps
        acting = programs.trained.acting(state.params)
        rollout = programs.sample(acting, step)
        watched = {}
        if watch and step % c.variance_every == 0:
            heartbeat.beat("variance", step)
            watched = watch(acting, rollout)
        del acting  # merged weights would take their room through the update
        state, metrics, credit = programs.learn(state, anchor, rollout)
        if blocking:
            jax.block_until_ready(state)
        asked = stop.requested is not None
        if check:
            asked = check(step, state.params, asked)
        sample = (rollout, credit) if step % c.samples_every == 0 or step in (1, c.steps) else None
        journal.put(step, metrics, sample, watched)
        if step % c.eval_every == 0 or last:
            journal.evaluate(evaluator, programs.trained.acting(state.params), step)
        if step % c.checkpoint_every == 0 or last or asked:
            heartbeat.beat("save", step)
            # Rows first: a checkpoint must never know a step that the log does not.
            journal.sync()
            checkpoints.save(step, state, journal.evaluation if journal.evaluated == step else None)
        if asked and not last:
            checkpoints.wait()
            saved = f": step {step} of {c.steps} is saved; --resume goes on from there"
            raise StoppedError(stop.requested or ELSEWHERE, saved)
    journal.flush()
    if check:
        check.finish()
    return state


def needs_reference(config: Config) -> bool:
    """Whether the steps of a run read the policy before RL."""
    return config.measure_kl or config.recipe.uses_reference


def _so_far(folder: pathlib.Path) -> dict[str, int]:
    """What the log has counted from the first step on, for a run that goes on."""
    curves = read_metrics(folder)
    return {name: int(curves[name][1][-1]) for name in curves if name == "num_tokens" or name.startswith("ungraded/")}
