"""Signs of life of a training process, for a supervisor outside of it.

A file holds the latest one, as JSON:
{"stage": "step", "step": 7, "count": 31, "midway": 4, "usual": 0.8, "begun": true}.

    stage  what has begun: a kind of work that takes about as long each time
    count  rises by one with each sign
    midway how many of these came in the midst of a stage, from work that may take long and has a limit of its own
    usual  median of how long this stage has taken so far, s; null: it has not come to its end yet, and may compile
    begun  whether the folder of the run is there, so that a new process can resume it
"""

import collections
import contextlib
import ctypes
import faulthandler
import json
import os
import pathlib
import signal
import statistics
import sys
import threading
import time
from typing import Any

from jaxrl_llm.writing import writing

EVERY = 0.25
"""Seconds between two signs in the midst of a stage, at least: whoever gives them does not count its calls."""


class Heart:
    """Writes signs of life to a file. Safe to use from several threads."""

    def __init__(self, path: pathlib.Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.count, self.midway, self.begun = path, 0, 0, False
        self.stage, self.step, self.since, self.last = "", 0, time.monotonic(), time.monotonic()
        self.lock = threading.Lock()
        self.durations: dict[str, collections.deque] = collections.defaultdict(lambda: collections.deque(maxlen=99))

    def beat(self, stage: str, step: int) -> None:
        """The stage before has ended, and this one begins."""
        with self.lock:
            now = time.monotonic()
            if self.stage:
                self.durations[self.stage].append(now - self.since)
            self.stage, self.step, self.since = stage, step, now
            self._write(now)

    def go_on(self) -> None:
        """The stage is not over, and not stuck."""
        with self.lock:
            now = time.monotonic()
            if now - self.last >= EVERY:
                self.midway += 1
                with contextlib.suppress(OSError):  # the thread that begins the next stage says so
                    self._write(now)

    def _write(self, now: float) -> None:
        self.count, self.last = self.count + 1, now
        usual = statistics.median(self.durations[self.stage]) if self.durations[self.stage] else None
        sign = {"stage": self.stage, "step": self.step, "count": self.count, "midway": self.midway}
        sign |= {"usual": usual, "begun": self.begun}
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


def go_on() -> None:
    """The stage goes on. For waits that have a limit of their own, so that what is stuck still falls silent; any number
    of times, from any thread."""
    for heart in _hearts:
        heart.go_on()


def read(path: pathlib.Path) -> dict[str, Any]:
    """The latest sign; {} before the first one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
