"""Let each call that writes a checkpoint fail in turn: full disk, broken disk, no permission.

    python tests/faults/disk.py            # needs a C compiler, and Linux

A step is there, and the next one is saved while its n-th write, open for writing, mkdir, rename or sync below the
folder fails once with ENOSPC, EIO or EACCES, for every n that there is (`--most 4`: for four of them); those of Orbax
and its store included, which are in C++, since `failing_disk.c` stands in front of the C library. Then either the save
raises one CheckpointError that names the step, and the step before is read with its own bits; or it got over the
failure, and the new step is. A failure takes some seconds, in which the store tries again.
"""

import argparse
import ctypes
import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections import Counter

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[2])
    sys.path.insert(1, str(pathlib.Path(__file__).parent))

ERRORS = ("ENOSPC", "EIO", "EACCES")
HERE = pathlib.Path(__file__)


def with_failing_disk(work: str) -> int:
    """Run this file again with the library in front; its exit status."""
    library = pathlib.Path(work) / "failing_disk.so"
    source = HERE.with_name("failing_disk.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", library, source, "-ldl"], check=True)  # noqa: S607
    environment = os.environ | {"LD_PRELOAD": str(library), "FAILING_DISK": work}
    return subprocess.run([sys.executable, HERE, *sys.argv[1:]], env=environment, check=False).returncode


def outcome(folder: pathlib.Path, n: int, number: int) -> tuple[str, int]:
    """What became of a save whose n-th call fails, and how many calls it made; 0 lets none fail."""
    import damage
    import jax
    import numpy as np

    from jaxrl_llm.checkpoint import CheckpointError, Checkpoints

    disk, raised, told = ctypes.CDLL(None), [], []
    with Checkpoints(folder, 1) as store:
        store.save(damage.OLD, damage.state(damage.OLD))
    disk.fault_arm(str(folder).encode(), n, number)
    try:
        with Checkpoints(folder, 1, tell=told.append) as store:
            store.save(damage.NEW, damage.state(damage.NEW))
    except CheckpointError as error:
        raised.append(str(error))
    finally:
        calls = disk.fault_seen()
        disk.fault_arm(b"", 0, 0)
    with Checkpoints(folder, 1, tell=told.append) as store:
        found = store.restore(damage.state(0))
    step = int(found["step"])
    if not jax.tree.all(jax.tree.map(np.array_equal, found, damage.state(step))):
        return f"wrong values were read as step {step}", calls
    if step == damage.OLD:
        said = len(raised) == 1 and f"{folder}/{damage.NEW} could not be saved" in raised[0]
        return ("said" if said else f"lost in silence: {raised}"), calls
    return "said, and saved" if raised else "saved all the same", calls


def campaign(work: pathlib.Path, most: int) -> tuple[Counter, list[str]]:
    """Outcomes by error, and what failed, of at most so many places of each."""
    counts, failures = Counter(), []
    _, calls = outcome(work / "none", 0, 0)
    places = range(1, calls + 1)
    step = max(1, -(-len(places) // most))
    for name in ERRORS:
        for n in places[::step]:
            folder = work / f"{name}{n}"
            try:
                found, _ = outcome(folder, n, getattr(errno, name))
            except Exception as error:  # anything but the one error that is promised
                found = f"{type(error).__name__}: {error}"
            if found not in ("said", "said, and saved", "saved all the same"):
                failures.append(f"{name} at call {n}: {found}")
                found = "failed"
            counts[f"{name} {found}"] += 1
            shutil.rmtree(folder, ignore_errors=True)
    return counts, failures


def main() -> int:
    """Exit status 1 where a step was lost, or lost in silence."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10_000, help="places at which a call fails, of each error")
    options = parser.parse_args()
    work = os.environ.get("FAILING_DISK")
    if work is None:
        with tempfile.TemporaryDirectory() as folder:
            return with_failing_disk(folder)
    counts, failures = campaign(pathlib.Path(work), options.most)
    print(*failures, sep="\n")
    print(json.dumps({"failures": sum(counts.values()), "failed": len(failures), **dict(sorted(counts.items()))}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
