"""A process that behaves as told instead of training: what the tests of the supervisor watch.

    watched_process.py train BEHAVIOUR ... [--process-id R] --progress-file FILE

Each BEHAVIOUR is "ATTEMPT.RANK=DEED"; a process without one goes through its steps and ends with 0. Attempts are told
apart by a file beside FILE, one line a start.
"""

import pathlib
import signal
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from jaxrl_llm import heartbeat


def main() -> None:
    words = sys.argv[1:]
    rank = int(words[words.index("--process-id") + 1]) if "--process-id" in words else 0
    progress = pathlib.Path(words[words.index("--progress-file") + 1])
    starts = progress.parents[1] / f"starts{rank}"
    with starts.open("a") as file:
        file.write(" ".join(words) + "\n")
    attempt = len(starts.read_text().splitlines())
    deeds = dict(word.split("=") for word in words if word[0].isdigit() and "=" in word)
    deed = deeds.get(f"{attempt}.{rank}", "work")
    heartbeat.start(progress)
    print(f"rank {rank} begins", flush=True)
    if deed == "wrong":
        print("the request is wrong", file=sys.stderr)
        sys.exit(2)
    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    heartbeat.begun()
    for step in range(1, 6):
        heartbeat.beat("step", step)
        if step == 4:
            act(deed, asked)
        time.sleep(0.05)
    print(f"rank {rank} is done", flush=True)


def act(deed: str, asked: list[int]) -> None:
    if deed == "die":
        signal.raise_signal(signal.SIGKILL)
    if deed == "freeze":
        signal.raise_signal(signal.SIGSTOP)
    if deed == "abort":
        signal.raise_signal(signal.SIGABRT)
    if deed in ("grade", "tire"):
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            heartbeat.go_on()
            time.sleep(0.05)
    if deed == "lag":
        time.sleep(1.5)
    if deed in ("fail", "follow"):
        time.sleep(0.0 if deed == "fail" else 0.1)
        sys.exit(1 if deed == "fail" else 2)
    while deed in ("sleep", "deaf", "tire") or (deed == "wait" and not asked):
        time.sleep(0.02)
    if deed == "wait":
        sys.exit(130)


main()
