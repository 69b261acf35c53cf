"""The process that keeps a grader's libraries loaded, and forks a fresh grader off in milliseconds."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.rewards import worker

SCRIPT = pathlib.Path(worker.__file__)
START = 120.0
"""Seconds that a keeper may take to import its libraries."""

IN_A_ROW = 3
"""Keepers that may be lost one after the other, with no answer graded between them, before the pool gives up."""

INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH")
"""What a grader sees of the environment. Tokens and passwords stay out."""

OPEN = "this system has no seccomp as on Linux, so a grader that an answer misleads could reach files and the network"

SETTINGS = {
    "PYTHONHASHSEED": "0",  # some reasoning-gym datasets are another dataset under another hash seed
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class LostKeeperError(RuntimeError):
    """The process of a keeper has ended, by its own fault or by another's: the kernel kills where memory is short."""


class Keeper:
    """One process for all graders of a pool. Safe to use from several threads.

    It dies with the thread that makes it, and all graders with it (see `worker.die_with_parent`).
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.order, self.lock, self.ready = order, threading.Lock(), False
        self.burial = threading.Lock()  # while one thread polls a process, another's poll would call it alive
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        self.control, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(  # noqa: S603 (this interpreter and a file of ours)
                [sys.executable, "-P", str(SCRIPT)],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**environment, **SETTINGS},
                start_new_session=True,
            )

    def fork(self) -> tuple[int, socket.socket]:
        """A new grader: its process, which leads a group of its own, and the other end of its line.

        Raises ValueError where the grader refuses its options, LostKeeperError where the keeper has ended, RuntimeError
        where it says nothing for too long.
        """
        ours, theirs = socket.socketpair()
        with self.lock, contextlib.ExitStack() as stack:
            stack.enter_context(theirs)
            stack.callback(ours.close)
            try:
                if not self.ready:
                    self._await_start()
                socket.send_fds(self.control, [b"f" + bytes(4)], [theirs.fileno()])
                (pid,) = struct.unpack("i", self._read(4))
            except OSError as error:
                kind = RuntimeError if isinstance(error, TimeoutError) else LostKeeperError
                raise kind(f"a process for grader {self.order['grader']!r} does not start: {error}") from error
            theirs.close()
            stack.pop_all()
        ours.setblocking(False)
        return pid, ours

    def is_lost(self) -> bool:
        """Whether its process has ended. Its graders have then ended too, and their numbers may be others' by now."""
        with self.burial:
            return self.process.poll() is not None

    def end(self, pid: int) -> None:
        """Kill a grader and all that it started; until then its number cannot be another process's."""
        if self.is_lost():
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with self.lock, contextlib.suppress(OSError):
            self.control.sendall(b"r" + struct.pack("i", pid))
            self._read(4)

    def kill(self) -> None:
        """End the keeper and with it all graders, and leave no zombie and no open line."""
        with self.burial:
            if self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.control.close()

    def _await_start(self) -> None:
        self.control.settimeout(START)
        self.control.sendall(json.dumps(self.order).encode() + b"\n")
        confined, size = struct.unpack("ii", self._read(8))
        refusal = self._read(size).decode()
        if refusal:
            raise ValueError(f"{self.order['grader']}: {refusal}")
        if not confined:
            warnings.warn(f"graders are not confined: {OPEN}", RuntimeWarning, stacklevel=2)
        self.ready = True

    def _read(self, size: int) -> bytes:
        """So many bytes. Raises OSError where the keeper is gone or says nothing for too long."""
        received = b""
        while len(received) < size:
            part = self.control.recv(size - len(received))
            if not part:
                raise ConnectionError("it has ended")
            received += part
        return received


class Keepers:
    """One keeper at a time, and another in its place when it is lost. Safe to use from several threads.

    `fork` has to be called on threads that live as long as the graders: a keeper dies with the thread that makes it.
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.keeper, self.closed = Keeper(order), False
        self.lock, self.change = threading.Lock(), threading.Lock()  # `change` is never held for long
        self._lost, self._in_a_row = 0, 0

    def fork(self) -> tuple[Keeper, int, socket.socket]:
        """A new grader (see `Keeper.fork`) and its keeper.

        Raises RuntimeError where a keeper says nothing, or where one after the other is lost, and ValueError where the
        grader refuses its options.
        """
        with self.lock:
            while True:
                try:
                    return self.keeper, *self.keeper.fork()
                except LostKeeperError as error:
                    self._replace(error)

    def graded(self) -> None:
        """An answer has its grade, so whatever is lost from now on is not lost for want of a grader that starts."""
        self._in_a_row = 0

    def lost(self) -> int:
        """How many keepers were lost since this was last asked."""
        with self.change:
            lost, self._lost = self._lost, 0
        return lost

    def kill(self) -> None:
        """End the keeper and all graders for good."""
        with self.change:
            self.closed = True
            self.keeper.kill()

    def _replace(self, error: LostKeeperError) -> None:
        self.keeper.kill()  # buried: it leaves no zombie
        with self.change:
            if self.closed:
                raise error
            self._lost, self._in_a_row = self._lost + 1, self._in_a_row + 1
            if self._in_a_row > IN_A_ROW:
                raise RuntimeError(f"{error} ({self._in_a_row} times in a row)") from error
            self.keeper = Keeper(self.keeper.order)
