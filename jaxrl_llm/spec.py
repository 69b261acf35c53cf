"""How the command line spells a function call: `name`, `name:argument`, `name:argument,key=value,key=value`.

The name is looked up among the public functions of a module (its `__all__`), and the values are read by the types of
the function's own signature, so a new task or recipe is a new function and nothing else.
"""

import difflib
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any


class SpecError(ValueError):
    """A name, key or value that does not exist; the message says which one and what is nearest."""


def nearest(word: str, choices: list[str]) -> str:
    """`; did you mean 'x'?` where something is near, and the list of choices in any case."""
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (choices: {', '.join(choices)})"


def public_functions(module: types.ModuleType) -> dict[str, Any]:
    """The functions that a module exports, by name."""
    return {name: getattr(module, name) for name in module.__all__ if inspect.isfunction(getattr(module, name))}


def build(module: types.ModuleType, text: str, kind: str) -> Any:
    """Call the function that `text` spells. `kind` names the field in errors.

    Raises SpecError for an unknown name or key, a value of the wrong type, or what the function itself refuses.
    """
    head, *pairs = text.split(",")
    name, colon, argument = head.partition(":")
    functions = public_functions(module)
    if name not in functions:
        raise SpecError(f"{kind}: there is no {name!r}{nearest(name, sorted(functions))}")
    parameters = dict(inspect.signature(functions[name]).parameters)
    positional = [p.name for p in parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    if not bool(positional) == bool(colon) == bool(argument):
        form = f"{name}:{positional[0].upper()}" if positional else name
        raise SpecError(f"{kind}: write {form!r}, not {head!r}")
    arguments = {positional[0]: argument} if positional else {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise SpecError(f"{kind}: {pair!r} in {text!r} is not of the form key=value")
        extra = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        if key not in parameters and not extra:
            raise SpecError(f"{kind}: {name} has no argument {key!r}{nearest(key, sorted(parameters))}")
        if key in arguments:
            raise SpecError(f"{kind}: {key!r} is given twice in {text!r}")
        arguments[key] = _read(
            value, parameters[key].annotation if key in parameters else None, f"{kind}: {name}: {key}"
        )
    try:
        return functions[name](**arguments)
    except (ValueError, TypeError, OSError) as error:
        raise SpecError(f"{kind}: {text}: {error}") from error


def with_default(module: types.ModuleType, text: str, key: str, value: str) -> str:
    """The text with `key=value` added, where its function takes the key and the text does not give it.

    A text that spells no function is returned as it is: `build` says what is wrong with it.
    """
    head, *pairs = text.split(",")
    function = public_functions(module).get(head.partition(":")[0])
    if function is None or key not in inspect.signature(function).parameters:
        return text
    given = any(pair.partition("=")[0] == key for pair in pairs)
    return text if given else f"{text},{key}={value}"


def _read(value: str, annotation: Any, where: str) -> Any:
    if value in ("true", "false", "True", "False") and annotation in (bool, None):
        return value.lower() == "true"
    for kind in (int, float):
        if annotation in (kind, None) or annotation == kind | None:
            try:
                return kind(value)
            except ValueError:
                continue
    if annotation in (str, None) or annotation == str | None:
        return value
    raise SpecError(f"{where} takes {getattr(annotation, '__name__', annotation)}, not {value!r}")


def signature(name: str, function: Any) -> str:
    """How a function is spelled, with its defaults: `addition,digits=2,terms=2`."""
    parameters = inspect.signature(function).parameters.values()
    needed = "".join(
        f":{p.name.upper()}" for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD
    )
    return ",".join([name + needed, *(f"{p.name}={p.default}" for p in parameters if p.default is not p.empty)])


def spelled(function: Callable[..., Any], argument: str, values: Mapping[str, Any]) -> str:
    """`name:argument,key=value,...` as `spec.build` reads it, without the values that are the function's own defaults.

    Raises ValueError for a value that cannot be written down so: text with a comma, lists, text that looks like a
    number where the function does not say that it takes text.
    """
    parameters = inspect.signature(function).parameters
    words = [f"{function.__name__}:{argument}"]
    for key, value in sorted(values.items()):
        known = key in parameters
        if known and value == parameters[key].default:
            continue
        if not isinstance(value, str | int | float) or (isinstance(value, str) and not known and _looks_typed(value)):
            raise ValueError(f"{key} takes true, false, a number or a word, not {value!r}")
        words.append(f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    for word in words:
        if "," in word:
            raise ValueError(f"{word!r} holds a comma, and could not be given on a command line")
    return ",".join(words)


def _looks_typed(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("true", "false", "True", "False")
    return True
