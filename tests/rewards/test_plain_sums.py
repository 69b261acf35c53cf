"""Sums are read as sympy's own reader reads them, and nothing but sums is."""

import random

import pytest
import sympy
from sympy.parsing.sympy_parser import parse_expr as evaluating

from jaxrl_llm.rewards.plain_sums import plain_sum

READS_ITSELF = evaluating is not plain_sum
PIECES = ("1", "2", "42", "007", "3.5", ".5", "2.", "1e3", *"+-*/()", " + ", "**2", "(1+2)", "0.1000000000000000000001")


def read(reader, text, evaluate):
    """What it makes of a text; None where it refuses. What is no expression, such as (), counts as refused."""
    try:
        found = reader(text, evaluate=evaluate)
    except Exception:
        return None
    return found if isinstance(found, sympy.Basic) and not found.has(sympy.Tuple) else None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(4))
def test_sums_are_what_sympy_makes_of_them(seed):
    assert READS_ITSELF, "sympy's reader has been replaced before this file was loaded"
    rng, some = random.Random(seed), 0
    for _ in range(500):
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 6)))
        for evaluate in (True, False):
            theirs, ours = read(evaluating, text, evaluate), read(plain_sum, text, evaluate)
            assert (theirs is None) == (ours is None), text
            if ours is not None:
                some += 1
                assert theirs.equals(ours) or theirs.doit() == ours.doit(), (text, theirs, ours)
    assert some > 150


@pytest.mark.parametrize(
    "text",
    [
        *(
            "x",
            "pi",
            "E",
            "__import__('os')",
            "().__class__",
            "1 if 1 else 2",
            "[1]",
            "{1}",
            "f(1)",
            "1(2)",
            "'1'",
            "1j",
        ),
        *("lambda: 1", "1 and 2", "1 < 2", "~1", "not 1", "1 % 2", "1 @ 2", "1 << 2", "True", "...", "", "1;2", "1\n2"),
        *("1" * 5000 + "+1", "(" * 900 + "1" + ")" * 900, "1+" * 900 + "1" * 200, "1//0", "\x001"),
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(SyntaxError):
        plain_sum(text, evaluate=False)
