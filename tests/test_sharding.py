"""A step on eight devices is the step on one, and every array lives where it should."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jax.sharding import PartitionSpec

from jaxrl_llm import recipes
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.programs import Programs
from jaxrl_llm.sharding import MeshShape, born_sharded, fetch, make_mesh, must_block, prompt_shards
from jaxrl_llm.tasks import addition
from jaxrl_llm.types import Grade

MESHES = {"8x1x1": (8, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2)}
STEPS = 3


def parity(answer, acted, truth):
    """The share of even tokens; an answer that begins with the token 3 cannot be graded."""
    del truth
    even = jnp.sum(acted & (answer % 2 == 0), axis=-1) / jnp.sum(acted, axis=-1)
    return Grade(reward=even, components=even[..., None], valid=answer[..., 0] != 3)


TASK = dataclasses.replace(addition(digits=1), grade_fn=parity)


def shape(sizes):
    return MeshShape(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))


def config(sizes=(1, 1, 1), **changes):
    fixed = {"task": TASK, "recipe": recipes.grpo(kl_coefficient=0.1), "model": tiny.SMALL, "seed": 3}
    plain = {"prompts_per_step": 16, "answers_per_prompt": 4, "accumulation": 2, "learning_rate": 1e-2}
    return Config(**fixed, mesh=shape(sizes), warmup=WarmUp(max_steps=0, batch=8), **(plain | changes))


@functools.cache
def run(sizes):
    """Programs, states, rollouts, metrics and credit of a few steps; everything but the first on the host."""
    programs = Programs(config(sizes), jax.devices()[: int(np.prod(sizes))])
    params = programs.fresh_params()
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    state = programs.start(programs.learner, params)
    seen = []
    for step in range(1, STEPS + 1):
        rollout = programs.sample(state.params, step)
        jax.block_until_ready(rollout)
        state, metrics, credit = programs.learn(state, reference, rollout)
        # Programs in flight on several CPU "devices" deadlock in their all-reduce.
        jax.block_until_ready((state, metrics, credit))
        seen.append(fetch((state, rollout, metrics, credit)))
    return programs, state, rollout, seen


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The backend's optimisations take most of the time, and have no part in how a program is cut."""
    monkeypatch.setattr(jax, "jit", tiny.jit)


@pytest.mark.parametrize("mesh", MESHES)
def test_steps_on_a_mesh_equal_those_on_one_device(mesh):
    for step, (ours, one) in enumerate(zip(run(MESHES[mesh])[3], run((1, 1, 1))[3], strict=True), start=1):
        state, rollout, metrics, credit = ours
        state_1, rollout_1, metrics_1, credit_1 = one
        np.testing.assert_array_equal(rollout.answer, rollout_1.answer, err_msg=f"tokens of step {step}")
        assert 0 < np.mean(rollout.valid) < 1
        assert np.std(credit) > 0.1
        np.testing.assert_array_equal(rollout.valid, rollout_1.valid)
        np.testing.assert_allclose(rollout.policy_logp, rollout_1.policy_logp, atol=1e-5)
        np.testing.assert_allclose(credit, credit_1, atol=1e-5, err_msg=f"advantages of step {step}")
        assert set(metrics) == set(metrics_1)
        for name, value in metrics.items():
            np.testing.assert_allclose(value, metrics_1[name], atol=1e-5, rtol=1e-4, err_msg=f"{name}, step {step}")
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-4), state.moments, state_1.moments
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.params, state_1.params)


def local(array):
    """Shape of what the first device holds."""
    return array.addressable_shards[0].data.shape


