"""Every advantage transform of the library, found by listing its folders, with arguments to build it from."""

import importlib
import pkgutil

from jaxrl_llm import advantages, recipes
from jaxrl_llm.advantages import group_std

# Instances of the functions that have arguments without a default. The name of an instance starts with the function's.
INSTANCES = {
    "group_std(ddof=1, eps=1e-4)": lambda: group_std(ddof=1, eps=1e-4),
    "group_std(ddof=0, eps=1e-8)": lambda: group_std(ddof=0, eps=1e-8),
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


def singles() -> dict[str, object]:
    """Every transform found, built."""
    built = {}
    for name, function in sorted(found().items()):
        built |= build(name, function)
    return built


def of_recipes() -> dict[str, object]:
    """The transform of every recipe at its defaults, composed and `per_token`."""
    return {f"recipe {name}": getattr(recipes, name)().advantage for name in recipes.__all__}


SINGLES = singles()
MEMBERS = SINGLES | of_recipes()
