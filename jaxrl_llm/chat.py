"""Chat templates: Jinja in a sandbox, because they come with a model from elsewhere."""

import datetime
import functools
import json
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment


def render(source: str, **variables: Any) -> str:
    """The text of a template. Raises ValueError, which says why, for one that fails or reaches for what it may not."""
    try:
        return _compiled(source).render(**variables)
    except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
        raise ValueError(f"the chat template fails: {type(error).__name__}: {error}") from error


@functools.lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    sandbox.filters["tojson"] = lambda value, **how: json.dumps(value, ensure_ascii=False, **how)  # not for HTML here
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.datetime.now().strftime(form)}
    return sandbox.from_string(source)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)
