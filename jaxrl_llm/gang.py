"""The processes of one attempt at a run: started, watched by their signs of life, and killed together."""

import contextlib
import dataclasses
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

from jaxrl_llm import heartbeat

FACTOR = 5  # a stage is stalled after so many times what it usually takes
PROGRAM = [sys.executable, "-m", "jaxrl_llm"]
POLL = 0.1  # seconds between two looks
SETTLE = 1.0  # seconds in which the death of one process shows in the others
STOPPED = 130  # exit status of a process that was asked to stop, and has saved
WRONG = 2  # exit status of a request that is wrong, and would be again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Care:
    """How a run is watched."""

    procs: int = 1  # processes on this machine that are one run
    devices_per_proc: int = 0  # devices of this machine that each takes; 0: jax chooses
    max_restarts: int = 3  # how often the run is started again
    stall_floor: float = 60.0  # a process is stalled after the larger of these seconds and 5 times its usual time
    first_limit: float = 1800.0  # the same in seconds for what it does for the first time, which may compile
    grace: float = 30.0  # seconds to save and end in after SIGTERM, then SIGKILL
    logs: pathlib.Path = pathlib.Path("logs")  # folder for what the processes print

    def __post_init__(self):
        if self.procs < 1 or self.max_restarts < 0 or self.devices_per_proc < 0:
            raise ValueError("procs must be 1 or more, max_restarts and devices_per_proc 0 or more")
        if min(self.stall_floor, self.first_limit, self.grace) <= 0:
            raise ValueError("stall_floor, first_limit and grace must be above 0 s")


@dataclasses.dataclass(frozen=True)
class End:
    """How the processes ended: the exit status where that is the end of the run, else why they have to start again."""

    status: int | None
    cause: str
    begun: bool
    step: int


class Stop:
    """Whether the supervisor itself was asked to stop."""

    requested = False


