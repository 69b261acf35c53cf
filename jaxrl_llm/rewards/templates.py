"""Templates in Jinja: filled in by a sandbox that keeps them from Python's attributes, with nothing that bounds them.

Imported by path from `worker.py`, without the package: a template that comes from elsewhere is compiled and filled in
by a process that can be killed (see `chat`), since both can take all time and memory: constants are folded when it is
compiled, and filters make texts of any length.
"""

import datetime
import functools
import json
import resource
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment


def template(options: dict[str, Any]) -> Callable[[dict[str, Any]], str]:
    """The text of item["source"] with item["variables"].

    Options: `memory`, bytes of address space of this process and all that it forks; `longest`, characters of a text.
    Raises what Jinja raises, MemoryError, and ValueError for a longer text.
    """
    resource.setrlimit(resource.RLIMIT_AS, (options["memory"], options["memory"]))

    def serve(item: dict[str, Any]) -> str:
        text = fill(item["source"], item["variables"])
        if len(text) > options["longest"]:
            raise ValueError(f"it writes {len(text)} characters, more than {options['longest']}")
        return text

    return serve


def fill(source: str, variables: Mapping[str, Any]) -> str:
    """The text of a template."""
    return _compiled(source).render(**variables)


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
