"""The real worker with one more grader, which does what the answer says: everything that a grader must not do."""

import ctypes
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

PATH = pathlib.Path(__file__).parents[2] / "jaxrl_llm" / "rewards" / "worker.py"
specification = importlib.util.spec_from_file_location("worker", PATH)
worker = importlib.util.module_from_spec(specification)
specification.loader.exec_module(worker)


def noise(_):
    print("junk from a library")
    sys.stdout.flush()
    os.write(1, b'{"value": 7}\n')
    assert sys.stdin.read() == ""
    return 1.0


def child(item):
    process = subprocess.Popen(["/bin/sleep", "1000"])
    with open(item["pipe"], "w") as pipe:
        pipe.write(f"{process.pid}\n")
    return time.sleep(1000)


def slow(item):
    time.sleep(item["sleep"])
    return item["sleep"]


def holds_the_lock(_):
    ctypes.PyDLL(None).sleep(1000)


def recurse(item):
    return recurse(item) + 1


def reach(item):
    with socket.create_connection(("127.0.0.1", item["port"])) as line:
        return float(line.fileno())


def daemon(item):
    """Left over in a session of its own: the kill of a group does not find it."""
    process = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
    return float(process.pid)


ACTS = {
    "right": lambda _: 1.0,
    "slow": slow,
    "loop": lambda _: [None for _ in iter(int, 1)],
    "sleep": lambda _: time.sleep(1000),
    "power": lambda _: 9**9**9,
    "lock": holds_the_lock,
    "exit": lambda _: os._exit(3),
    "quit": lambda _: sys.exit(0),
    "killed": lambda _: signal.raise_signal(signal.SIGKILL),
    "raise": lambda _: 1 / 0,
    "recurse": recurse,
    "memory": lambda _: bytearray(worker.MEMORY),
    "nan": lambda _: float("nan"),
    "object": lambda _: object(),
    "pipe": lambda _: [os.close(fd) for fd in range(3, 20)],
    "endless": lambda _: "x" * worker.LINE,
    "noise": noise,
    "child": child,
    "pid": lambda _: float(os.getpid()),
    "environment": lambda _: sorted(os.environ),
    "modules": lambda _: sorted(sys.modules),
    "reach": reach,
    "daemon": daemon,
    "signal": lambda item: os.kill(item["pid"], 0) or 1.0,
    "touch": lambda item: pathlib.Path(item["file"]).touch() or 1.0,
    "thread": lambda _: float(threading.Thread(target=int).start() is None),
    "write": lambda item: pathlib.Path(item["file"]).write_text("x"),
    "length": lambda item: float(len(item["text"])),
}


def hostile(options):
    if options.get("die"):
        os._exit(1)
    if options.get("refuse"):
        raise ValueError("no such thing")
    if options.get("free"):
        worker.confine = lambda: False
    return lambda item: ACTS[item["answer"]](item)


worker.GRADERS["hostile"] = hostile
if __name__ == "__main__":
    worker.main()
