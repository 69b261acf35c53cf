"""A pool of grader processes that can be killed, each speaking JSON lines with `worker.py` over its pipes."""

import contextlib
import json
import math
import os
import pathlib
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxrl_llm.rewards import worker
from jaxrl_llm.spec import nearest

SCRIPT = pathlib.Path(worker.__file__)
START = 120.0
"""Seconds that a worker may take to import its libraries."""

ANSWER = 100_000
"""Characters of the longest answer that is graded; a longer one is wrong."""

INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH")
"""What a worker sees of the environment. Tokens and passwords stay out: some libraries evaluate what an answer says."""

SETTINGS = {
    "PYTHONHASHSEED": "0",  # some reasoning-gym datasets are another dataset under another hash seed
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class _NoGradeError(Exception):
    """An item without a value. `kind` is the counter that it belongs to."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class _Worker:
    """One process, started anew after each kill."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.order = order
        self.lock = threading.Lock()
        self.start()

    def start(self) -> None:
        """Spawn the process; its libraries load while the parent goes on."""
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self.process = subprocess.Popen(  # noqa: S603 (this interpreter and a file of ours)
            [sys.executable, "-P", str(SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**environment, **SETTINGS},
            start_new_session=True,  # a group of its own, so that what it starts dies with it
        )
        for pipe in (self.process.stdin, self.process.stdout):
            os.set_blocking(pipe.fileno(), False)
        self.ready = False

    def ask(self, item: Mapping[str, Any], seconds: float) -> Any:
        """The value of an item. Raises _NoGradeError where there is none, with a new process where this one is lost."""
        if not self.ready:
            self._await_start()
        try:
            return self._exchange(item, seconds)
        except TimeoutError as error:
            self._restart()
            raise _NoGradeError("timeouts", f"no grade within {seconds} s") from error
        except (EOFError, OSError, json.JSONDecodeError) as error:
            self._restart()
            raise _NoGradeError("crashes", f"the grader process died: {error}") from error

    def _await_start(self) -> None:
        try:
            self._exchange(self.order, START)
        except _NoGradeError as refusal:
            raise ValueError(f"{self.order['grader']}: {refusal}") from refusal
        except (EOFError, OSError, json.JSONDecodeError) as error:
            raise RuntimeError(f"a process for grader {self.order['grader']!r} does not start: {error}") from error
        self.ready = True

    def _restart(self) -> None:
        with self.lock:
            self.kill()
            self.start()

    def _exchange(self, message: Mapping[str, Any], seconds: float) -> Any:
        """Send one line and read one, within the time, though the other side may neither read nor write."""
        deadline = time.monotonic() + seconds
        unsent = memoryview(json.dumps(message).encode() + b"\n")
        source, sink = self.process.stdout.fileno(), self.process.stdin.fileno()
        poll, received = select.poll(), bytearray()
        poll.register(source, select.POLLIN)
        poll.register(sink, select.POLLOUT)
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no reply within {seconds} s")
            for descriptor, _ in poll.poll(math.ceil(left * 1000)):
                if descriptor == sink:
                    unsent = unsent[os.write(sink, unsent) :]
                    if not unsent:
                        poll.unregister(sink)
                    continue
                part = os.read(source, 1 << 16)
                received += part
                if not part or len(received) > worker.LINE:
                    raise EOFError("it closed its pipe" if not part else "it never ended its line")
        reply = json.loads(received)
        if "error" in reply:
            raise _NoGradeError("errors", reply["error"])
        return reply.get("value")

    def stop(self) -> None:
        """End the process and all that it started, from any thread; whoever waits for its reply finds out."""
        with self.lock:
            self._signal()

    def kill(self) -> None:
        """End the process and all that it started, and leave no zombie and no open pipe."""
        self._signal()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def _signal(self) -> None:
        if self.process.returncode is None:  # not waited for: its number cannot be another process's yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)


def _kill_all(workers: Sequence[_Worker]) -> None:
    for one in workers:
        one.kill()


class GraderPool:
    """`workers` processes that grade with `worker.GRADERS[grader](options)`, each answer within `seconds`.

    An answer that cannot be graded, because the grader overran, died or raised, has no grade: None, never a zero.
    `counts` says how often: timeouts, crashes, errors; `oversized` counts answers of more than 100,000 characters,
    which are wrong (0) without being read. `last_error` is the latest reason.

    Raises ValueError for an unknown grader, and for options that the grader refuses at the first call.
    """

    def __init__(self, grader: str, options: Mapping[str, Any], workers: int = 2, seconds: float = 5.0) -> None:
        if grader not in worker.GRADERS:
            raise ValueError(f"there is no grader {grader!r}{nearest(grader, sorted(worker.GRADERS))}")
        if workers < 1 or not 0 < seconds < 86_400:
            raise ValueError(f"a pool needs workers and seconds, both above 0, not {workers} and {seconds}")
        self.seconds = seconds
        self.counts: Counter[str] = Counter(timeouts=0, crashes=0, errors=0, oversized=0)
        self.last_error = ""
        order = {"grader": grader, "options": dict(options)}
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grader")
        # A worker dies with the thread that started it (see `worker.die_with_parent`): these live as long as the pool.
        self._workers = list(self._threads.map(lambda _: _Worker(order), range(workers)))
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for one in self._workers:
            self._idle.put(one)
        self._finalizer = weakref.finalize(self, _kill_all, self._workers)

    def grade(self, items: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """The grade of each item, in order. An item is {"answer": text, ...} with what the grader asks for besides."""
        long = [len(item["answer"]) > ANSWER for item in items]
        self.counts["oversized"] += sum(long)
        values = iter(self.ask([item for item, is_long in zip(items, long, strict=True) if not is_long]))
        return [0.0 if is_long else next(values) for is_long in long]

    def ask(self, items: Sequence[Mapping[str, Any]], seconds: float | None = None) -> list[Any]:
        """What the grader says of each item, in order; None where it overran, died or raised."""
        if not self._finalizer.alive:
            raise ValueError("the pool of graders is closed")
        values = []
        for value, failure in self._threads.map(lambda item: self._ask(item, seconds or self.seconds), items):
            if failure is not None:
                self.counts[failure.kind] += 1
                self.last_error = str(failure)
            values.append(value)
        return values

    def _ask(self, item: Mapping[str, Any], seconds: float) -> tuple[Any, _NoGradeError | None]:
        one = self._idle.get()
        try:
            return one.ask(item, seconds), None
        except _NoGradeError as failure:
            return None, failure
        finally:
            self._idle.put(one)

    def close(self) -> None:
        """Kill the processes. A closed pool grades nothing; closing it again does nothing."""
        for one in self._workers:
            one.stop()
        self._threads.shutdown(cancel_futures=True)
        self._finalizer()

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