def test_parameters_moments_and_rollouts_are_cut_by_their_names():
    _, state, rollout, _ = run((2, 2, 2))
    layers, width, heads, kv_heads, size, mlp = 2, 16, 4, 2, 8, 32
    expected = {
        "query": (layers, width // 2, heads // 2, size),
        "key": (layers, width // 2, kv_heads // 2, size),
        "value": (layers, width // 2, kv_heads // 2, size),
        "out": (layers, heads // 2, size, width // 2),
        "gate": (layers, width // 2, mlp // 2),
        "up": (layers, width // 2, mlp // 2),
        "down": (layers, mlp // 2, width // 2),
    }
    adam = next(x for x in jax.tree.leaves(state.moments, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(x, "mu"))
    for tree in (state.params, adam.mu, adam.nu):
        assert {name: local(tree["blocks"][name]) for name in expected} == expected
        assert local(tree["blocks"]["mlp_norm"]["scale"]) == (layers, width)
        assert local(tree["embedding"]) == (15, width // 2), "two devices do not divide a vocabulary of 15"
    assert local(rollout.answer) == (16 // 4, 4, TASK.answer_length)
    assert local(rollout.reward) == (16 // 4, 4)


def test_one_axis_of_eight_cuts_what_it_divides():
    _, state, rollout, _ = run((1, 8, 1))
    assert local(state.params["blocks"]["query"]) == (2, 2, 4, 8)
    assert local(state.params["embedding"]) == (15, 2)
    assert local(rollout.answer) == (2, 4, TASK.answer_length)
    _, state, rollout, _ = run((8, 1, 1))
    assert local(state.params["blocks"]["query"]) == (2, 16, 4, 8)
    assert local(rollout.answer) == (2, 4, TASK.answer_length)


def test_parameters_are_born_in_their_place(monkeypatch):
    """One program makes them, and gives every device its share; nothing is moved afterwards."""
    monkeypatch.delattr(jax, "device_put")
    names = nn.with_logical_partitioning(nn.initializers.normal(1.0), ("embed", "mlp"))

    def make(key):
        return {"w": names(key, (64, 6), jnp.float32), "free": jnp.ones((8,))}

    tree, shardings = born_sharded(make_mesh(shape((1, 8, 1))), make, jax.random.key(0))
    assert shardings["w"].spec == PartitionSpec("fsdp", "tensor")
    assert shardings["free"].spec == PartitionSpec()
    assert tree["w"].sharding == shardings["w"]
    assert local(tree["w"]) == (8, 6)
    np.testing.assert_allclose(tree["w"], jax.random.normal(jax.random.key(0), (64, 6)), rtol=1e-5)


def test_a_run_starts_from_the_same_parameters_on_every_mesh():
    one, eight = (fetch(run(sizes)[0].fresh_params()) for sizes in ((1, 1, 1), (2, 2, 2)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), one, eight)


def test_the_state_that_goes_in_is_used_up():
    programs, _, rollout, _ = run((1, 1, 1))
    state = programs.start(programs.learner, programs.fresh_params())
    reference = programs.fresh_params()
    programs.learn(state, reference, rollout)
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.moments)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((reference, rollout)))


def test_a_state_is_restored_into_its_place(monkeypatch):
    programs, state, _, _ = run((2, 2, 2))
    monkeypatch.undo()
    like, leaves = jax.tree.leaves(programs.state_like()), jax.tree.leaves(state)
    assert [(x.shape, x.dtype, x.sharding) for x in like] == [(x.shape, x.dtype, x.sharding) for x in leaves]


def test_meshes_are_arranged():
    assert dict(make_mesh(MeshShape()).shape) == {"data": 1, "fsdp": 8, "tensor": 1}
    mesh = make_mesh(MeshShape(data=-1, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert prompt_shards(mesh) == 4
    assert must_block(mesh)
    assert not must_block(make_mesh(MeshShape(), jax.devices()[:1]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [((3, 1, 1), "mesh 3x1x1 .* 8 devices"), ((2, 2, 4), "mesh 2x2x4 .* 8 devices"), ((3, -1, 1), "3x-1x1 .* 8 dev")],
)
def test_meshes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        make_mesh(shape(sizes))


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -2, 1), (-1, -1, 1)])
def test_axes_without_a_size_are_refused(sizes):
    with pytest.raises(ValueError, match="mesh ax"):
        shape(sizes)


@pytest.mark.parametrize(
    ("changes", "message", "nearest"),
    [
        (
            {"accumulation": 1, "prompts_per_step": 12},
            "prompts_per_step=12 must be a multiple of .* = 8: nearest 16",
            16,
        ),
        ({"accumulation": 1, "prompts_per_step": 2}, "prompts_per_step=2 .*: nearest 8", 8),
        ({"accumulation": 16}, "accumulation=16 leaves .* 8 shards .*: nearest 2", 2),
        ({"prompts_per_step": 32, "accumulation": 8}, "accumulation=8 leaves .* nearest 4", 4),
    ],
)
def test_batches_that_devices_cannot_share_are_refused_with_the_nearest(changes, message, nearest):
    with pytest.raises(ConfigError, match=message):
        Programs(config((1, 8, 1), **changes))
    Programs(config((1, 8, 1), **(changes | {list(changes)[-1]: nearest})))
