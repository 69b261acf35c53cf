"""Recipes as gradient estimators: what of a method can be compared with others on one frozen batch."""

import dataclasses
import types
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_llm import recipes, spec
from jaxrl_llm.advantages import AdvantageTransform, Traits
from jaxrl_llm.measurements import MEASURED
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.recipes._base import UNCHANGED, Recipe
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.credit import Estimator


class EstimatorError(ValueError):
    """A method that cannot be compared on one batch of answers; the message says why, and what can be."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """Which estimators are compared, and on which frozen batch of a checkpoint."""

    estimators: tuple[str, ...] = (
        "rloo",
        "dr_grpo",
        "grpo",
        "bnpo",
        "opo",
        "reinforce",
    )  # recipes: NAME[,KEY=VALUE...]
    baseline: str | None = None  # the estimator that the others are divided by; default: the first
    step: int | None = None  # which checkpoint; default: the newest
    # pool: the answers of each prompt stand in for its policy, and all is known of that one; prompts: prompts and
    # answers are a sample, and the intervals say what it tells of the policy that was sampled
    view: Literal["pool", "prompts"] = "pool"
    prompts: int = 32  # training problems in the batch
    answers: int = 32  # answers to each; in the view of prompts two groups or more tell both parts of the spread apart
    group_size: int = 8  # answers in a group
    unit: int = 1  # in the view of prompts: prompts in one batch; 2 or more for estimators that compare prompts
    sketch: int = 16384  # numbers a score is sketched to; 0: the scores themselves, prompts x answers x parameters
    segments: int = 1  # pieces of an answer with scores of their own, for credit that varies over its tokens
    level: float = 0.95  # of the intervals
    seed: int = 0  # of the sketch and the bootstrap


def estimators_of(names: Sequence[str]) -> dict[str, Estimator]:
    """Credit and objective of recipes, by the spelling that is given; penalties are left out, and state is fresh.

    Raises SpecError for a name that does not exist, EstimatorError for a method that changes the reward, the problems
    or the answers, or that trains a second network: its batch is another one.
    """
    if not names:
        raise EstimatorError("name at least one estimator, such as rloo")
    if len(set(names)) < len(names):
        raise EstimatorError(f"an estimator is named twice: {', '.join(names)}")
    return {name: _estimator(spec.build(recipes, name, "estimators"), name) for name in names}


def _estimator(recipe: Recipe, name: str) -> Estimator:
    obstacles = {
        "changes the reward": recipe.reward is not UNCHANGED,
        "chooses problems": recipe.screening is not None,
        "chooses among answers": recipe.plan is not None,
        "trains a second network": recipe.companion is not None,
    }
    for obstacle, present in obstacles.items():
        if present:
            raise EstimatorError(f"{name} {obstacle}, so that its batch is not the one that the others see")
    return Estimator(recipe.advantage, dataclasses.replace(recipe.objective, penalties=()))


def needs_of(estimators: dict[str, Estimator]) -> tuple[str, ...]:
    """Names of `Rollout.extras` that any of them reads."""
    return tuple(dict.fromkeys(name for e in estimators.values() for name in e.advantage.traits.needs))


def sampling_recipe(needs: tuple[str, ...]) -> Recipe:
    """A recipe that only asks for `needs`, so that the programs of a run give them with the answers."""

    def update(advantage, state, rollout):
        return advantage, state

    credit = AdvantageTransform(lambda: (), update, Traits(unbiased="yes", needs=needs))
    return Recipe(spec="frozen_batch", advantage=credit, objective=recipes.reinforce().objective)


def measured(policy: Policy, params: Params, rollout: Rollout, needs: tuple[str, ...]) -> Rollout:
    """The rollout with those of `needs` that are read off the policy and that nobody has given yet."""
    missing = tuple(name for name in needs if name not in rollout.extras and name in MEASURED)
    return _measured(policy, missing, params, rollout) if missing else rollout


@jax.jit(static_argnums=(0, 1))
def _measured(policy: Policy, missing: tuple[str, ...], params: Params, rollout: Rollout) -> Rollout:
    learner = types.SimpleNamespace(policy=policy)
    found = {name: jnp.asarray(MEASURED[name](learner, params, rollout)) for name in missing}
    return dataclasses.replace(rollout, extras={**rollout.extras, **found})
