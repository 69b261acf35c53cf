"""Parameters out of Orbax checkpoints of runs and of bare trees, and the names of what does not fit."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny

from jaxrl_llm import published
from jaxrl_llm.checkpoint import Checkpoints
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import save_folder
from jaxrl_llm.policies.hub.orbax_files import load_orbax
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

CONFIG = DecoderConfig(layers=2, width=32, heads=4, kv_heads=2, head_size=8, mlp_width=48, norm_eps=1e-5)
HUB = Hub(config=CONFIG, family="llama", vocab_size=40, max_length=64, bos=1, eos=(2,), pad=0)


def in_parts(policy):
    mesh = make_mesh(MeshShape(data=1, fsdp=4, tensor=2))
    return state_shardings(mesh, policy.init, jax.random.key(0))


def parameters(seed=0):
    return tiny.decoder(HUB.vocab_size, seed, **{f.name: getattr(CONFIG, f.name) for f in dataclasses.fields(CONFIG)})[
        1
    ]


def bare(path, tree):
    with ocp.StandardCheckpointer() as saver:
        saver.save(path, tree)
    return path


def assert_same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_bare_tree_comes_back_in_parts(tmp_path):
    wanted = parameters()
    found = load_orbax(bare(tmp_path / "tree", wanted), HUB, in_parts)
    assert_same(found, wanted)
    assert len(found["blocks"]["query"].sharding.device_set) == 8
    assert found["blocks"]["query"].addressable_shards[0].data.size == wanted["blocks"]["query"].size // 8


def test_a_training_state_gives_its_parameters_and_of_several_steps_the_newest(tmp_path):
    state = lambda seed: {"params": parameters(seed), "moments": [jnp.ones(3)], "step": jnp.int32(seed)}  # noqa: E731
    with Checkpoints(tmp_path / "run" / "checkpoints") as store:
        store.save(9, state(9))
        store.save(10, state(10))
        store.wait()
    for place, seed in (("run", 10), ("run/checkpoints", 10), ("run/checkpoints/9", 9)):
        assert_same(load_orbax(tmp_path / place, HUB, in_parts), parameters(seed))
    save_folder(tmp_path / "out", HUB, load_orbax(str(tmp_path / "run"), HUB, in_parts))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_folder_with_a_checkpoint_in_place_of_safetensors_is_a_published_model(tmp_path):
    save_folder(tmp_path, HUB, parameters(0))
    bare(tmp_path / "5", parameters(1))
    assert_same(published.load(str(tmp_path), in_parts), parameters(0))
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    assert_same(published.load(str(tmp_path), in_parts), parameters(1))


def test_half_precision_is_read_as_float32(tmp_path):
    halves = jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters())
    found = load_orbax(bare(tmp_path / "tree", halves), HUB, in_parts)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("float32")}
    assert_same(found, jax.tree.map(lambda x: x.astype(jnp.float32), halves))


def damaged(change):
    params = jax.tree.map(lambda x: x, parameters())
    change(params)
    return params


def put(value):
    return lambda params: params["blocks"].__setitem__("out", value(params["blocks"]["out"]))


BROKEN = {
    "missing": (lambda params: params["blocks"].pop("gate"), "tensors are missing: blocks.gate$"),
    "extra": (lambda params: params.update(more=jnp.ones(2)), "tensors have no place in this model: more$"),
    "shape": (put(lambda x: x[..., :5]), r"blocks.out is of another shape: .*, 5\] instead of"),
    "transposed": (put(lambda x: x.T), "blocks.out is transposed: "),
    "whole numbers": (put(lambda x: x.astype(jnp.int32)), r"not floating-point numbers: blocks.out \(int32\)"),
    "not finite": (put(lambda x: x.at[0].set(jnp.nan)), "blocks.out holds weights that are not finite"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_fit_is_named(name, tmp_path):
    change, words = BROKEN[name]
    path = bare(tmp_path / "tree", damaged(change))
    with pytest.raises(ValueError, match=words) as error:
        load_orbax(path, HUB, in_parts)
    assert str(path) in str(error.value)


def test_absent_and_torn_checkpoints_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no Orbax checkpoint in .*nothing"):
        load_orbax(tmp_path / "nothing", HUB, in_parts)
    path = bare(tmp_path / "tree", parameters())
    (path / "_METADATA").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=str(path)):
        load_orbax(path, HUB, in_parts)


TORN = """
import sys
import test_orbax_files as t

try:
    t.load_orbax(sys.argv[1], t.HUB, t.in_parts)
except ValueError as error:
    print("refused:", sys.argv[1] in str(error))
"""


@pytest.mark.long
def test_torn_data_is_named(tmp_path):
    """In a process of its own: where one read fails Orbax leaves the others unawaited, of which Python warns late."""
    path = bare(tmp_path / "tree", parameters())
    data = max((file for file in path.rglob("*") if file.is_file()), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[:100])
    here = pathlib.Path(__file__)
    places = os.pathsep.join(map(str, (here.parent, here.parents[1], here.parents[2])))
    done = subprocess.run(
        [sys.executable, "-c", TORN, str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=os.environ | {"PYTHONPATH": places},
    )
    assert "refused: True" in done.stdout, done.stderr
