"""Programs as answers: run on the inputs of a question, each in a process of its own, and compared with its outputs.

Imported by path from `worker.py`, without the package. Nothing of a program's text is run here (see `run_program.py`).
"""

import json
import math
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

MEMORY = 1 << 30
"""Bytes of address space of a program."""

RUNNER = pathlib.Path(__file__).with_name("run_program.py")

OUTPUT = 1 << 20
"""Bytes of the longest output."""

FENCE = re.compile(r"^```(?:python|py)?[ \t]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
UNCONFINED, KILLED = 77, (-signal.SIGKILL, -signal.SIGXCPU)


def code(options: dict[str, Any]) -> Callable[[dict[str, Any]], float]:
    """1 where a program prints the right output for every input of the truth, JSON [[input, output], ...], else 0.

    The program is the last ```python fence of the answer, or all of it where there is none. Outputs are equal but for
    white space at the ends of lines and of the whole. A program that raises, exits with another status than 0 or
    prints more than 1 MB is wrong. Options: `seconds` of processor time a run may take.

    Raises ValueError for a truth of another form, and at once where this system cannot confine a program; TimeoutError
    where a program has used up its time, which is no grade.
    """
    seconds = max(1, math.ceil(options["seconds"]))
    if _run("", "", seconds)[0] == UNCONFINED:
        raise ValueError("match=code needs seccomp (Linux on x86_64 or aarch64): a program cannot be confined here")

    def grade(item: dict[str, Any]) -> float:
        program = program_in(item["answer"])
        for given, wanted in read_truth(item["truth"]):
            status, printed = _run(program, given, seconds)
            if status in KILLED:
                raise TimeoutError("the program has used up its time or was killed")
            if status or _lines(printed) != _lines(wanted.encode()):
                return 0.0
        return 1.0

    return grade


def program_in(answer: str) -> str:
    """The last fenced block of Python in a text, or the text."""
    found = FENCE.findall(answer)
    return found[-1] if found else answer


def read_truth(text: str) -> list[tuple[str, str]]:
    """Inputs and outputs. Raises ValueError where they are not JSON [[input, output], ...], one pair at least."""
    try:
        pairs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from error
    if not isinstance(pairs, list) or not pairs:
        raise ValueError("it must be JSON [[input, output], ...] with one pair at least")
    for i, pair in enumerate(pairs):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"pair {i} must be [input, output], two texts")
    return [(given, wanted) for given, wanted in pairs]


def _lines(output: bytes) -> list[bytes]:
    return [line.rstrip() for line in output.rstrip().split(b"\n")]


def _run(program: str, given: str, seconds: int) -> tuple[int, bytes]:
    """Exit status of a program on an input, and what it printed; 1 and nothing where that was too much."""
    text = program.encode(errors="replace")
    frame = b"%d\n" % len(text) + text + given.encode(errors="replace")
    command = [sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", str(RUNNER), str(seconds), str(MEMORY)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    same_sets = {"PYTHONHASHSEED": "0"}
    with subprocess.Popen(command, **pipes, env=same_sets, cwd="/", bufsize=0) as child:  # noqa: S603 (a file of ours)
        printed = _exchange(child, memoryview(frame))
        if len(printed) > OUTPUT:
            child.kill()
            return 1, b""
        return child.wait(), printed


def _exchange(child: subprocess.Popen, unsent: memoryview) -> bytes:
    """Give a program its input while it prints, until it prints no more or too much."""
    given, taken = child.stdin.fileno(), child.stdout.fileno()
    os.set_blocking(given, False)
    printed = bytearray()
    while len(printed) <= OUTPUT:
        readable, writable, _ = select.select([taken], [given] if unsent else [], [])
        if writable:
            try:
                unsent = unsent[os.write(given, unsent[: 1 << 16]) :]
            except BrokenPipeError:
                unsent = unsent[:0]
            if not unsent:
                child.stdin.close()
        if readable:
            part = os.read(taken, 1 << 16)
            if not part:
                break
            printed += part
    return bytes(printed)
