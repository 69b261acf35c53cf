"""A supervisor outside of the training processes: starts them, watches their signs of life, restarts them together.

What is stuck cannot help itself: a process inside a collective runs no Python, and one whose peer is alive but asleep
waits for ever. So another process looks, ends all of them with SIGKILL, and lets the run go on from its checkpoint.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence

from jaxrl_llm.gang import Care, Gang, Stop


@contextlib.contextmanager
def _stoppable() -> Iterator[Stop]:
    stop = Stop()

    def request(*_):
        stop.requested = True

    before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def supervise(command: Sequence[str], care: Care) -> int:
    """Run `jaxrl-llm COMMAND` in `care.procs` processes until it is done; the exit status.

    When a process dies or stalls all of them are killed and started again, with `--resume` once there is something to
    resume, at most `max_restarts` times. Not again: a request that is wrong (2), an attempt that ends at the same step
    with the same status as the one before, and a run that was asked to stop: SIGTERM and SIGINT are passed on to it.
    """
    resume, before = False, None
    with _stoppable() as stop:
        for attempt in range(1, care.max_restarts + 2):
            gang = Gang(command, care, attempt, resume)
            try:
                end = gang.run(stop)
            finally:
                gang.kill()
            resume = resume or end.begun
            if end.status is not None:
                _say(end.cause)
                return end.status
            if stop.requested:
                _say(f"{end.cause}\nasked to stop: not started again")
                return 1
            same = (end.step, end.cause.splitlines()[0])
            if same == before and "exit status" in end.cause:
                _say(f"{end.cause}\nthe same as before: given up")
                return 1
            before = same
            if attempt <= care.max_restarts:
                how = "resumed" if resume else "started anew"
                _say(f"{end.cause}\nrestart {attempt} of {care.max_restarts}: {how}")
        _say(f"{end.cause}\ngiven up after {care.max_restarts} restarts")
        return 1


def _say(text: str) -> None:
    print(f"jaxrl-llm supervise: {text}", file=sys.stderr, flush=True)
