"""Grader processes: JSON lines in, JSON lines out. Run by path, so that neither jax nor this package is imported.

The process that is run is the keeper: it loads the grader, {"grader": NAME, "options": {...}} as a line over the socket
that is its standard input, answers with the size and text of a refusal (empty: none), and then forks graders off, each
with a line of its own (`f` and a socket; it answers with the process), and buries them (`r` and the process). In front
of the size stands a 1 where graders are confined, and a 0 where this system has no way to.

    in   {"answer": TEXT, ...}                                 any number of times
    out  {"value": VALUE}             or {"error": TEXT}

A grader is a function of its options that returns a function of an item. Answers are data: nothing here evaluates
them, and data sets whose scorers do are refused (`tasks.reasoning_gym`). A grader is a process of its own all the same:
without the parent's secrets in its environment, with bounded memory, killed when it overruns, and on Linux confined by
the kernel (`confine.py`): it writes no file and reaches no network and no other process. `code` alone starts processes;
there the programs are confined.
"""

import contextlib
import copy
import ctypes
import functools
import importlib.util
import json
import os
import pathlib
import queue
import re
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from types import ModuleType
from typing import Any

ANSWER = 100_000
"""Characters of the longest answer that is read; a longer one is wrong."""

LINE = 1 << 24
"""Bytes of the longest line in either direction."""

MEMORY = 4 << 30
"""Bytes of address space: an answer such as `10 ** 10 ** 10` must not take the machine with it."""

Grader = Callable[[dict[str, Any]], Any]

STARTS_PROCESSES = ("code",)
"""Graders that cannot be confined themselves."""

NUMBER = re.compile(
    r"(?:(?<![0-9A-Za-z_)\].])[-+])?"  # a sign, and not the minus of "5-3"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"  # 1,000 is a number and 1,2 is two
    r"(?:[eE][-+]?[0-9]+)?"
    r"(?:/[0-9]+)?"
)


def last_number(text: str) -> Fraction | None:
    """The last number written in the text, exactly: "1,000", "-3.50", "2e3", "3/4"; None where there is none.

    A sign counts unless something stands right before it, units and per cent signs are ignored, and so is a full stop
    at the end. A number of more than 400 characters or with an exponent beyond 9999, or over zero, is None: it is no
    answer, and its digits would fill the memory. So is any number of a text of more than 100,000 characters.
    """
    if len(text) > ANSWER:
        return None
    found = [match.group() for match in NUMBER.finditer(text.replace("−", "-"))]
    if not found or len(found[-1]) > 400:
        return None
    above, _, below = found[-1].replace(",", "").partition("/")
    exponent = re.search("[eE]([-+]?[0-9]+)", above)
    if exponent and abs(int(exponent[1])) > 9999:
        return None
    return Fraction(above) / int(below or 1) if int(below or 1) else None


def beside(name: str) -> ModuleType:
    """A module of this folder, which needs nothing of the package."""
    path = pathlib.Path(__file__).with_name(f"{name}.py")
    specification = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def exact(_: dict[str, Any]) -> Grader:
    """1 where the answer is the truth, white space around either aside."""
    return lambda item: float(item["answer"].strip() == item["truth"].strip())


def numeric(_: dict[str, Any]) -> Grader:
    """1 where the last numbers of the answer and the truth are equal: 3.0 is 3, 1,000 is 1000, 2/4 is 1/2."""

    def grade(item: dict[str, Any]) -> float:
        truth = last_number(item["truth"])
        if truth is None:
            raise ValueError(f"there is no number in the truth {item['truth'][:80]!r}")
        return float(last_number(item["answer"]) == truth)

    return grade


def math_verify(_: dict[str, Any]) -> Grader:
    """1 where math-verify finds the two equal. Its own timeouts are off: the pool kills.

    A truth without $ or \\boxed is read as one formula, since math-verify would take the 1 out of "1+x" and call any 1
    right. An answer is read as text that holds a formula or ends in a number, and failing that as one formula. Sums
    are read without evaluating them as Python (`plain_sums`), which the library would do.
    """
    import math_verify as library

    beside("plain_sums").install()
    marks = ("$", "\\boxed", "\\(", "\\[")

    def parse(text: str) -> list:
        return library.parse(text, parsing_timeout=None)

    def is_bare(text: str) -> bool:
        return not any(mark in text for mark in marks)

    @functools.lru_cache(4096)
    def parse_truth(truth: str) -> list:
        found = parse(f"${truth}$" if is_bare(truth) else truth)
        if not found:
            raise ValueError(f"math-verify cannot read the truth {truth[:80]!r}")
        return found

    library.verify(parse("$1+x$"), parse("$x+1$"), timeout_seconds=None)  # its parsers are made at the first call

    def grade(item: dict[str, Any]) -> float:
        truth, answer = parse_truth(item["truth"]), item["answer"]
        readings = [answer, f"${answer}$"] if is_bare(answer) else [answer]
        return float(any(library.verify(truth, parse(reading), timeout_seconds=None) for reading in readings))

    return grade


