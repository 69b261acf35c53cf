"""Fields of a JSON object, checked."""

from collections.abc import Mapping
from typing import Any


def number(fields: Mapping[str, Any], name: str, default: Any = None, *, kind: type = int) -> Any:
    """A positive whole number, or with kind=float any positive number; `default` where it is null or absent."""
    value = fields.get(name)
    value = default if value is None else value
    if value is None:
        raise ValueError(f"{name} is missing")
    allowed = (int, float) if kind is float else (int,)
    most = 2**40 if kind is float else 2**31  # sizes of arrays, which are indexed by 32 bits
    if isinstance(value, bool) or not isinstance(value, allowed) or not 0 < value < most:
        called = "positive number" if kind is float else "positive whole number"
        above = f" below {most}" if isinstance(value, int) and value >= most else ""
        raise ValueError(f"{name} must be a {called}{above}, not {value!r}")
    return value


def flag(fields: Mapping[str, Any], name: str, default: bool) -> bool:
    """True or false."""
    value = fields.get(name)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, not {value!r}")
    return value


def token(fields: Mapping[str, Any], name: str) -> int | None:
    """A token id or None."""
    ids = tokens(fields, name)
    if len(ids) > 1:
        raise ValueError(f"{name} must be one token id, not {list(ids)}")
    return ids[0] if ids else None


def tokens(fields: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Token ids, of one or of a list."""
    value = fields.get(name)
    value = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in value):
        raise ValueError(f"{name} must be a token id or a list of them, not {fields[name]!r}")
    return tuple(value)


def text(fields: Mapping[str, Any], name: str, default: str | None = None) -> str | None:
    """A string, or the default where it is null or absent."""
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} must be a string, not {value!r}")
    return default if value is None else value
