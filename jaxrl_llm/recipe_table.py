"""The table of recipes and what one of them is made of, for the command line and the README."""

import functools
import inspect

from rich.console import Group
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from jaxrl_llm import recipes, spec
from jaxrl_llm.recipes._base import Facts, facts, requirements, unbiased

COLUMNS = ("name", "paper", "formula", "unbiased?", "needs", "verified how")


@functools.cache
def rows() -> tuple[Facts, ...]:
    """One row a recipe, in alphabetical order. It takes seconds: the slope of every surrogate is looked at."""
    return tuple(facts(function) for _, function in sorted(spec.public_functions(recipes).items()))


def table(width: int) -> Table:
    """All recipes, for a terminal: a column for each fact where there is room for them, else a line for each."""
    if width < 150:
        shown = Table(title="Recipes", show_lines=True, show_header=False)
        for row in rows():
            known = Table(show_header=False, box=None, padding=(0, 1, 0, 0))
            for name, value in zip(COLUMNS[1:], row[1:], strict=True):
                known.add_row(Text(name, style="dim"), Text(value))
            shown.add_row(Group(Text(row.name, style="bold"), known))
        return shown
    shown = Table(*COLUMNS, title="Recipes", show_lines=True, header_style="bold")
    shown.columns[0].no_wrap = True
    for row in rows():
        shown.add_row(Text(row.name, style="bold"), *map(Text, row[1:]))
    return shown


def markdown() -> str:
    """All recipes, for the README."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows():
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append("| " + " | ".join([f"`{cells[0]}`", *cells[1:]]) + " |")
    return "\n".join(lines)


def composition(text: str) -> Group:
    """One recipe: its docstring, its facts with these arguments, and the function that composes it.

    Raises SpecError for a name, key or value that does not exist.
    """
    recipe = spec.build(recipes, text, "recipe")
    function = spec.public_functions(recipes)[text.split(",", maxsplit=1)[0]]
    doc, body = inspect.cleandoc(function.__doc__ or ""), inspect.getsource(function)
    body = body.replace(f'    """{function.__doc__}"""\n', "")
    known = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in (
        ("spelling", spec.signature(function.__name__, function)),
        ("here", recipe.spec),
        ("unbiased?", unbiased(recipe)),
        ("needs", ", ".join(requirements(recipe)) or "-"),
    ):
        known.add_row(Text(name, style="bold"), Text(value))
    return Group(Text(doc), Rule(), known, Rule(), Syntax(body, "python", background_color="default"))
