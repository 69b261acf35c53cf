"""What a configuration must satisfy before anything is compiled; each check raises ConfigError."""

import math
from typing import Any

import numpy as np

from jaxrl_llm import spec
from jaxrl_llm.estimators import estimators_of
from jaxrl_llm.measurements import MEASURED
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.variance.units import LEAST_UNITS

# Entries of `Rollout.extras` that the trainer itself can give.
GIVEN = (
    *("noise", "greedy_reward", "token_energy", "energy", "entropy", "duration", "answer_key"),
    *("drift", "component_influence", "role"),
)

OPTIMIZERS = ("adamw", "sgd")


class ConfigError(ValueError):
    """A field, or a combination of fields, that cannot be run; the message names it and the nearest valid choice."""


def check_numbers(config: Any) -> None:
    """Refuse numbers out of their range."""
    at_least(
        config,
        **{"prompts_per_step": 1, "answers_per_prompt": 1, "steps": 1, "epochs": 1, "accumulation": 1},
        **{"eval_every": 1, "eval_problems": 1, "eval_samples": 1, "eval_batch": 1, "checkpoint_every": 1},
        **{"keep_checkpoints": 1, "samples_every": 1, "variance_every": 0, "max_nonfinite": 1},
        **{"max_grad_norm": 0, "weight_decay": 0},
    )
    at_least(config.warmup, prefix="warmup.", max_steps=0, check_every=1, batch=1)
    if isinstance(config.seed, bool) or not isinstance(config.seed, int) or not 0 <= config.seed < 2**31:
        raise ConfigError(f"seed must be an integer from 0 to 2**31 - 1, not {config.seed!r}")
    for name, rate in (("learning_rate", config.learning_rate), ("warmup.learning_rate", config.warmup.learning_rate)):
        if not (math.isfinite(rate) and rate > 0):
            raise ConfigError(f"{name} must be a finite number above 0, not {rate}")
    if config.optimizer not in OPTIMIZERS:
        raise ConfigError(f"there is no optimizer {config.optimizer!r}{spec.nearest(config.optimizer, [*OPTIMIZERS])}")
    if not 0 < config.warmup.accuracy <= 1:
        raise ConfigError(f"warmup.accuracy must be above 0 and at most 1, not {config.warmup.accuracy}")
    if not 0 < config.temperature < math.inf:
        why = "greedy answers of a group are equal"
        raise ConfigError(f"temperature must be above 0 and finite, not {config.temperature}: {why}")
    try:
        SamplingRules(temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.prompts_per_step % config.accumulation:
        divisors = [n for n in range(1, config.prompts_per_step + 1) if config.prompts_per_step % n == 0]
        best = min(divisors, key=lambda n: abs(n - config.accumulation))
        raise ConfigError(
            f"accumulation={config.accumulation} must divide prompts_per_step={config.prompts_per_step}: nearest {best}"
        )


def check_lora(config: Any) -> None:
    """Refuse adapters that the model has no place for, or that another field excludes."""
    try:
        config.lora.check(config.model)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if config.lora.rank and config.variance_every:
        raise ConfigError(
            "variance_every measures gradients of all parameters, and lora.rank leaves all but adapters as they "
            "are: set it to 0; `jaxrl-llm variance` takes a checkpoint with its adapters merged"
        )


def check_recipe(config: Any) -> None:
    """Refuse a group or a batch that is too small for the recipe."""
    traits = config.recipe.advantage.traits
    name = config.recipe.spec.split(",")[0]
    if config.answers_per_prompt < traits.minimum_group:
        raise ConfigError(
            f"answers_per_prompt={config.answers_per_prompt}: recipe {name} compares the answers of a group and "
            f"needs at least {traits.minimum_group}"
        )
    if config.prompts_per_step < traits.minimum_prompts:
        raise ConfigError(
            f"prompts_per_step={config.prompts_per_step}: recipe {name} compares prompts and needs at least "
            f"{traits.minimum_prompts}"
        )
    try:
        plan = config.plan
    except ValueError as error:
        raise ConfigError(f"recipe {name}: {error}") from error
    if plan is not None and plan.answers is not None and plan.answers < config.answers_per_prompt:
        raise ConfigError(
            f"answers_per_prompt={config.answers_per_prompt}: recipe {name} draws {plan.answers} answers to a prompt "
            f"and keeps some of them"
        )


def check_task(config: Any) -> None:
    """Refuse a task that has too few problems for the batch, or lacks what the recipe reads."""
    rows = len(config.task.train.prompt)
    times = config.plan.prompts if config.plan else 1
    if config.prompts_per_step * times > rows:
        raise ConfigError(
            f"prompts_per_step={config.prompts_per_step}{f' (x {times} drawn)' if times > 1 else ''}, but task "
            f"{config.task.spec} has {rows} training problems: at most {rows // times}"
        )
    name, names = config.recipe.spec.split(",")[0], config.task.component_names
    if config.recipe.reward.components > len(names):
        raise ConfigError(
            f"recipe {name} reads {config.recipe.reward.components} reward components, but task {config.task.spec} "
            f"gives {len(names)} ({', '.join(names)})"
        )
    given = {*GIVEN, *config.recipe.gives, *config.task.train.truth}
    for need in config.recipe.needs:
        if need not in given:
            raise ConfigError(
                f"recipe {name} reads {need!r}, which neither the trainer nor task {config.task.spec} gives"
                f"{spec.nearest(need, sorted(given))}"
            )
    if config.warmup.max_steps and not np.asarray(config.task.train.solution_mask).any():
        raise ConfigError(f"task {config.task.spec} knows no solutions to imitate: set warmup.max_steps to 0")


def check_variance(config: Any) -> None:
    """Refuse a comparison of estimators that this batch cannot give intervals for."""
    if config.recipe.plan is not None:
        raise ConfigError(
            f"variance_every: recipe {config.recipe.spec.split(',')[0]} trains on answers that it has chosen"
        )
    given = {*MEASURED, *config.recipe.needs, *config.task.train.truth}
    for name, estimator in estimators_of(config.variance_estimators).items():
        traits = estimator.advantage.traits
        if config.answers_per_prompt < max(traits.minimum_group, 2):
            raise ConfigError(f"variance_estimators: {name} needs more than {config.answers_per_prompt} answers")
        if config.prompts_per_step // traits.least_batch < LEAST_UNITS:
            least = LEAST_UNITS * traits.least_batch
            raise ConfigError(f"variance_estimators: {name} needs prompts_per_step={least} for an interval")
        for need in traits.needs:
            if need not in given:
                raise ConfigError(
                    f"variance_estimators: {name} reads {need!r}, which the run does not have"
                    f"{spec.nearest(need, sorted(given))}"
                )


def at_least(holder: Any, *, prefix: str = "", **smallest: int) -> None:
    """Refuse fields below their smallest value."""
    for name, least in smallest.items():
        value = getattr(holder, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least or math.isinf(value):
            raise ConfigError(f"{prefix}{name} must be {least} or more, not {value!r}")
