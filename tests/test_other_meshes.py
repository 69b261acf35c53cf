"""A run goes on on another mesh than it was begun on: the state is read bit by bit, and the numbers stay close."""

import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from jaxrl_llm import programs as programs_module
from jaxrl_llm.checkpoint import Checkpoints
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.manifest import named
from jaxrl_llm.metrics import RunError, read_metrics
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.programs import Programs
from jaxrl_llm.runs import moved, read_config
from jaxrl_llm.sharding import MeshShape, fetch, make_mesh, place
from jaxrl_llm.tasks import digit_sort
from jaxrl_llm.train import train

TASK = digit_sort(length=2, heldout=20)
SMALL = DecoderConfig(layers=1, width=16, heads=4, kv_heads=2, head_size=8, mlp_width=32)
MESHES = {
    "1": (1, 1, 1),
    "2 fsdp": (1, 2, 1),
    "2 tensor": (1, 1, 2),
    "4 data x tensor": (2, 1, 2),
    "4 fsdp x tensor": (1, 2, 2),
    "8 data x fsdp x tensor": (2, 2, 2),
    "8 data x fsdp": (2, 4, 1),
}
FEW = [("8 data x fsdp x tensor", "1"), ("1", "4 fsdp x tensor"), ("2 tensor", "8 data x fsdp")]


def shape(name):
    return MeshShape(**dict(zip(("data", "fsdp", "tensor"), MESHES[name], strict=True)))


def config(**changes):
    plain = {"prompts_per_step": 8, "answers_per_prompt": 4, "steps": 4, "eval_every": 2, "checkpoint_every": 2}
    plain |= {"eval_problems": 16, "eval_samples": 2, "samples_every": 2, "recipe": "spo"}
    plain |= {"warmup": WarmUp(max_steps=60, check_every=20, batch=40, learning_rate=1e-2, accuracy=0.3)}
    return Config(task=TASK, model=SMALL, **(plain | changes))


def programs_on(name, **changes):
    mesh = shape(name)
    return Programs(config(mesh=mesh, **changes), jax.devices()[: int(np.prod(MESHES[name]))])


def filled(like, seed=0):
    """A state of the shapes, types and places of `like` in which no two numbers are alike."""
    rng = np.random.default_rng(seed)

    def fill(x):
        values = rng.normal(size=x.shape) * (100 if np.issubdtype(x.dtype, np.integer) else 1)
        return place(np.asarray(values, x.dtype), x.sharding)

    return jax.tree.map(fill, like)


def assert_read_alike(written, reads, folder):
    """What is saved as `written` says is read bit by bit as each of the others says, in the places that it says."""
    saved = filled(written)
    with Checkpoints(folder) as store:
        store.save(1, saved)
    for like in reads:
        with Checkpoints(folder) as store:
            found = store.restore(like)
        jax.tree.map(np.testing.assert_array_equal, fetch(found), fetch(saved))
        jax.tree.map(lambda x, wanted: x.sharding == wanted.sharding or pytest.fail(f"{x.sharding}"), found, like)


@pytest.mark.parametrize(("written", "read"), FEW)
def test_the_whole_state_is_read_on_another_mesh(written, read, tmp_path):
    written, read = (programs_on(name).state_like() for name in (written, read))
    assert_read_alike(written, [read], tmp_path)
    for part in (".params", ".mu", ".nu", ".advantage", ".step"):  # parameters, moments, tracker, cursor
        assert any(part in name for name, _ in named(read)), part


# State of an estimator, of a controller of rewards, and of a second network.
@pytest.mark.long
@pytest.mark.parametrize("recipe", ["spo", "hypervolume_weighting", "prime,low=0,high=1"])
def test_every_mesh_reads_what_every_other_wrote(recipe, tmp_path):
    likes = {name: programs_on(name, recipe=recipe).state_like() for name in MESHES}
    for number, (name, like) in enumerate(likes.items()):
        assert_read_alike(like, [likes[other] for other in likes if other != name], tmp_path / str(number))


def on(name, monkeypatch):
    """Only so many devices are there as the mesh takes."""
    count = int(np.prod(MESHES[name]))
    monkeypatch.setattr(programs_module, "make_mesh", lambda mesh, _: make_mesh(mesh, jax.devices()[:count]))
    return config(mesh=shape(name))


@pytest.mark.slow
def test_a_run_goes_on_on_another_mesh(tmp_path, monkeypatch, capsys):
    first, second = "8 data x fsdp x tensor", "2 tensor"
    whole, out = tmp_path / "whole", tmp_path / "moved"
    train(on(first, monkeypatch), whole, quiet=True, console=Console(quiet=True))
    shutil.copytree(whole, out)
    shutil.rmtree(out / "checkpoints" / "4")
    other = on(second, monkeypatch)
    train(other, out, resume=True, quiet=True)
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "resumed on a mesh of data 1 x fsdp 1 x tensor 2, before of data 2 x fsdp 2 x tensor 2: the same bits" in told
    )
    ours, theirs = read_metrics(out), read_metrics(whole)
    assert ours.keys() == theirs.keys()
    for name in (name for name in ours if not name.startswith("perf/")):
        assert ours[name][0] == theirs[name][0], name
        # The gap between sampler and learner is rounding and nothing else, which another mesh does in another order.
        small = 2e-5 if name.startswith("sampling/logp_difference") else 2e-6
        np.testing.assert_allclose(ours[name][1], theirs[name][1], rtol=1e-4, atol=small, err_msg=name)
        np.testing.assert_array_equal(ours[name][1][:1], theirs[name][1][:1], err_msg=f"{name}: what was logged before")
    assert min(theirs["grad_norm"][1]) > 0
    assert ours["grad_norm"][1] != theirs["grad_norm"][1], "another mesh adds up in another order"
    # The folder is now one of that mesh: it is read there, and going on there once more is nothing to speak of.
    assert Config.from_json(read_config(out)).mesh == shape(second)
    devices = {"data": 1, "fsdp": 1, "tensor": 2}
    assert json.loads((out / "config.json").read_text())["devices"] == devices
    assert moved(out, other, devices) == ""
    with pytest.raises(RunError, match="was run with seed=0, not 1: resume it as it was begun"):
        train(config(mesh=shape(second), seed=1), out, resume=True)
