"""What a grader could do to the machine, it cannot do once the kernel confines it; and what it must do goes on."""

import os
import pathlib
import platform
import signal
import socket
import struct
import sys

import pytest

from jaxrl_llm.rewards import confine, keeper, worker
from jaxrl_llm.rewards.pool import GraderPool

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in confine.MACHINES, reason="the kernel has no such filter"
)
FILE = pathlib.Path(__file__)
CONFINED, FREE = 7, 9

FORBIDDEN = {
    "write": "open({here!r} + '/new', 'w')",
    "append": "open({here!r} + '/old', 'a')",
    "both": "os.open({here!r} + '/old', os.O_RDWR)",
    "truncate": "os.truncate({here!r} + '/old', 0)",
    "nameless file": "os.open({here!r}, os.O_TMPFILE | os.O_RDWR)",
    "memory file": "os.memfd_create('x')",
    "mkdir": "os.mkdir({here!r} + '/new')",
    "fifo": "os.mkfifo({here!r} + '/new')",
    "unlink": "os.unlink({here!r} + '/old')",
    "rename": "os.rename({here!r} + '/old', {here!r} + '/new')",
    "link": "os.link({here!r} + '/old', {here!r} + '/new')",
    "symlink": "os.symlink({here!r} + '/old', {here!r} + '/new')",
    "chmod": "os.chmod({here!r} + '/old', 0o777)",
    "times": "os.utime({here!r} + '/old')",
    "chdir": "os.chdir('/')",
    "fork": "os.fork() or os._exit(0)",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {{}})",
    "program": "subprocess.run(['/bin/true'], check=True)",
    "shell": "1 / (os.system('true') == 0)",
    "exec": "os.execv('/bin/true', ['true'])",
    "session": "os.fork() or (os.setsid(), os._exit(0))",
    "group": "os.setpgid(0, 0)",
    "tcp": "socket.socket()",
    "udp": "socket.socket(type=socket.SOCK_DGRAM)",
    "unix": "socket.socketpair()",
    "signal": "os.kill({parent}, 0)",
    "signal to all": "os.killpg(os.getpgrp(), 0)",
    "priority": "os.setpriority(os.PRIO_PROCESS, 0, 19)",
    "limit": "resource.setrlimit(resource.RLIMIT_NOFILE, (99, 99))",
    "debug": "1 / (libc.ptrace(0, 0, 0, 0) == 0)",
    "look into": "1 / (libc.process_vm_readv(os.getpid(), None, 0, None, 0, 0) == 0)",
    "name space": "1 / (libc.unshare(0) == 0)",
    "shared memory": "1 / (libc.shmget(0, 4096, 0o1600) != -1)",
    "async input": "1 / (libc.syscall(425, 8, ctypes.create_string_buffer(120)) != -1)",
    "events": "select.epoll()",
}
ALLOWED = {
    "read": "open({here!r} + '/old').read()",
    "list": "os.listdir({here!r})",
    "import": "__import__('sqlite3')",
    "thread": "threading.Thread(target=print).start()",
    "sleep": "time.sleep(0.001)",
    "memory": "bytearray(1 << 26)",
    "alarm": "signal.setitimer(signal.ITIMER_REAL, 10)",
    "limits": "resource.getrlimit(resource.RLIMIT_AS)",
    "random": "os.urandom(8)",
    "null": "open(os.devnull).read()",
}


def outcome(act: str, confined: bool, tmp_path: pathlib.Path, **filters) -> int:
    """Exit status of a forked child that does it: 0 done, CONFINED refused, FREE where it could not be confined."""
    (tmp_path / "old").write_text("x")
    text = act.format(here=str(tmp_path), parent=os.getpid())
    child = (
        "import ctypes, importlib, os, resource, select, signal, socket, subprocess, sys, threading, time\n"
        f"sys.path.insert(0, {str(pathlib.Path(confine.__file__).parent)!r})\n"
        f"import confine\nlibc = ctypes.CDLL(None)\nprint(end='')\n"
        f"if {confined} and not confine.confine(**{filters}): os._exit({FREE})\n"
        f"try: {text}\nexcept (OSError, ValueError, ZeroDivisionError, ImportError): os._exit({CONFINED})\n"
        "os._exit(0)\n"
    )
    pid = os.posix_spawn(sys.executable, [sys.executable, "-I", "-B", "-c", child], {})
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_harms_is_refused(name, tmp_path):
    free, confined = tmp_path / "free", tmp_path / "confined"
    free.mkdir()
    confined.mkdir()
    if outcome(FORBIDDEN[name], False, free):
        pytest.skip("this machine refuses it to everyone")
    assert outcome(FORBIDDEN[name], True, confined) == CONFINED
    assert [path.name for path in confined.iterdir()] == ["old"]


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_grader_needs_goes_on(name, tmp_path):
    assert outcome(ALLOWED[name], True, tmp_path) == 0


def test_without_files_nothing_is_read(tmp_path):
    assert outcome(ALLOWED["read"], True, tmp_path, files=False) == CONFINED
    assert outcome(ALLOWED["import"], True, tmp_path, files=False) == CONFINED
    assert outcome(ALLOWED["memory"], True, tmp_path, files=False) == 0


@pytest.mark.parametrize("machine", confine.MACHINES)
def test_the_filter_is_well_formed_on_every_machine(machine):
    """Jumps go forward, stay inside, and are short enough for their byte; calls have numbers of their own."""
    rows = list(confine._rows(*confine.MACHINES[machine], True))
    code = confine._assembled(rows)
    assert len(code) == 8 * len(rows) < 8 * 4096
    for i, (operation, _, _, _) in enumerate(rows):
        _, yes, no, _ = struct.unpack("HBBI", code[8 * i : 8 * i + 8])
        is_jump = operation & 0x07 == 0x05
        assert i + 1 + max(yes, no) < len(rows) if is_jump else yes == no == 0
    assert rows[-1][0] == confine.RETURN
    column = confine.MACHINES[machine][0]
    numbers = [
        *confine._numbers(confine.ALLOWED, column).values(),
        *confine._numbers(confine.JUDGED, column).values(),
    ]
    assert len(set(numbers)) == len(numbers)


@pytest.fixture
def hostile(monkeypatch):
    monkeypatch.setattr(keeper, "SCRIPT", FILE.with_name("hostile_worker.py"))
    monkeypatch.setitem(worker.GRADERS, "hostile", None)
    made = []

    def make(**options) -> GraderPool:
        made.append(GraderPool("hostile", options, workers=1, seconds=10.0))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.mark.parametrize("act", ["reach", "daemon", "signal", "touch"])
def test_a_misled_grader_reaches_nothing(hostile, act, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        item = {"answer": act, "file": str(tmp_path / "new"), "pid": os.getpid(), "port": server.getsockname()[1]}
        pool = hostile()
        assert pool.grade([item]) == [None]
        assert "Operation not permitted" in pool.last_error
        assert not (tmp_path / "new").exists()
        free = hostile(free=True)
        with pytest.warns(RuntimeWarning, match="not confined"):
            (done,) = free.grade([item])
    assert done
    if act == "daemon":
        os.kill(int(done), signal.SIGKILL)


def test_a_confined_grader_has_threads(hostile):
    assert hostile().grade([{"answer": "thread"}]) == [1]
