"""JSON of an untrusted answer: bounded in size and depth, without NaN or Infinity."""

import json
from typing import Any

SIZE = 1 << 16
"""Characters of the longest text that is read at all."""

DEPTH = 32
"""Deepest nesting of lists and objects; below it no step that recurses can exhaust the stack."""


class UnreadableError(ValueError):
    """The text is no JSON, or more of it than is read."""


def read(text: str, size: int = SIZE) -> Any:
    """The value that the text spells. Raises UnreadableError for anything else, whatever the text."""
    if len(text) > size:
        raise UnreadableError(f"{len(text)} characters, of at most {size}")
    if depth(text) > DEPTH:
        raise UnreadableError(f"nested deeper than {DEPTH}")
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(str(error)[:200]) from None


def depth(text: str) -> int:
    """Deepest nesting of brackets outside of strings."""
    level = deepest = 0
    inside = escaped = False
    for letter in text:
        if inside:
            inside = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            inside = True
        elif letter in "[{":
            level += 1
            deepest = max(deepest, level)
        elif letter in "]}":
            level -= 1
    return deepest


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, and true is not 1."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def _refuse(constant: str) -> None:
    raise UnreadableError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if value in (float("inf"), float("-inf")):
        raise UnreadableError("a number too large")
    return value
