"""Checkpoints of a run: written by Orbax in the background, complete or absent, and checked bit by bit when read."""

import contextlib
import dataclasses
import math
import pathlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxrl_llm import heartbeat, manifest
from jaxrl_llm.distributed import RankError, is_first, together
from jaxrl_llm.glossary import meaning
from jaxrl_llm.manifest import DamageError
from jaxrl_llm.sharding import parts_here


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or one that is asked for and is not there or not what was saved.

    `status`: the exit status; a step that is not there was a wrong request, the rest is no fault of the request.
    """

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay beside the newest `Config.keep_checkpoints`, and how long one may take to be written. It
    changes no number of a run."""

    every: int = 0  # those whose step is a multiple of this; 0: none
    best: str = ""  # that with the highest figure of this name, such as eval/accuracy, among those at an evaluation
    patience: float = 1800.0  # seconds until a checkpoint that has not reached the disk ends the run

    def __post_init__(self):
        if not self.patience > 0:
            raise ValueError(f"keep.patience must be above 0 s, not {self.patience:g}")
        if self.every < 0:
            raise ValueError(f"keep.every must be 0 or more, not {self.every}")
        if self.best and not (meaning(self.best) and self.best.startswith("eval/")):
            raise ValueError(f"keep.best must be a held-out figure such as eval/accuracy, not {self.best!r}")


def kept(metrics: Mapping[int, Mapping[str, float]], last: int, keep: Keep) -> set[int]:
    """The steps that stay, of those whose figures are given."""
    steps = sorted(metrics)
    stay = set(steps[-last:]) | {step for step in steps if keep.every and step % keep.every == 0}
    known = [step for step in steps if keep.best in metrics[step]]
    return stay | set(sorted(known, key=lambda step: metrics[step][keep.best])[-1:])  # of equal ones the newest