class Member:
    """One of the processes, in a process group of its own, with its log and its signs of life."""

    def __init__(self, command: Sequence[str], folder: pathlib.Path, name: str):
        self.log, self.signs = folder / f"{name}.log", folder / f"{name}.sign"
        self.signs.unlink(missing_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(  # noqa: S603 - this interpreter and this package
                [*PROGRAM, *command, "--progress-file", str(self.signs)],
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.sign: dict = {}
        self.since = self.worked = time.monotonic()
        self.shown = 0

    def look(self) -> None:
        """Read its latest sign."""
        sign = heartbeat.read(self.signs)
        if sign.get("count") != self.sign.get("count"):
            if sign.get("midway") != self.sign.get("midway"):
                self.worked = time.monotonic()
            self.sign, self.since = sign, time.monotonic()

    def limit(self, care: Care) -> float:
        """Seconds that its stage may take."""
        usual = self.sign.get("usual")
        return care.first_limit if usual is None else max(care.stall_floor, FACTOR * usual)

    def silence(self) -> float:
        """Seconds since its latest sign."""
        return time.monotonic() - self.since

    @property
    def where(self) -> str:
        """What it does, in words."""
        stage, step = self.sign.get("stage"), self.sign.get("step", 0)
        return "before its first sign of life" if stage is None else f"in stage {stage!r}, step {step}"

    def signal(self, number: signal.Signals, group: bool = False) -> None:
        """Send a signal, if it has not ended."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.process.pid, number)

    def is_stopped(self) -> bool:
        """Whether it is frozen by SIGSTOP (known on Linux only)."""
        with contextlib.suppress(OSError):
            text = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text(encoding="utf-8")
            return text.rpartition(")")[2].split()[0] in "Tt"
        return False

    def written(self) -> str:
        """What it has printed since the last call."""
        with self.log.open("rb") as log:
            log.seek(self.shown)
            new = log.read()
        self.shown += len(new)
        return new.decode("utf-8", "replace")


class Gang:
    """All processes of one attempt."""

    def __init__(self, command: Sequence[str], care: Care, attempt: int, resume: bool):
        self.care, self.stopping = care, None
        folder = care.logs / f"{socket.gethostname()}-{os.getpid()}"
        folder.mkdir(parents=True, exist_ok=True)
        again = ["--resume"] if resume and "--resume" not in command else []
        address = f"localhost:{_free_port()}"
        self.members = [
            Member([*command, *again, *_rank(care, address, rank)], folder, f"attempt{attempt}-process{rank}")
            for rank in range(care.procs)
        ]

    def run(self, stop: Stop) -> End:
        """Watch until the processes have ended, or have to be ended."""
        while True:
            time.sleep(POLL)
            for member in self.members:
                member.look()
            self.show()
            end = self._ended() or self._late(stop) or self._stalled()
            if end:
                self.kill()
                self.show()
                return end

    def show(self) -> None:
        """Pass on what process 0 has printed."""
        sys.stdout.write(self.members[0].written())
        sys.stdout.flush()

    def kill(self) -> None:
        """End all of them, and whatever they have started."""
        for member in self.members:
            member.signal(signal.SIGKILL, group=True)
        for member in self.members:
            member.process.wait()

    def _end(self, status: int | None, cause: str) -> End:
        signs = [member.sign for member in self.members]
        begun = any(sign.get("begun") for sign in signs)
        return End(status, cause, begun, max(sign.get("step", 0) for sign in signs))

    def _ended(self) -> End | None:
        codes = self._codes()
        if all(code in (0, STOPPED) for code in codes):
            asked = self.stopping is not None or STOPPED in codes
            return self._end(max(codes), "stopped on request" if asked else "done")
        if all(code in (None, 0, STOPPED) for code in codes):
            return None
        deadline = time.monotonic() + SETTLE
        while None in self._codes() and time.monotonic() < deadline:
            time.sleep(POLL)
        codes = self._codes()
        dead = sorted((not _is_struck(code), rank) for rank, code in enumerate(codes) if code not in (None, 0, STOPPED))
        told = [f"{self._name(rank)} {_died(codes[rank])} {self.members[rank].where}" for _, rank in dead]
        cause = "; then ".join(told) + self._last_lines(dead[0][1])
        if not any(_is_struck(code) for code in codes if code is not None) and None in codes:
            cause += f"\n{self._stacks()}"  # who ended itself may have missed one that lives
        # A lost peer may show as any error: only before the run has begun does this status mean a wrong request.
        if any(code == WRONG and not m.sign.get("begun") for code, m in zip(codes, self.members, strict=True)):
            return self._end(WRONG, cause)
        return self._end(1 if self.stopping is not None else None, cause)

    def _name(self, rank: int) -> str:
        """A single one here may have any number among those of other machines."""
        return f"process {rank}" if self.care.procs > 1 else "the process"

    def _codes(self) -> list[int | None]:
        return [member.process.poll() for member in self.members]

    def _late(self, stop: Stop) -> End | None:
        if stop.requested and self.stopping is None:
            self.stopping = time.monotonic()
            for member in self.members:
                member.signal(signal.SIGTERM)
        if self.stopping is None or time.monotonic() - self.stopping < self.care.grace:
            return None
        return self._end(1, f"asked to stop, and not done within {self.care.grace:.0f} s\n{self._stacks()}")

    def _stalled(self) -> End | None:
        codes = self._codes()
        # Who is silent may wait for one that works on in the midst of a stage, which that one's own limits end.
        alone = time.monotonic() - max(m.worked for m in self.members)
        late = [
            rank
            for rank, m in enumerate(self.members)
            if codes[rank] is None and min(m.silence(), alone) > m.limit(self.care)
        ]
        if not late:
            return None
        member = self.members[late[0]]
        who = ", ".join(self._name(rank) for rank in late)
        cause = f"no sign of life from {who} for {member.silence():.0f} s {member.where}"
        return self._end(None, f"{cause} (limit {member.limit(self.care):.0f} s)\n{self._stacks()}")

    def _stacks(self) -> str:
        """Let every process print its stacks into its log; where each of them is, one line a process."""
        begins = [member.log.stat().st_size for member in self.members]
        codes, frozen = self._codes(), [member.is_stopped() for member in self.members]
        for member, is_frozen in zip(self.members, frozen, strict=True):
            if not is_frozen:
                member.signal(signal.SIGUSR1)
        time.sleep(SETTLE)
        lines = []
        for rank, member in enumerate(self.members):
            with member.log.open("rb") as log:
                log.seek(begins[rank])
                found = re.findall(r'File "(.*?)", line (\d+) in (\S+)', log.read().decode("utf-8", "replace"))
            ours = next((frame for frame in found if "jaxrl_llm" in frame[0]), found[0] if found else None)
            place = f"at {ours[2]} ({ours[0]}:{ours[1]})" if ours else "without a stack"
            state = "frozen by SIGSTOP" if frozen[rank] else "has ended" if codes[rank] is not None else place
            lines.append(f"  {self._name(rank)} {member.where}: {state}; stacks in {member.log}")
        return "\n".join(lines)

    def _last_lines(self, rank: int) -> str:
        lines = self.members[rank].log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
        return "".join(f"\n  | {line}" for line in lines) + f"\n  log: {self.members[rank].log}"


def _rank(care: Care, address: str, rank: int) -> list[str]:
    """The flags that tell a process who it is."""
    words = []
    if care.procs > 1:
        words = ["--coordinator", address, "--num-processes", str(care.procs), "--process-id", str(rank)]
    if care.devices_per_proc:
        ids = range(rank * care.devices_per_proc, (rank + 1) * care.devices_per_proc)
        words += ["--local-device-ids", *map(str, ids)]
    return words


def _is_struck(code: int) -> bool:
    """Whether a process was ended from outside. One that misses another ends itself: by an exception or SIGABRT."""
    return code < 0 and code != -signal.SIGABRT


def _died(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]
