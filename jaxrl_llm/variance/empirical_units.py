"""How a frozen batch is cut in independent units, and what is refused before anything is computed of it."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jaxrl_llm.losses.tokens import Tokens
from jaxrl_llm.random import Stream, named_key, stream_key
from jaxrl_llm.spec import nearest
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.credit import Estimator, loss_slopes, picked
from jaxrl_llm.variance.units import LEAST_UNITS

ON_POLICY = 0.02  # nats, mean |log π - log μ| of a token that passes for rounding of the sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a frozen batch of P prompts with M answers is cut in units, and what the intervals are.

    group_size  G answers in a group; None: all M. With M >= 2G each prompt has M//G groups, of which more is learnt
    prompts     B prompts in a unit, that is in a batch of the estimate whose spread is measured
    baseline    name of the estimator that the others are divided by; None: the first one
    level       of the intervals
    replicates  of the bootstrap over units
    seed        of the sketch, the order of prompts and the bootstrap
    coupled     the answers of a prompt were not drawn independently of each other
    off_policy  the answers come from another policy than `params`, whose log-probabilities are `behaviour_logp`
    floor       measure the numeric floor too
    """

    group_size: int | None = None
    prompts: int = 1
    baseline: str | None = None
    level: float = 0.95
    replicates: int = 1000
    seed: int = 0
    coupled: bool = False
    off_policy: bool = False
    floor: bool = True


def settings_of(given: dict) -> Settings:
    """The settings by name; ValueError for a name that does not exist."""
    names = [field.name for field in dataclasses.fields(Settings)]
    for name in given:
        if name not in names:
            raise ValueError(f"settings: there is no {name!r}{nearest(name, names)}")
    return Settings(**given)


class Units(NamedTuple):
    """Rows of a rollout that make U units of B prompts, R groups of G answers each."""

    prompt: Int[Array, "U R B"]
    answer: Int[Array, "U R B G"]


def units_of(rollout: Rollout, settings: Settings) -> Units:
    """Prompts in a random order, B by B; groups are neighbouring answers. What is left over stays out."""
    p, m = rollout.reward.shape
    b, g = settings.prompts, settings.group_size or m
    units, groups = p // b, m // g
    key = named_key(stream_key(settings.seed, Stream.VARIANCE), "order")
    prompt = jax.random.permutation(key, p)[: units * b].reshape(units, 1, b)
    answer = jnp.arange(groups * g).reshape(1, groups, 1, g)
    return Units(jnp.broadcast_to(prompt, (units, groups, b)), jnp.broadcast_to(answer, (units, groups, b, g)))


def only_valid(rollout: Rollout) -> Rollout:
    """The prompts all of whose answers are valid."""
    p, m = rollout.reward.shape
    keep = np.flatnonzero(np.all(np.asarray(rollout.valid), axis=1))
    if len(keep) == p:
        return rollout
    answers = np.broadcast_to(np.arange(m), (len(keep), m))
    return picked(rollout, None, jnp.asarray(keep), jnp.asarray(answers))[0]


def refuse_misuse(
    estimators: Mapping[str, Estimator], rollout: Rollout, tokens: Tokens | None, settings: Settings
) -> None:
    """ValueError for what has no meaning, in one sentence."""
    p, m = rollout.reward.shape
    g = settings.group_size or m
    if not estimators:
        raise ValueError("estimators is empty: give at least one, by name")
    if settings.baseline is not None and settings.baseline not in estimators:
        near = nearest(settings.baseline, list(estimators))
        raise ValueError(f"baseline must be one of the estimators, not {settings.baseline!r}{near}")
    if not 0 < settings.level < 1:
        raise ValueError(f"level must be between 0 and 1, such as 0.95, not {settings.level}")
    if not 2 <= g <= m:
        raise ValueError(f"group_size must be from 2, which the reference needs, to the {m} answers there are, not {g}")
    if p // settings.prompts < LEAST_UNITS:
        raise ValueError(
            f"{p} prompts make {p // settings.prompts} units of {settings.prompts}, and an interval needs {LEAST_UNITS}"
        )
    if not bool(jnp.all(rollout.valid)):
        raise ValueError("an answer is not valid: take the prompts of `only_valid(rollout)`")
    _refuse_other_policy(tokens, settings)
    for name, estimator in estimators.items():
        refuse_estimator(name, estimator, rollout, tokens, settings)


def _refuse_other_policy(tokens: Tokens | None, settings: Settings):
    if settings.off_policy and tokens is None:
        raise ValueError("off_policy needs `tokens`, the log-probabilities of both policies")
    if tokens is not None and not settings.off_policy:
        gap = jnp.where(tokens.where, jnp.abs(tokens.logp - tokens.behaviour_logp), 0)
        mean = float(jnp.sum(gap) / jnp.maximum(jnp.sum(tokens.where), 1))
        if not mean <= ON_POLICY:
            raise ValueError(
                f"the answers are not from `params`: their log-probabilities differ by {mean:.3g} nats a token; say "
                "off_policy=True"
            )


def refuse_estimator(name: str, estimator: Estimator, rollout: Rollout, tokens: Tokens | None, settings: Settings):
    """ValueError for an estimator that has no meaning on this batch, in one sentence."""
    traits, objective = estimator.advantage.traits, estimator.objective
    g = settings.group_size or rollout.reward.shape[1]
    if g < traits.minimum_group:
        raise ValueError(f"{name} needs groups of {traits.minimum_group} answers, not {g}")
    if settings.prompts < traits.least_batch:
        raise ValueError(
            f"{name} compares prompts and needs {traits.least_batch} or more in a unit, not {settings.prompts}: "
            f"say prompts={traits.least_batch}"
        )
    if settings.coupled and traits.needs_iid:
        raise ValueError(f"{name} is unbiased only for answers drawn independently, and these are coupled")
    missing = sorted(set(traits.needs) - set(rollout.extras))
    if missing:
        raise ValueError(
            f"{name} reads {missing[0]!r}, which is not in rollout.extras{nearest(missing[0], sorted(rollout.extras))}"
        )
    within = {"any": True, "unit": (rollout.reward >= 0) & (rollout.reward <= 1)}
    within["binary"] = (rollout.reward == 0) | (rollout.reward == 1)
    if not bool(jnp.all(within[traits.domain])):
        raise ValueError(f"{name} is defined for rewards of the domain {traits.domain!r} alone")
    if objective is None:
        return
    if tokens is None:
        raise ValueError(f"{name} has an objective, which weighs tokens, and there are no `tokens`")
    if objective.uses_reference and "reference_logp" not in rollout.extras:
        raise ValueError(f"{name} compares with a reference: put its log-probabilities in extras['reference_logp']")
    slopes = loss_slopes(objective, tokens)
    if bool(jnp.any(slopes.entropy != 0) | jnp.any(slopes.exact_kl != 0)):
        raise ValueError(
            f"the gradient of {name} is not a sum of scores: its objective has an entropy or an exact KL in the loss; "
            "take that penalty out, or put it in the reward"
        )
