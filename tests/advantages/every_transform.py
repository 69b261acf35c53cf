"""Every advantage transform of the library, found by listing its folders, with arguments to build it from."""

import importlib
import pkgutil

import instances_baselines
import instances_tokens
import instances_weights

from jaxrl_llm import advantages, recipes
from jaxrl_llm.advantages import AdvantageTransform, at_end, group_std, no_baseline, per_token

# Instances of the functions that have arguments without a default. The name of an instance starts with the function's.
INSTANCES = {
    "group_std(ddof=1, eps=1e-4)": lambda: group_std(ddof=1, eps=1e-4),
    "group_std(ddof=0, eps=1e-8)": lambda: group_std(ddof=0, eps=1e-8),
    **instances_baselines.INSTANCES,
    **instances_tokens.INSTANCES,
    **instances_weights.INSTANCES,
}


def found() -> dict[str, object]:
    """name -> function, for each module in the rooms of `jaxrl_llm.advantages` that does not start with "_"."""
    functions = {}
    for module in pkgutil.walk_packages(advantages.__path__, f"{advantages.__name__}."):
        name = module.name.rpartition(".")[2]
        if not module.ispkg and not name.startswith("_"):
            functions[name] = getattr(importlib.import_module(module.name), name, None)
    return functions


def build(name: str, function) -> dict[str, object]:
    """Instances of one function: those of the table, or the one without arguments."""
    listed = {key: make() for key, make in INSTANCES.items() if key.partition("(")[0] == name}
    if listed:
        return listed
    try:
        return {name: function()}
    except TypeError as error:
        raise LookupError(f"{name} cannot be built without arguments: give it a row in INSTANCES ({error})") from error


def of_tokens(name: str) -> bool:
    """Whether an instance is one of the room tokens/."""
    return ".advantages.tokens." in getattr(found()[name.partition("(")[0]], "__module__", "")


# Those of the room tokens/ that spread token rewards take a reward at the end; the others weigh or compare credits.
OF_REWARDS = {"reward_to_go", "dense_rewards", "gae", "span_credit", "prime"}


def of_answers(transform: AdvantageTransform, name: str) -> AdvantageTransform:
    """A transform of tokens [P G T] as one that takes rewards [P G]; its claims are those of the transform alone."""
    lifted = (at_end if name in OF_REWARDS else per_token)(no_baseline())

    def update(reward, state, rollout):
        tokens, _ = lifted.update(reward, (), rollout)
        return transform.update(tokens, state, rollout)

    return AdvantageTransform(transform.init, update, transform.traits)


def singles() -> dict[str, object]:
    """Every transform found, built; those of the room tokens/ made to take rewards."""
    built = {}
    for name, function in sorted(found().items()):
        made = build(name, function)
        built |= {key: of_answers(made[key], name) if of_tokens(name) else made[key] for key in made}
    return built


# Compositions that differ in kind. What a recipe is made of is here link by link, and `tests/recipes` has them all.
RECIPES = (*("bnpo", "grpo", "gdpo_as_in_trl", "reinforce_pp", "otb", "prime", "oreal", "gpg"),)


def of_recipes() -> dict[str, object]:
    """The transforms of recipes at their defaults, composed and `per_token`."""
    return {f"recipe {name}": getattr(recipes, name)().advantage for name in RECIPES}


SINGLES = singles()
MEMBERS = SINGLES | of_recipes()

# One member for each set of claims that composition looks at.
KINDS = list(
    {
        (t.traits.unbiased, t.traits.centred, t.traits.keeps_zero, t.traits.minimum_group > 1): name
        for name, t in SINGLES.items()
        if not of_tokens(name) and not t.traits.needs
    }.values()
)
