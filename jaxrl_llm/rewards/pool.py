"""A pool of grader processes that can be killed, each speaking JSON lines with `worker.py`."""

import json
import math
import queue
import select
import statistics
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jaxrl_llm import heartbeat
from jaxrl_llm.rewards import worker
from jaxrl_llm.rewards.keeper import Keepers
from jaxrl_llm.spec import nearest

FIRST = 0.005
"""Seconds that an answer gets at first, at least; whoever needs more waits until all others have had theirs."""


class _NoGradeError(Exception):
    """An item without a value. `kind` is the counter that it belongs to."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class _Worker:
    """One grader, forked anew after each kill."""

    def __init__(self, keepers: Keepers) -> None:
        self.keepers, self.line = keepers, None

    def ask(self, item: Mapping[str, Any], seconds: float) -> Any:
        """The value of an item. Raises _NoGradeError where there is none, with a new process where this one is lost."""
        message = json.dumps(item).encode() + b"\n"
        if self.line is not None and self.keeper.is_lost():
            self.close()  # before the answer is given away: it has its grade from the next grader
        if self.line is None:
            self.keeper, self.pid, self.line = self.keepers.fork()
        try:
            value = self._exchange(message, seconds)
            self.keepers.graded()
            return value
        except TimeoutError as error:
            self._end()
            raise _NoGradeError("timeouts", f"no grade within {seconds:g} s") from error
        except (EOFError, OSError, json.JSONDecodeError) as error:
            self._end()
            raise _NoGradeError("crashes", f"the grader process died: {error}") from error

    def _end(self) -> None:
        self.keeper.end(self.pid)
        self.close()

    def close(self) -> None:
        """Let go of the line, if there is one."""
        if self.line is not None:
            self.line.close()
        self.line = None

    def _exchange(self, message: bytes, seconds: float) -> Any:
        """Send one line and read one, within the time, though the other side may neither read nor write."""
        deadline = time.monotonic() + seconds
        unsent, received, poll = memoryview(message), bytearray(), select.poll()
        poll.register(self.line, select.POLLIN | select.POLLOUT)
        while not received.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no reply within {seconds} s")
            heartbeat.go_on()  # a batch of answers that hang takes minutes, and each of them has its limit
            for _, event in poll.poll(math.ceil(min(left, heartbeat.EVERY) * 1000)):
                if event & select.POLLOUT and unsent:
                    unsent = unsent[self.line.send(unsent) :]
                    if not unsent:
                        poll.modify(self.line, select.POLLIN)
                if event & ~select.POLLOUT:
                    part = self.line.recv(1 << 16)
                    received += part
                    if not part or len(received) > worker.LINE:
                        raise EOFError("it closed its line" if not part else "it never ended its line")
        reply = json.loads(received)
        if "error" in reply:
            raise _NoGradeError("errors", reply["error"])
        return reply.get("value")


def _end_all(keepers: Keepers, workers: Sequence[_Worker]) -> None:
    keepers.kill()
    for one in workers:
        one.close()


class GraderPool:
    """`workers` processes that grade with `worker.GRADERS[grader](options)`, each answer within `seconds`.

    An answer that cannot be graded, because the grader overran, died or raised, has no grade: None, never a zero.
    `counts` says how often: timeouts, crashes, errors; `oversized` counts answers of more than 100,000 characters,
    which are wrong (0) without being read. `last_error` is the latest reason. Where the keeper of the graders is lost,
    answers in flight have no grade, another takes its place, and that counts as one crash more.

    Raises ValueError for an unknown grader, and for options that the grader refuses at the first call; RuntimeError,
    when it grades, where the grader does not start.
    """

    def __init__(self, grader: str, options: Mapping[str, Any], workers: int = 2, seconds: float = 5.0) -> None:
        if grader not in worker.GRADERS:
            raise ValueError(f"there is no grader {grader!r}{nearest(grader, sorted(worker.GRADERS))}")
        if workers < 1 or not 0 < seconds < 86_400:
            raise ValueError(f"a pool needs workers and seconds, both above 0, not {workers} and {seconds}")
        self.seconds = seconds
        self.counts: Counter[str] = Counter(timeouts=0, crashes=0, errors=0, oversized=0)
        self.last_error = ""
        self._usual: deque[float] = deque(maxlen=255)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="grader")
        # A keeper dies with the thread that started it (see `worker.die_with_parent`): these live as long as the pool.
        self._keepers = self._threads.submit(Keepers, {"grader": grader, "options": dict(options)}).result()
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        every = [_Worker(self._keepers) for _ in range(workers)]
        for one in every:
            self._idle.put(one)
        self._finalizer = weakref.finalize(self, _end_all, self._keepers, every)

    def grade(self, items: Sequence[Mapping[str, Any]]) -> list[float | None]:
        """The grade of each item, in order. An item is {"answer": text, ...} with what the grader asks for besides."""
        long = [len(item["answer"]) > worker.ANSWER for item in items]
        self.counts["oversized"] += sum(long)
        values = iter(self._patiently([item for item, is_long in zip(items, long, strict=True) if not is_long]))
        return [0.0 if is_long else next(values) for is_long in long]

    def ask(self, items: Sequence[Mapping[str, Any]], seconds: float | None = None) -> list[Any]:
        """What the grader says of each item, in order; None where it overran, died or raised."""
        return [self._noted(*outcome) for outcome in self._outcomes(items, seconds or self.seconds)]

    def _patiently(self, items: Sequence[Mapping[str, Any]]) -> list[Any]:
        """The same in rounds, each with ten times the time of the one before: an answer that hangs keeps the others
        waiting for little longer than they take themselves, and is thrown out `seconds` after they are done."""
        values, late = [None] * len(items), list(range(len(items)))
        seconds = max(FIRST, 2 * statistics.median(self._usual or [0.0]))
        while late:
            last = seconds >= self.seconds
            outcomes = self._outcomes([items[i] for i in late], self.seconds if last else seconds)
            overran = [not last and failure is not None and failure.kind == "timeouts" for _, failure in outcomes]
            for i, outcome, again in zip(late, outcomes, overran, strict=True):
                values[i] = None if again else self._noted(*outcome)
            late, seconds = [i for i, again in zip(late, overran, strict=True) if again], 10 * seconds
        return values

    def _outcomes(self, items: Sequence[Mapping[str, Any]], seconds: float) -> list[tuple[Any, _NoGradeError | None]]:
        if not self._finalizer.alive:
            raise ValueError("the pool of graders is closed")
        outcomes = list(self._threads.map(lambda item: self._ask(item, seconds), items))
        self.counts["crashes"] += self._keepers.lost()
        return outcomes

    def _noted(self, value: Any, failure: _NoGradeError | None) -> Any:
        if failure is not None:
            self.counts[failure.kind] += 1
            self.last_error = str(failure)
        return value

    def _ask(self, item: Mapping[str, Any], seconds: float) -> tuple[Any, _NoGradeError | None]:
        one = self._idle.get()
        began = time.monotonic()
        try:
            value = one.ask(item, seconds)
            self._usual.append(time.monotonic() - began)
            return value, None
        except _NoGradeError as failure:
            return None, failure
        finally:
            self._idle.put(one)

    def close(self) -> None:
        """Kill the processes. A closed pool grades nothing; closing it again does nothing."""
        self._keepers.kill()  # whoever waits for a grade finds out
        self._threads.shutdown(cancel_futures=True)
        self._finalizer()

    def __enter__(self) -> "GraderPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
