"""Before RL: imitate solutions until the policy is right part of the time, and see which problems it solves."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxrl_llm import heartbeat
from jaxrl_llm.evaluate import Evaluator, right
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs
from jaxrl_llm.rollouts.sampling import GREEDY
from jaxrl_llm.sharding import must_block


class WarmUpError(RuntimeError):
    """Warm-up met a non-finite loss."""


def warm_up(
    programs: Programs,
    evaluator: Evaluator,
    report: Callable[[int, dict[str, float]], Any],
    stopped: Callable[[], bool],
) -> tuple[Params, dict[str, int | float | None]]:
    """Parameters after warm-up, and how it went: steps, last loss, greedy held-out accuracy.

    It ends at the first look at which the accuracy has reached `warmup.accuracy`, or after `warmup.max_steps`; a policy
    that already knows too much leaves nothing for RL to show, and one that is never right gets no signal. `report`
    gets the figures of every look; `stopped` is asked after each.
    """
    settings = programs.config.warmup
    params = programs.fresh_params()
    outcome = {"steps": 0, "loss": None, "accuracy": _accuracy(evaluator, params, 0)}
    if settings.max_steps == 0 or outcome["accuracy"] >= settings.accuracy:
        return params, outcome
    state = programs.start(programs.imitator, params)
    del params  # or they would be held twice
    for step in range(1, settings.max_steps + 1):
        heartbeat.beat("warm-up", step)
        state, metrics = programs.imitate(state, step)
        if must_block(programs.mesh):
            jax.block_until_ready(state)
        if step % settings.check_every and step != settings.max_steps:
            continue
        loss = float(metrics["loss"])
        if not np.isfinite(loss):
            raise WarmUpError(f"the warm-up loss is {loss} at step {step}: lower warmup.learning_rate")
        outcome = {"steps": step, "loss": loss, "accuracy": _accuracy(evaluator, state.params, step)}
        figures = {"loss": loss, "entropy": float(metrics["entropy"]), "eval/accuracy": outcome["accuracy"]}
        report(step, figures)
        if outcome["accuracy"] >= settings.accuracy or stopped():
            break
    return state.params, outcome


def attempts(programs: Programs, params: Params) -> np.ndarray:
    """Which answers of the policy before RL to all training problems are right [N S], sampled as in training."""
    config = programs.config
    table = len(config.task.train.prompt)
    sampler = Evaluator(programs.policy, config.task, programs.mesh, config.seed, table, 1, split="train")
    grade = sampler.decode(params, 0, config.recipe.screening.attempts, config.sampling)[1]
    return right(grade, config.task.component_names)


def _accuracy(evaluator: Evaluator, params: Params, step: int) -> float:
    return float(np.mean(right(evaluator.decode(params, step, 1, GREEDY)[1], evaluator.task.component_names)))