class Checkpoints:
    """The checkpoints of a folder, by step: the newest `last`, and what else is to be kept.

    One is saved at a time. It counts once its manifests are there (see `manifest`), and only then are older ones
    deleted, so whatever happens while one is written, the one before it can be read.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        last: int = 2,
        keep: Keep | None = None,
        tell: Callable[[str], None] = lambda text: print(text, file=sys.stderr),
    ):
        import orbax.checkpoint as ocp

        self.folder, self._last, self._keep, self._tell = folder.absolute(), last, keep or Keep(), tell
        seconds = math.ceil(self._keep.patience)
        self._store = ocp.StandardCheckpointer(async_options=ocp.AsyncOptions(timeout_secs=seconds))
        self._saving: _Saving | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        try:
            self.wait()
        except CheckpointError as error:  # what is under way already says more
            if kind is None:
                raise
            self._tell(str(error))
        finally:
            with contextlib.suppress(Exception):  # it raises once more what a save has raised
                self._store.close()

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints."""
        return [step for step in self._folders() if manifest.is_finished(self._path(step))]

    def _folders(self) -> list[int]:
        """Steps of all checkpoints, finished or not."""
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in there if path.name.isdecimal())

    def latest(self) -> int | None:
        """Step of the newest finished checkpoint; None: there is none."""
        return max(self.steps(), default=None)

    def save(self, step: int, tree: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Copy the tree off the devices and write it in the background; a step that is there already stays.

        `metrics` are the held-out figures of the step, if it was evaluated. Raises CheckpointError where the checkpoint
        before this one could not be written.
        """
        self.wait()
        if step in self._folders():
            return
        leaves = {name: parts_here(x) for name, x in manifest.named(tree)}
        try:
            self._store.save(self._path(step), tree)
        except Exception as error:  # Orbax and its store raise whatever the system gives them
            raise self._failure(step, error) from error
        self._saving = _Saving(step, lambda: self._finish(step, leaves, metrics or {}))

    def wait(self) -> None:
        """Block until all that was saved is on the disk. Raises CheckpointError where it cannot be."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        error = saving.outcome(self._keep.patience)
        if error is not None:
            raise self._failure(saving.step, error) from error

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The tree of a step (default: the newest good one), each leaf with shape, type and sharding of that in `like`.

        A damaged or unfinished step is named and passed over where no step is asked for. Raises CheckpointError where
        the step, or any good one, does not exist.
        """
        steps = self._folders()
        if step is not None:
            if step not in steps:
                there = f"there are: {steps or 'none'}"
                raise CheckpointError(f"{self.folder} holds no checkpoint of step {step} ({there})", status=2)
            return self._read(like, step)
        return self._newest(like)[1]

    def _newest(self, like: Any) -> tuple[int, Any]:
        steps = self._folders()
        for step in reversed(steps):
            try:
                return step, self._read(like, step)
            except (CheckpointError, RankError) as error:
                self._tell(str(error))
        raise CheckpointError(f"{self.folder} holds no checkpoint that can be used (there are: {steps or 'none'})")

    def take_up(self, like: Any) -> tuple[int, Any] | None:
        """The newest good step and its tree, to go on from: everything else that is not good is deleted.

        None where nothing was finished before the first step, so that nothing is lost by starting over. Raises
        CheckpointError where there are steps and none of them is good.
        """
        steps, good = self._folders(), self.steps()
        if not good and steps in ([], [0]):
            self.clear()
            return None
        step, tree = self._newest(like)
        together(lambda: self._tidy([s for s in steps if s > step or s not in good]))
        return step, tree

    def clear(self) -> None:
        """Delete all of them: a run starts over."""
        together(lambda: self._tidy(self._folders()))

    def _read(self, like: Any, step: int) -> Any:
        """Each stage is one that all processes end before any begins the next, in which they wait for each other."""
        folder = self._path(step)

        def stage(work: Callable[[], Any]) -> Any:
            try:
                return work()
            except DamageError as error:
                raise CheckpointError(str(error)) from error
            except Exception as error:  # a damaged file may make the readers raise anything
                raise CheckpointError(f"{folder} cannot be read: {_brief(error)}") from error

        manifests = together(lambda: stage(lambda: manifest.require_files(folder)))
        tree = together(lambda: stage(lambda: self._store.restore(folder, like)))
        together(lambda: stage(lambda: manifest.require_leaves(folder, manifests, tree)))
        return tree

    def _finish(self, step: int, leaves: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        self._store.wait_until_finished()
        manifest.write_manifest(self._path(step), leaves, metrics, jax.process_index(), jax.process_count())
        if is_first():  # another would read what process 0 is deleting
            known = {s: manifest.read_manifests(self._path(s))[0]["metrics"] for s in self.steps()}
            self._delete([s for s in known if s not in kept(known, self._last, self._keep)])

    def _tidy(self, steps: list[int]) -> None:
        """Delete these steps, and what an interrupted save has left."""
        self._delete(steps)
        for rest in self.folder.glob("*.orbax-checkpoint-tmp*") if is_first() else ():
            shutil.rmtree(rest)

    def _delete(self, steps: list[int]) -> None:
        for step in steps if is_first() else ():
            manifest.forget(self._path(step))
            shutil.rmtree(self._path(step))

    def _path(self, step: int) -> pathlib.Path:
        return self.folder / str(step)

    def _failure(self, step: int, error: BaseException) -> CheckpointError:
        good = [s for s in self.steps() if s != step]
        last = f"the newest good one is that of step {good[-1]}" if good else "there is none before it"
        return CheckpointError(f"{self._path(step)} could not be saved: {_brief(error)}; {last}")


class _Saving:
    """The rest of a save, on a thread that nobody waits for at the end of the program."""

    def __init__(self, step: int, work: Callable[[], None]):
        self.step, self._error = step, None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True, name=f"checkpoint {step}")
        self._thread.start()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:  # raised again by whoever waits
            self._error = error

    def outcome(self, patience: float) -> BaseException | None:
        """Wait for it, for so many seconds at most; what went wrong. A supervisor sees that this is not stuck."""
        deadline = time.monotonic() + patience
        while self._thread.is_alive():
            left = deadline - time.monotonic()
            if left <= 0:
                return TimeoutError(f"it has not reached the disk within {patience:g} s (keep.patience)")
            heartbeat.go_on()
            self._thread.join(min(left, heartbeat.EVERY))
        return self._error


def _brief(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def abstract(shapes: Any, shardings: Any) -> Any:
    """What `restore` takes as `like`, without any array: shapes and types with their shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
