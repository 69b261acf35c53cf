"""Signs of life of a training process, for a supervisor outside of it.

A file holds the latest one, as JSON: {"stage": "step", "step": 7, "count": 31, "begun": true}. `count` rises by one
each time, and `begun` says that the folder of the run is there, so that a new process can resume it. A stage is a kind of
work that takes about as long each time.
"""

import faulthandler
import json
import os
import pathlib
import signal
from typing import Any

_state: dict[str, Any] = {"path": None, "count": 0, "begun": False}


def start(path: pathlib.Path) -> None:
    """From now on `beat` writes this file, and SIGUSR1 prints the stack of every thread to stderr, also while the
    process waits inside a collective."""
    path.parent.mkdir(parents=True, exist_ok=True)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _state.update(path=path, count=0, begun=False)
    beat("start")


def begun() -> None:
    """The run has its folder: from now on it can be resumed."""
    _state["begun"] = True
    beat("start")


def beat(stage: str, step: int = 0) -> None:
    """A stage begins. Does nothing in a process that nobody watches."""
    path = _state["path"]
    if path is None:
        return
    _state["count"] += 1
    draft = path.with_name(path.name + ".draft")
    draft.write_text(json.dumps({"stage": stage, "step": step, "count": _state["count"], "begun": _state["begun"]}))
    os.replace(draft, path)


def read(path: pathlib.Path) -> dict[str, Any]:
    """The latest sign; {} before the first one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
