"""Damage the files of a run at random, and ask for them: is the damage noticed, and the step before it used?

    python tests/faults/damage.py --count 1000 --seed 0

A run here is two steps of a small training state in parameters, moments and a key, the second with held-out figures;
the policy before RL; and the attempts at the training problems. Each damage is one of: a flipped bit, a zeroed page of
4 KiB, a truncation, a deletion, in turn of any file of the newer step, of the manifest of that step, of the policy
before RL, and of the attempts. It must end as one of two things: all is read with the very bits that were saved
(harmless), or it is named, and of steps the older one is read with its own bits (noticed). Anything else is a failure:
wrong values, wrong figures, another error, a process that dies.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
from collections import Counter

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[2])

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from jaxrl_llm import manifest
from jaxrl_llm.checkpoint import CheckpointError, Checkpoints
from jaxrl_llm.metrics import RunError
from jaxrl_llm.runs import read_attempts, write_attempts

KINDS = ("bit", "page", "cut", "file")
OLD, NEW = 3, 7
FIGURES = {OLD: {}, NEW: {"eval/accuracy": 0.546875, "eval/pass@8": 0.8125}}
ATTEMPTS = np.random.default_rng(5).random((300, 8)) < 0.4
TARGETS = {
    "step": f"checkpoints/{NEW}/**/*",
    "manifest": f"checkpoints/{NEW}/digests.*.json",
    "reference": "reference/**/*",
    "attempts": "attempts.npy",
}


def state(seed: int) -> dict:
    """Leaves as a training state has them, of 200 kB in all."""
    rng = np.random.default_rng(seed)
    params = {name: rng.normal(size=(64, 130)).astype(np.float32) for name in ("attention", "mlp")}
    halves = jnp.asarray(rng.normal(size=(40, 33)), jnp.bfloat16)
    moments = {name: [x * 0.1, x**2] for name, x in params.items()}
    return jax.tree.map(jnp.asarray, {"params": params | {"head": halves}, "moments": moments, "step": np.int32(seed)})


def save_both(folder: pathlib.Path) -> None:
    """A folder with the two steps."""
    with Checkpoints(folder) as store:
        for step in (OLD, NEW):
            store.save(step, state(step), FIGURES[step])


def save_run(folder: pathlib.Path) -> None:
    """A folder with all that can be damaged."""
    save_both(folder / "checkpoints")
    with Checkpoints(folder / "reference", 1) as store:
        store.save(0, state(0))
    write_attempts(folder, ATTEMPTS)


def strike(file: pathlib.Path, kind: str, rng: np.random.Generator) -> None:
    """One damage. An empty file can only be deleted."""
    content = bytearray(file.read_bytes())
    if kind == "file" or not content:
        file.unlink()
        return
    place = int(rng.integers(len(content)))
    if kind == "bit":
        content[place] ^= 1 << int(rng.integers(8))
    elif kind == "page":
        start = place // 4096 * 4096
        content[start : start + 4096] = bytes(len(content[start : start + 4096]))
    else:
        del content[place:]
    file.write_bytes(content)


def outcome(folder: pathlib.Path) -> str:
    """What became of damaged checkpoints: harmless, noticed, or what went wrong."""
    told: list[str] = []
    try:
        with Checkpoints(folder, tell=told.append) as store:
            found = store.restore(state(0))
            figures = {step: manifest.read_manifests(folder / str(step))[0]["metrics"] for step in store.steps()}
    except CheckpointError as error:
        return f"nothing could be read: {error}"
    step = int(found["step"])
    same = jax.tree.all(jax.tree.map(np.array_equal, found, state(step)))
    if not same or step not in (OLD, NEW):
        return f"wrong values were read as step {step}"
    if step == OLD and not any(str(folder / str(NEW)) in text for text in told):
        return f"the step was passed over in silence: {told}"
    if any(figures[step] != FIGURES[step] for step in figures):
        return f"wrong figures were read: {figures}"
    return "noticed" if step == OLD else "harmless"


def outcome_of_one(target: str, folder: pathlib.Path) -> str:
    """The same of what there is one copy of: it is read as it was saved, or refused by its name."""
    try:
        if target == "attempts":
            same = np.array_equal(read_attempts(folder), ATTEMPTS)
        else:
            with Checkpoints(folder / target, 1) as store:
                same = jax.tree.all(jax.tree.map(np.array_equal, store.restore(state(0), 0), state(0)))
    except (CheckpointError, RunError) as error:
        return "noticed" if str(folder / target) in str(error) else f"it was not named: {error}"
    return "harmless" if same else "wrong values were read"


def campaign(count: int, seed: int, work: pathlib.Path) -> tuple[Counter, list[str]]:
    """Outcomes of so many damages, counted by kind and target, and what failed."""
    rng, counts, failures = np.random.default_rng(seed), Counter(), []
    whole = work / "whole"
    save_run(whole)
    for number in track(range(count), "damages", disable=not sys.stderr.isatty()):
        folder = work / "damaged"
        shutil.copytree(whole, folder)
        kind, target = KINDS[number % len(KINDS)], [*TARGETS][number // len(KINDS) % len(TARGETS)]
        files = sorted(path for path in folder.glob(TARGETS[target]) if path.is_file())
        file = files[int(rng.integers(len(files)))]
        strike(file, kind, rng)
        of_steps = target in ("step", "manifest")
        found = outcome(folder / "checkpoints") if of_steps else outcome_of_one(target, folder)
        if found not in ("noticed", "harmless"):
            failures.append(f"{number}: {kind} of {file.relative_to(folder)}: {found}")
            found = "failed"
        counts[f"{kind} {target} {found}"] += 1
        shutil.rmtree(folder)
    return counts, failures


def main() -> int:
    """Exit status 1 where a damage was neither noticed nor harmless."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        counts, failures = campaign(options.count, options.seed, pathlib.Path(work))
    print(*failures, sep="\n")
    print(json.dumps({"damages": options.count, "failed": len(failures), **dict(sorted(counts.items()))}))
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
