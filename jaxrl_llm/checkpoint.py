"""Checkpoints of a run, written by Orbax in the background and complete or absent."""

import pathlib
from typing import Any

import jax


class CheckpointError(ValueError):
    """A checkpoint that is asked for and is not there."""


class Checkpoints:
    """The newest `keep` checkpoints of a folder, by step."""

    def __init__(self, folder: pathlib.Path, keep: int = 2):
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """Step of the newest complete checkpoint; None: there is none."""
        return self._manager.latest_step()

    def save(self, step: int, tree: Any) -> None:
        """Copy the tree off the devices and write it in the background; a step that is there already stays."""
        if step not in self._manager.all_steps():
            self._manager.save(step, args=self._ocp.args.StandardSave(tree))

    def wait(self) -> None:
        """Block until all that was saved is on the disk."""
        self._manager.wait_until_finished()

    def restore(self, like: Any, step: int | None = None) -> Any:
        """The tree of a step (default: the newest), each leaf with the shape, type and sharding of that in `like`.

        Raises CheckpointError where the step does not exist.
        """
        steps = sorted(self._manager.all_steps())
        step = self.latest() if step is None else step
        if step not in steps:
            raise CheckpointError(f"{self.folder} holds no checkpoint of step {step} (there are: {steps or 'none'})")
        return self._manager.restore(step, args=self._ocp.args.StandardRestore(like))


def abstract(shapes: Any, shardings: Any) -> Any:
    """What `restore` takes as `like`, without any array: shapes and types with their shardings."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)