def reasoning_gym(options: dict[str, Any]) -> Grader:
    """Scores and questions of the reasoning-gym dataset `name` made with `config`.

    With `threshold` t > 0 the value is 1 where the score is at least t and else 0; with 0 it is the score itself, in
    which junk often counts for a little. An item {"problems": [start, stop]} is answered by pairs [question, answer].

    Entries are made again from their index, since some scorers need types that JSON has not (tuples). That is exact
    only under a fixed hash seed: some datasets walk through sets of strings.
    """
    import reasoning_gym as library

    dataset = library.create_dataset(options["name"], **options["config"])
    entry = functools.lru_cache(4096)(dataset.__getitem__)
    threshold = options["threshold"]

    def serve(item: dict[str, Any]) -> Any:
        if "problems" in item:
            made = [entry(index) for index in range(*item["problems"])]
            return [[e["question"], None if e["answer"] is None else str(e["answer"])] for e in made]
        found = copy.deepcopy(entry(item["index"]))  # a scorer may write into it
        if found["question"] != item["question"]:
            raise ValueError(f"item {item['index']} of {options['name']} has changed its question")
        score = float(dataset.score_answer(item["answer"], found))
        return float(score >= threshold) if threshold else score

    return serve


GRADERS: dict[str, Callable[[dict[str, Any]], Grader]] = {
    "exact": exact,
    "numeric": numeric,
    "math_verify": math_verify,
    "reasoning_gym": reasoning_gym,
    "code": lambda options: beside("programs").code(options),
    "template": lambda options: beside("templates").template(options),
}


def messages(source: int) -> Iterator[dict[str, Any]]:
    """The lines of the parent, one at a time. When the parent is gone the process ends, whatever it is doing."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        with os.fdopen(source, "rb") as stream:
            while (line := stream.readline(LINE + 1)).endswith(b"\n"):
                lines.put(line)
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def limit(what: int, soft: int) -> None:
    """Lower a limit of this process for good: a stricter one that stands already is kept."""
    _, hard = resource.getrlimit(what)
    most = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (most, most))


def die_with_parent() -> None:
    """Have the kernel end this process when the thread that started it ends, even if it hangs in a library's C code.

    Linux only; elsewhere the thread in `messages` does it as soon as the library lets go of the interpreter's lock.
    """
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def confine() -> bool:
    """Confine this process. False where this system has no way to."""
    return beside("confine").confine()


def can_confine() -> bool:
    """Whether it has, as a process forked for that finds out."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(Exception):
            os._exit(0 if confine() else 1)
        os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def serve(line: int, grade: Grader, free: bool) -> None:
    """Grade what comes over a socket, until it is closed."""
    os.setsid()
    die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_AS, MEMORY)
    if not free:
        confine()

    def reply(**message: Any) -> None:
        text = json.dumps(message, allow_nan=False).encode() + b"\n"
        while text:
            text = text[os.write(line, text) :]

    for item in messages(os.dup(line)):
        try:
            reply(value=grade(item))
        except Exception as error:
            reply(error=f"{type(error).__name__}: {error}"[:2000])


def keep(control: socket.socket) -> None:
    """Load the grader that the parent names, and fork graders off for as long as the parent is there."""
    with control.makefile("rb") as lines:
        order = json.loads(lines.readline())
    refusal, grade = "", None
    try:
        grade = GRADERS[order["grader"]](order["options"])
    except Exception as error:
        refusal = f"{type(error).__name__}: {error}"[:2000]
    free = order["grader"] in STARTS_PROCESSES
    control.sendall(struct.pack("ii", free or can_confine(), len(refusal.encode())) + refusal.encode())
    while grade:
        message, (line, *_), _, _ = _received(control)
        if message[:1] == b"r":
            (pid,) = struct.unpack("i", message[1:])
            os.kill(pid, signal.SIGKILL)  # it leads no group yet if it has just been forked
            os.waitpid(pid, 0)
            control.sendall(bytes(4))
            continue
        pid = os.fork()
        if pid == 0:
            control.close()
            serve(line, grade, free)
            os._exit(0)
        os.close(line)
        control.sendall(struct.pack("i", pid))


def _received(control: socket.socket) -> tuple[bytes, list[int], int, Any]:
    """A message of five bytes and the socket that came with it, -1 for none. Ends the process with the parent."""
    message, sockets, flags, address = socket.recv_fds(control, 5, 1)
    while message and len(message) < 5:
        message += control.recv(5 - len(message)) or os._exit(0)
    if not message:
        os._exit(0)
    return message, sockets or [-1], flags, address


def main() -> None:
    """Serve until the parent closes the socket. What a library prints goes nowhere."""
    die_with_parent()
    control = socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    keep(control)


if __name__ == "__main__":
    main()
