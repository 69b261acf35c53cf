"""Signs of life of a training process, for a supervisor outside of it.

A file holds the latest one, as JSON: {"stage": "step", "step": 7, "count": 31, "usual": 0.8, "begun": true}.

    stage  what has begun: a kind of work that takes about as long each time
    count  rises by one with each sign
    usual  median of how long this stage has taken so far, s; null: it has not come to its end yet, and may compile
    begun  whether the folder of the run is there, so that a new process can resume it
"""

import collections
import ctypes
import faulthandler
import json
import os
import pathlib
import signal
import statistics
import sys
import time
from typing import Any

from jaxrl_llm.writing import writing


class Heart:
    """Writes signs of life to a file."""

    def __init__(self, path: pathlib.Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.count, self.begun = path, 0, False
        self.stage, self.since = "", time.monotonic()
        self.durations: dict[str, collections.deque] = collections.defaultdict(lambda: collections.deque(maxlen=99))

    def beat(self, stage: str, step: int) -> None:
        """The stage before has ended, and this one begins."""
        now = time.monotonic()
        if self.stage:
            self.durations[self.stage].append(now - self.since)
        self.count, self.stage, self.since = self.count + 1, stage, now
        usual = statistics.median(self.durations[stage]) if self.durations[stage] else None
        sign = {"stage": stage, "step": step, "count": self.count, "usual": usual, "begun": self.begun}
        draft = self.path.with_name(self.path.name + ".draft")
        with writing(self.path):
            draft.write_text(json.dumps(sign), encoding="utf-8")
            os.replace(draft, self.path)


_hearts: list[Heart] = []  # of this process: one, or none where nobody watches


def start(path: pathlib.Path) -> None:
    """From now on `beat` writes this file, and SIGUSR1 prints the stack of every thread to stderr, also while the
    process waits inside a collective. When its supervisor is gone, the process saves and ends (on Linux)."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
    _hearts[:] = [Heart(path)]
    beat("start")


def begun() -> None:
    """The run has its folder: from now on it can be resumed."""
    for heart in _hearts:
        heart.begun = True
    beat("preparation")


def beat(stage: str, step: int = 0) -> None:
    """A stage begins. Does nothing in a process that nobody watches."""
    for heart in _hearts:
        heart.beat(stage, step)


def read(path: pathlib.Path) -> dict[str, Any]:
    """The latest sign; {} before the first one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
