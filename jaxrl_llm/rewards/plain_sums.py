"""Numbers and sums of numbers for sympy, whose own reader of texts evaluates them as Python.

sympy and the libraries on top of it read even "2" that way. Graders see a model's text, so they `install` this first.
"""

import ast
import functools
import operator
import re
import sys
from collections.abc import Callable
from typing import Any

READER = "parse_" + "expr"
FILE = "<sum>"
"""What audit hooks see as the file of a text that is read here, of which a syntax tree is made and never code."""

LONGEST = 2000
"""Characters of the longest sum."""

INTEGER = re.compile(r"[-+]?(?:0+|[1-9][0-9]*)")
DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?")

Operations = dict[type, Callable[[Any, Any], Any]]
WORKED_OUT: Operations = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def install() -> None:
    """Have sympy, and every library that is loaded, read texts with `plain_sum`. For good, in this process."""
    import sympy.parsing.sympy_parser as parser
    import sympy.physics.units  # noqa: F401 (its names are made by the reader that is about to go)

    evaluating, count = getattr(parser, READER), 0
    for module in list(sys.modules.values()):
        if vars(module).get(READER) is evaluating:
            setattr(module, READER, plain_sum)
            count += 1
    if not count:
        raise ValueError("this version of sympy does not read texts where it is expected to")


def plain_sum(text: str, *_: Any, evaluate: bool = True, **__: Any) -> Any:
    """The sympy expression of a number, or of numbers under + - * / // ** and brackets.

    With `evaluate=False` nothing is worked out. Raises SyntaxError for any other text, names and calls included.
    """
    import sympy

    text = text.strip()
    if INTEGER.fullmatch(text):
        return sympy.Integer(text)
    if DECIMAL.fullmatch(text):
        return sympy.Float(text)
    if len(text) > LONGEST:
        raise SyntaxError("the sum is too long")
    operations = {ast.FloorDiv: operator.floordiv, **(WORKED_OUT if evaluate else _unevaluated())}

    def build(node: ast.AST) -> Any:
        match node:
            case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
                written = ast.get_source_segment(text, node)  # the digits of a float beyond the sixteenth count too
                return sympy.Integer(node.value) if isinstance(node.value, int) else sympy.Float(written)
            case ast.UnaryOp(op=ast.USub()):
                return -build(node.operand)
            case ast.UnaryOp(op=ast.UAdd()):
                return build(node.operand)
            case ast.BinOp() if type(node.op) in operations:
                return operations[type(node.op)](build(node.left), build(node.right))
        raise SyntaxError(f"a sum of numbers holds no {type(node).__name__}")

    try:
        return build(ast.parse(text, FILE, "eval").body)
    except (ValueError, ArithmeticError, RecursionError, MemoryError) as error:
        raise SyntaxError(f"{error} in a sum") from error


def _unevaluated() -> Operations:
    """The operations as sympy writes them when it works nothing out."""
    import sympy

    def chain(kind: type) -> Callable[[Any, Any], Any]:
        return lambda a, b: kind(*[x for y in (a, b) for x in (y.args if isinstance(y, kind) else [y])], evaluate=False)

    plus, times, power = chain(sympy.Add), chain(sympy.Mul), functools.partial(sympy.Pow, evaluate=False)
    minus_one = sympy.Integer(-1)
    return {
        ast.Add: plus,
        ast.Sub: lambda a, b: plus(a, times(minus_one, b)),
        ast.Mult: times,
        ast.Div: lambda a, b: times(a, power(b, minus_one)),
        ast.Pow: power,
    }
