"""Programs that print the right output only where they get out: none does, and each does once its limits are gone.

Where several limits stand in the way of one escape, each of them has to hold alone: whoever takes one away is noticed,
though the others still hold.
"""

import json
import os
import pathlib
import platform
import shutil
import sys

import pytest

from jaxrl_llm.rewards import confine, programs

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in confine.MACHINES, reason="programs cannot be confined here"
)
TRUTH = json.dumps([["3\n", "6\n"]])

# What stands in the way -> its line in `run_program.py`.
LIMITS = {
    "memory": "limit(resource.RLIMIT_AS, memory)",
    "size": "limit(resource.RLIMIT_FSIZE, 0)",
    "tasks": "limit(resource.RLIMIT_NPROC, 64)",
    "root": "drop_root()\n    die",
}
FILTER = "return module.confine(files=False)"  # "no files" is all of it, "kernel" the same with files to be read

# Name -> what a program does before it prints the right output, and each limit that stops it alone.
ESCAPES = {
    "gigabytes": ("held = bytearray(3 << 30)", ["memory"]),
    "a file": (
        "open({new!r}, 'w').write('x' * 9)\nassert len(open({new!r}).read()) == 9",
        ["size", "no files", "kernel"],
    ),
    "an old file": ("open({old!r}, 'a').write('x')\nassert open({old!r}).read() == 'oldx'", ["size", "kernel"]),
    "passwords": ("assert open('/etc/passwd').read()", ["no files"]),
    "environment": ("assert open('/proc/self/environ').read()", ["no files"]),
    "the grader's environment": ("assert open(f'/proc/{{os.getppid()}}/environ').read()", ["no files"]),
    "folder": ("assert os.listdir('/')", ["no files"]),
    "import": ("import sqlite3", ["no files"]),
    "fork": ("os.fork() or os._exit(0)", ["kernel"]),
    "program": ("print(6, flush=True)\nos.execv('/bin/true', ['true'])", ["kernel"]),
    "shell": ("assert os.system('true') == 0", ["kernel"]),
    "socket": ("import ctypes\nassert ctypes.CDLL(None).socket(2, 1, 0) >= 0", ["kernel"]),
    "grader": ("os.kill(os.getppid(), 0)", ["kernel"]),
    "group": ("os.killpg(os.getpgrp(), 0)", ["kernel"]),
    "symlink": ("os.symlink('/etc/passwd', {new!r})", ["kernel"]),
    "unlink": ("os.unlink({old!r})", ["kernel"]),
    "threads": (
        "import threading\nthreading.stack_size(1 << 16)\nend = threading.Event()\n"
        "every = [threading.Thread(target=end.wait, daemon=True) for _ in range(300)]\n"
        "try:\n    [one.start() for one in every]\nfinally:\n    end.set()",
        ["tasks"],
    ),
    "processes": (
        "pids = []\ntry:\n    for _ in range(100):\n        pids.append(os.fork() or (os.read(0, 99), os._exit(0)))\n"
        "finally:\n    [os.kill(pid, 9) for pid in pids]\n    [os.waitpid(pid, 0) for pid in pids]",
        ["tasks", "kernel"],
    ),
}
# What only the way in which a program is run keeps from it.
KEPT_AWAY = {
    "more input": "assert sys.stdin.read() + os.read(0, 9).decode() != '3\\n'",
    "secrets": "assert os.environ['HF_TOKEN']",
    "descriptors": "assert os.fstat({descriptor})",
    "folder of the run": "assert os.getcwd() != '/'",
}


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A file that is there, one that is not, and a descriptor that a child could have."""
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "old").write_text("old")
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    yield {"old": str(tmp_path / "old"), "new": str(tmp_path / "new"), "descriptor": descriptor}
    os.close(descriptor)


def graded(escape: str, places: dict) -> float:
    """The grade of a program that tries it."""
    answer = f"import os, sys\n{escape.format(**places)}\nprint(6)"
    return programs.code({"seconds": 5.0})({"answer": answer, "truth": TRUTH})


def run_with(kept: set[str], folder: pathlib.Path, monkeypatch) -> None:
    """Have programs run with these limits alone."""
    source = programs.RUNNER.read_text()
    for line in [*LIMITS.values(), FILTER]:
        assert source.count(line) == 1
    for name, line in LIMITS.items():
        source = source if name in kept else source.replace(line, "die" if name == "root" else "pass")
    if "no files" not in kept:
        source = source.replace(FILTER, "return module.confine()" if "kernel" in kept else "return True")
    (folder / "run_program.py").write_text(source)
    shutil.copy(confine.__file__, folder)
    monkeypatch.setattr(programs, "RUNNER", folder / "run_program.py")


@pytest.mark.parametrize("name", ESCAPES)
def test_no_program_gets_out(name, places):
    assert graded(ESCAPES[name][0], places) == 0
    assert pathlib.Path(places["old"]).read_text() == "old"
    assert not os.path.lexists(places["new"])


@pytest.mark.parametrize("name", ESCAPES)
def test_without_limits_it_does(name, places, tmp_path, monkeypatch):
    run_with(set(), tmp_path, monkeypatch)
    assert graded(ESCAPES[name][0], places) == 1


@pytest.mark.parametrize(("name", "limit"), [(name, limit) for name, (_, alone) in ESCAPES.items() for limit in alone])
def test_each_limit_holds_alone(name, limit, places, tmp_path, monkeypatch):
    run_with({limit, "root"} if limit == "tasks" else {limit}, tmp_path, monkeypatch)
    assert graded(ESCAPES[name][0], places) == 0


@pytest.mark.parametrize("name", KEPT_AWAY)
def test_a_program_finds_nothing_that_is_not_its_own(name, places):
    assert graded(KEPT_AWAY[name], places) == 0
