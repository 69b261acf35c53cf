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

INHERITED = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH")
"""What a grader sees of the environment. Tokens and passwords stay out."""

OPEN = "this system has no seccomp as on Linux, so a grader that an answer misleads could reach files and the network"

SETTINGS = {
    "PYTHONHASHSEED": "0",  # some reasoning-gym datasets are another dataset under another hash seed
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Keeper:
    """One process for all graders of a pool. Safe to use from several threads.

    It dies with the thread that makes it, and all graders with it (see `worker.die_with_parent`).
    """

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.order, self.lock, self.ready = order, threading.Lock(), False
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

        Raises ValueError where the grader refuses its options, RuntimeError where its process does not start.
        """
        with self.lock:
            try:
                if not self.ready:
                    self._await_start()
                ours, theirs = socket.socketpair()
                with theirs:
                    socket.send_fds(self.control, [b"f" + bytes(4)], [theirs.fileno()])
                (pid,) = struct.unpack("i", self._read(4))
            except OSError as error:
                raise RuntimeError(f"a process for grader {self.order['grader']!r} does not start: {error}") from error
        ours.setblocking(False)
        return pid, ours

    def end(self, pid: int) -> None:
        """Kill a grader and all that it started; until then its number cannot be another process's."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        with self.lock, contextlib.suppress(OSError):
            self.control.sendall(b"r" + struct.pack("i", pid))
            self._read(4)

    def kill(self) -> None:
        """End the keeper and with it all graders, and leave no zombie and no open line."""
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
