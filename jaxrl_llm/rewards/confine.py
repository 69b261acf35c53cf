"""A process that can compute and read files, and nothing else: no file written, no socket, no process, no signal sent.

The kernel enforces it (seccomp, on Linux of x86_64 and aarch64), and a process cannot lift it. It is no wall against an
attack on the kernel itself. Needs nothing but the standard library: graders import it by path, without this package.
"""

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator

# What is allowed without a look at its arguments, with its number on x86_64 and on aarch64 (which lacks the older
# ones). Everything else is refused with EPERM, what a later kernel adds included.
ALLOWED = """
read 0 63  pread64 17 67  readv 19 65  write 1 64  writev 20 66  close 3 57  fstat 5 80  newfstatat 262 79  stat 4 -
lstat 6 -  statx 332 291  lseek 8 62  access 21 -  faccessat 269 48  faccessat2 439 439  readlink 89 -
readlinkat 267 78  getcwd 79 17  getdents64 217 61  statfs 137 43  fstatfs 138 44  fadvise64 221 223
mmap 9 222  mprotect 10 226  munmap 11 215  mremap 25 216  madvise 28 233  mincore 27 232  brk 12 214
rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139  sigaltstack 131 132  restart_syscall 219 128
dup 32 23  dup2 33 -  dup3 292 24  pipe 22 -  pipe2 293 59  poll 7 -  ppoll 271 73  select 23 -  pselect6 270 72
sched_yield 24 124  nanosleep 35 101  clock_nanosleep 230 115  clock_gettime 228 113  clock_getres 229 114
gettimeofday 96 169  time 201 -  times 100 153  alarm 37 -  setitimer 38 103  getitimer 36 102
getrusage 98 165  getrlimit 97 163  getpid 39 172  getppid 110 173  gettid 186 178  getpgrp 111 -  getpgid 121 155
getsid 124 156  getuid 102 174  geteuid 107 175  getgid 104 176  getegid 108 177  getresuid 118 148  getresgid 120 150
uname 63 160  sysinfo 99 179  getrandom 318 278  sched_getaffinity 204 123  getcpu 309 168  arch_prctl 158 -
futex 202 98  set_robust_list 273 99  get_robust_list 274 100  rseq 334 293  membarrier 324 283
set_tid_address 218 96  exit 60 93  exit_group 231 94
"""
JUDGED = "open 2 -  openat 257 56  clone 56 220  prlimit64 302 261  fcntl 72 25  tgkill 234 131  clone3 435 435"

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, and what the kernel calls it
WRITING = 0o3 | os.O_CREAT | os.O_TRUNC | getattr(os, "O_TMPFILE", 0) & ~getattr(os, "O_DIRECTORY", 0)
THREAD = 0x10000  # of `clone`: a thread of this process
FCNTL = (0, 1, 2, 3, 1030)  # copies of a descriptor, and its flags

LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # classic BPF: a word, jumps on == and on &, an end
PASS, REFUSE, UNKNOWN = 0x7FFF0000, 0x00050001, 0x00050026  # allow; EPERM; ENOSYS, for which libc has another way
NUMBER, MACHINE, ARGUMENTS = 0, 4, 16  # where these stand in what a filter sees; an argument has two words

Row = tuple[int, int, str, str]  # operation, operand, where to go if so, and if not ("": on)


def confine(files: bool = True) -> bool:
    """Confine this thread and all that it starts, for good. False, and nothing is changed, where that cannot be done.

    Without `files` none can be opened to be read either.

    Call it before any other thread is there. Descriptors that are open stay so, and what they allow: pass none on.
    """
    if sys.platform != "linux" or platform.machine() not in MACHINES or sys.byteorder != "little":
        return False
    code = _assembled(list(_rows(*MACHINES[platform.machine()], files)))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    no_new_privileges, seccomp, by_filter = 38, 22, 2
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    held = ctypes.create_string_buffer(program, len(program))
    return prctl(no_new_privileges, 1, 0, 0, 0) == 0 and prctl(seccomp, by_filter, ctypes.addressof(held), 0, 0) == 0


def _numbers(table: str, column: int) -> dict[str, int]:
    """Names and numbers of the calls of a table that this machine has."""
    cells = table.split()
    rows = zip(cells[::3], zip(cells[1::3], cells[2::3], strict=True), strict=True)
    return {name: int(numbers[column]) for name, numbers in rows if numbers[column] != "-"}


def _rows(column: int, machine: int, files: bool) -> Iterator[Row]:
    """The filter: the first `return` that a call reaches decides."""
    judged = _numbers(JUDGED, column)
    yield LOAD, MACHINE, "", ""
    yield EQUAL, machine, "", "refuse"
    yield LOAD, NUMBER, "", ""
    for number in _numbers(ALLOWED, column).values():
        yield EQUAL, number, "pass", ""
    for name, number in judged.items():
        yield EQUAL, number, name, ""
    yield RETURN, REFUSE, "refuse:", ""
    yield RETURN, PASS, "pass:", ""
    yield RETURN, UNKNOWN, "clone3:", ""
    for name, place in (("open", 1), ("openat", 2)):
        if name in judged:
            yield LOAD, _argument(place), f"{name}:", ""
            yield ANY_BIT, WRITING if files else ~0 & 0xFFFFFFFF, "end refuse", "end pass" if files else "end refuse"
    yield LOAD, _argument(0), "clone:", ""
    yield ANY_BIT, THREAD, "end pass", "end refuse"
    yield LOAD, _argument(2), "prlimit64:", ""  # a limit that is set: a pointer that is not 0
    yield EQUAL, 0, "", "end refuse"
    yield LOAD, _argument(2) + 4, "", ""
    yield EQUAL, 0, "end pass", "end refuse"
    yield LOAD, _argument(0), "tgkill:", ""
    yield EQUAL, os.getpid(), "end pass", "end refuse"
    yield LOAD, _argument(1), "fcntl:", ""
    for number in FCNTL:
        yield EQUAL, number, "end pass", ""
    yield RETURN, REFUSE, "end refuse:", ""
    yield RETURN, PASS, "end pass:", ""


def _argument(place: int) -> int:
    """Where the low word of an argument stands."""
    return ARGUMENTS + 8 * place


def _assembled(rows: list[Row]) -> bytes:
    """The instructions; a row that is jumped to names its label, with a colon, in place of where to go."""
    labels = {row[2][:-1]: i for i, row in enumerate(rows) if row[2].endswith(":")}

    def jump(label: str, i: int) -> int:
        return labels[label] - i - 1 if label and not label.endswith(":") else 0

    return b"".join(struct.pack("HBBI", op, jump(yes, i), jump(no, i), k) for i, (op, k, yes, no) in enumerate(rows))
