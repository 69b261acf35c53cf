"""What a method is made of, and what can be read off its parts."""

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_llm.advantages import AdvantageTransform
from jaxrl_llm.losses import Objective, bare_tokens
from jaxrl_llm.rewards._base import RewardTransform, identity
from jaxrl_llm.rollouts.screening import Screening
from jaxrl_llm.rollouts.select.plan import Plan

UNCHANGED = identity()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method: how rewards become credit [P G T], and what is maximised with it. `spec` is its spelling.

    reward     what is done to graded rewards first
    screening  which training problems are kept, in which order, by the pass rates before RL; None: all, uniformly
    plan       (prompts, answers trained on) -> which are drawn, and how they are chosen from; None: they are the same
    anchor     a `learner.Anchor`, how the reference policy moves; None: it stays
    companion  policy -> `companions.Companion`, a second network that is trained beside the policy; None: there is none
    reference  the companion is compared with the reference policy
    gives      names of `Rollout.extras` that plan and companion give
    """

    spec: str
    advantage: AdvantageTransform
    objective: Objective
    reward: RewardTransform = UNCHANGED
    screening: Screening | None = None
    plan: Callable[[int, int], Plan] | None = None
    anchor: Callable[..., Any] | None = None
    companion: Callable[[Any], Any] | None = None
    reference: bool = False
    gives: tuple[str, ...] = ()

    @property
    def uses_reference(self) -> bool:
        """Whether a reference policy must be kept: for a penalty, or for what a second network is compared with."""
        return self.objective.uses_reference or self.reference

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of `Rollout.extras` that are read."""
        return tuple(dict.fromkeys((*self.reward.needs, *self.advantage.traits.needs)))


class Facts(NamedTuple):
    """A row of the table of recipes."""

    name: str
    paper: str
    formula: str
    unbiased: str
    needs: str
    verified: str


def called(function: Callable[..., Recipe], arguments: dict[str, Any]) -> str:
    """The spelling of a call of a recipe: `_spelled(grpo, locals())`."""
    names = inspect.signature(function).parameters
    return ",".join([function.__name__, *(f"{name}={arguments[name]}" for name in names)])


def facts(function: Callable[..., Recipe]) -> Facts:
    """What the docstring says of a recipe and what its parts say at their defaults.

    The first line of the docstring is "Name (paper): formula.", one line begins with "Verified:".
    """
    text = inspect.cleandoc(function.__doc__ or "")
    first = re.match(r"(?P<title>[^(]+) \((?P<paper>(?:[^()]|\([^()]*\))+)\): (?P<formula>.+)", text.splitlines()[0])
    verified = re.search(r"^Verified: ((?:.+\n?)+)", text, re.M)
    if first is None or verified is None:
        raise ValueError(f"the docstring of recipe {function.__name__} lacks 'Name (paper): formula' or 'Verified:'")
    recipe = function()
    return Facts(
        name=function.__name__,
        # A preset's "paper" is the library and its version.
        paper=" ".join([*first["title"].partition(" as in ")[2:], first["paper"]]).strip(),
        formula=first["formula"],
        unbiased=unbiased(recipe),
        needs=", ".join(requirements(recipe)) or "-",
        verified=" ".join(verified[1].split()),
    )


def unbiased(recipe: Recipe) -> str:
    """Whether the first update on a rollout follows the gradient of the expected reward, and if not, what turns it.

    "yes", "scaled" (times a known factor), or "no:" and the parts that turn it. Read off the parts: the claim of the
    advantage, token weights that depend on lengths (of the answer, or of the batch as in a mean over tokens), a
    surrogate whose slope at π = μ is not the credit, problems that are left out or come first, a selection, another
    reward. Penalties in the loss come on top in any case.
    """
    turning = []
    if recipe.reward is not UNCHANGED:
        turning.append("reward")
    if recipe.screening is not None:
        turning.append("problems")
    if recipe.plan is not None:
        turning.append("selection")
    if recipe.advantage.traits.unbiased == "no":
        turning.append("advantage")
    short = jnp.asarray([[[True, False, False], [True, True, True]]])
    weights = jnp.concatenate([recipe.objective.aggregate(where)[where] for where in (short, jnp.ones_like(short))])
    if float(jnp.max(weights) - jnp.min(weights)) > 1e-6:
        turning.append("lengths")
    if not _slope_is_credit(recipe.objective):
        turning.append("surrogate")
    if turning:
        return "no: " + ", ".join(turning)
    return recipe.advantage.traits.unbiased


def _slope_is_credit(objective: Objective) -> bool:
    """Whether d surrogate / d logp is proportional to A where the current policy is the one that sampled."""
    where = jnp.ones((1, 4, 2), bool)
    credit = jnp.asarray([[[1.0, 1.0], [-0.5, -0.5], [0.25, 0.25], [-2.0, -2.0]]])
    logp = -jnp.asarray([[[0.3, 0.9], [1.4, 0.2], [0.7, 0.7], [2.0, 0.1]]])
    fields = {name: logp for name in ("behaviour_logp", "policy_logp", "reference_logp")}

    def value(x):
        tokens = bare_tokens(where, logp=x, advantage=credit, entropy=-logp, **fields)
        correction = objective.prepare(tokens)[0]
        return jnp.sum(correction * objective.surrogate(tokens))

    ratio = jax.grad(value)(logp) / credit
    return bool(jnp.max(jnp.abs(ratio - ratio[0, 0, 0])) < 1e-5 * jnp.abs(ratio[0, 0, 0]))


def requirements(recipe: Recipe) -> list[str]:
    """What a recipe asks for beyond rewards."""
    traits, words = recipe.advantage.traits, [name for name in recipe.needs if name not in recipe.gives]
    if traits.minimum_group > 1:
        words.insert(0, f"G >= {traits.minimum_group}")
    if traits.minimum_prompts > 1:
        words.append(f"P >= {traits.minimum_prompts}")
    if recipe.reward.components > 1:
        words.append(f"{recipe.reward.components} reward components")
    if recipe.screening is not None:
        words.append(f"{recipe.screening.attempts} attempts at each problem before RL")
    plan = recipe.plan and recipe.plan(64, 8)
    if plan and plan.answers:
        words.append(f"{plan.answers} answers drawn")
    if plan and plan.prompts > 1:
        words.append(f"{plan.prompts} x the prompts drawn")
    if recipe.uses_reference:
        words.append("moving reference" if recipe.anchor else "reference")
    if recipe.companion is not None:
        words.append("a second network")
    return words
