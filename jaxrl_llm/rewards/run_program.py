"""Run a program that a model wrote: the one place of this package where a text becomes code.

    python -P -s -S -B run_program.py SECONDS BYTES < FRAME

FRAME is the program's length in bytes as a line, the program, and what it reads as its standard input. It may use so
many seconds of processor and bytes of memory, and the modules below, which are loaded before it starts: from then on
it opens no file at all, starts no process and reaches no network (`confine`). That is a fence against programs that
misbehave and no boundary against a determined attacker, who may know a hole in the kernel.

The exit status is 77 where it cannot be confined, and then it has not been run.
"""

import builtins
import contextlib
import ctypes
import importlib
import importlib.util
import os
import pathlib
import resource
import signal
import sys

UNCONFINED = 77
NOBODY = 65534

MODULES = """
abc array base64 bisect calendar cmath collections collections.abc contextlib copy csv dataclasses datetime decimal
difflib enum fractions functools hashlib heapq io itertools json math numbers operator queue random re statistics
string struct sys textwrap threading time types typing unicodedata
"""


def limit(what: int, most: int) -> None:
    """Lower a limit of this process for good."""
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (most, most))


def drop_root() -> None:
    """Become nobody, for good: the kernel counts no processes and threads of root against a limit."""
    if os.getuid() == 0:
        with contextlib.suppress(OSError):  # a container may know no such user
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)


def read_program() -> str:
    """The program at the head of the standard input, of which nothing more is read."""
    digits = b""
    while not digits.endswith(b"\n"):
        digits += os.read(0, 1) or b"\n"
    program, size = b"", int(digits)
    while len(program) < size and (part := os.read(0, size - len(program))):
        program += part
    return program.decode()


def confined(seconds: int, memory: int) -> bool:
    """Give up what a program must not have. False where the kernel offers no way to."""
    path = pathlib.Path(__file__).with_name("confine.py")
    specification = importlib.util.spec_from_file_location("confine", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    drop_root()
    die_with_parent = 1  # which a change of user would undo
    ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_NPROC, 64)
    limit(resource.RLIMIT_CPU, seconds)
    limit(resource.RLIMIT_AS, memory)
    return module.confine(files=False)


def main() -> None:
    """Run it as `__main__`; it ends this process as it would end its own."""
    for name in MODULES.split():
        importlib.import_module(name)
    program = read_program()
    sys.argv, limits = ["program.py"], [int(text) for text in sys.argv[1:]]
    if not confined(*limits):
        os._exit(UNCONFINED)
    exec(compile(program, "program.py", "exec"), {"__name__": "__main__", "__builtins__": builtins})  # noqa: S102


if __name__ == "__main__":
    main()
