"""Runs that train adapters: what moves and what must not, on one device and on eight, and what is left behind."""

import dataclasses
import functools
import json
import os
import shlex
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from learners import assert_close, assert_same, distance
from rich.console import Console

from jaxrl_llm import recipes
from jaxrl_llm.checkpoint import Checkpoints
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.export import export_run
from jaxrl_llm.inspect_run import load_run
from jaxrl_llm.metrics import RunError, read_metrics
from jaxrl_llm.policies.config import Lora
from jaxrl_llm.policies.hub.load import load_folder
from jaxrl_llm.policies.hub.peft_folder import load_adapter
from jaxrl_llm.policies.lora import merged
from jaxrl_llm.programs import Programs
from jaxrl_llm.report import overview
from jaxrl_llm.report_plots import read_runs
from jaxrl_llm.sharding import MeshShape, fetch, state_shardings
from jaxrl_llm.tasks import addition
from jaxrl_llm.train import train
from jaxrl_llm.types import Grade

STEPS = 2
LORA = Lora(rank=2, alpha=8.0)


def parity(answer, acted, truth):
    """The share of even tokens."""
    del truth
    even = jnp.sum(acted & (answer % 2 == 0), axis=-1) / jnp.sum(acted, axis=-1)
    components = jnp.repeat(even[..., None], len(addition().component_names), axis=-1)
    return Grade(reward=even, components=components, valid=jnp.ones(even.shape, bool))


TASK = dataclasses.replace(addition(digits=1), grade_fn=parity)


def config(sizes=(1, 1, 1), **changes):
    fixed = {"task": TASK, "recipe": recipes.grpo(kl_coefficient=0.1), "model": tiny.SMALL, "seed": 3, "lora": LORA}
    plain = {"prompts_per_step": 16, "answers_per_prompt": 4, "learning_rate": 1e-2, "steps": STEPS}
    plain |= {"mesh": MeshShape(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True)))}
    return Config(**(fixed | plain | {"warmup": WarmUp(max_steps=0, batch=8)} | changes))


@functools.cache
def run(sizes, **changes):
    """Programs, trunk before and states after a few steps; rollouts, metrics and credit of each, on the host."""
    programs = Programs(config(sizes, **changes), jax.devices()[: int(np.prod(sizes))])
    trunk = programs.fresh_params()
    before = fetch(trunk)
    state, reference = programs.begin(trunk)
    seen = []
    for step in range(1, STEPS + 1):
        rollout = programs.sample(programs.trained.acting(state.params), step)
        jax.block_until_ready(rollout)
        state, metrics, credit = programs.learn(state, reference, rollout)
        jax.block_until_ready((state, metrics, credit))
        seen.append(fetch((state, rollout, metrics, credit)))
    return programs, before, state, seen


@pytest.fixture
def quick(monkeypatch):
    """The backend's optimisations take most of the time, and have no part in how a program is cut."""
    monkeypatch.setattr(jax, "jit", tiny.jit)


@pytest.mark.parametrize("sizes", [(2, 2, 2), pytest.param((1, 8, 1), marks=pytest.mark.long)])
def test_steps_on_a_mesh_equal_those_on_one_device(sizes, quick):
    for ours, one in zip(run(sizes)[3], run((1, 1, 1))[3], strict=True):
        np.testing.assert_array_equal(ours[1].answer, one[1].answer)
        np.testing.assert_allclose(ours[3], one[3], atol=1e-5)
        for name, value in ours[2].items():
            np.testing.assert_allclose(value, one[2][name], atol=1e-5, rtol=1e-4, err_msg=name)
        assert_close(ours[0].moments, one[0].moments, atol=1e-5, rtol=1e-4)
        assert_close(ours[0].params, one[0].params, atol=1e-4)
    programs, _, state, _ = run(sizes)
    assert all(
        x.sharding == y.sharding for x, y in zip(*map(jax.tree.leaves, (programs.state_like(), state)), strict=True)
    )
    weights = programs.trained.merged(state.params)
    like = programs.trained.params_like()
    assert all(x.sharding == y.sharding for x, y in zip(*map(jax.tree.leaves, (weights, like)), strict=True))


def test_only_adapters_move_and_only_they_have_moments(quick):
    programs, before, state, seen = run((1, 1, 1))
    assert_same(fetch(programs.trained.trunk), before)
    start = jax.tree.leaves(programs.trained.fresh(before))
    assert all(distance(x, y) > 0 for x, y in zip(jax.tree.leaves(state.params), start, strict=True))
    shapes = sorted(x.shape for x in jax.tree.leaves(programs.learner.policy.shapes()))
    of_moments = sorted(x.shape for x in jax.tree.leaves(state.moments) if x.ndim)
    assert of_moments == sorted([*shapes, *shapes])
    adapter = 4 * sum(int(np.prod(shape)) for shape in shapes)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    assert size < 3 * adapter + 100, "adapters, two moments, and counters"
    counts = programs.trained.counts
    assert counts == {"all": sum(x.size for x in jax.tree.leaves(before)), "trained": adapter // 4}
    assert all(float(metrics["sampling/logp_difference_max"]) < 1e-5 for _, _, metrics, _ in seen)
    assert float(seen[0][2]["kl"]) == pytest.approx(0, abs=1e-9)
    assert float(seen[-1][2]["kl"]) > 1e-6, "the reference is the trunk alone"


def test_the_state_is_used_up_and_the_trunk_is_not(quick):
    programs, _, state, seen = run((1, 1, 1))
    trunk = programs.trained.trunk
    state, reference = jax.tree.map(jnp.copy, state), jax.tree.map(jnp.zeros_like, state.params)
    programs.learn(state, reference, seen[0][1])
    assert all(x.is_deleted() for x in jax.tree.leaves((state.params, state.moments)))
    assert not any(x.is_deleted() for x in jax.tree.leaves((reference, trunk)))
    assert programs.trained.trunk is trunk


def test_merged_weights_share_what_has_no_adapter(quick):
    programs, _, state, _ = run((1, 1, 1))
    weights, trunk = programs.trained.merged(state.params), programs.trained.trunk
    same = jax.tree.map(lambda x, y: x is y, weights, trunk)
    assert {name for name, kept in same["blocks"].items() if kept is False} == set(LORA.targets)
    assert same["embedding"]
    assert same["final_norm"]["scale"]
    assert_close(weights, merged(LORA, trunk, state.params))


@pytest.mark.long
def test_sampling_beside_the_trunk_gives_the_same_tokens(quick):
    lora = dataclasses.replace(LORA, merged=False)
    for ours, theirs in zip(run((1, 1, 1), lora=lora)[3], run((1, 1, 1))[3], strict=True):
        np.testing.assert_array_equal(ours[1].answer, theirs[1].answer)
        assert_close(ours[0].params, theirs[0].params, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["ppo", "prime,low=0,high=1", "t1,kl_coefficient=0.1"])
def test_second_networks_and_moving_references_stand_on_the_trunk(recipe, quick):
    programs, before, state, _ = run((1, 1, 1), recipe=recipe)
    assert_same(fetch(programs.trained.trunk), before)
    size = sum(x.nbytes for x in jax.tree.leaves(state))
    assert size < 8 * 4 * programs.trained.counts["trained"] + 1000, "no second trunk"


def small(folder, **options):
    """A whole run of two steps on eight devices."""
    fields = {"eval_problems": 8, "eval_samples": 2, "eval_every": 2, "checkpoint_every": 1, "prompts_per_step": 8}
    of = config(**fields, model=dataclasses.replace(tiny.SMALL, layers=1), mesh=MeshShape())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", tiny.jit)
        return train(of, folder, quiet=True, console=Console(quiet=True), **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return small(tmp_path_factory.mktemp("run") / "run")


@pytest.mark.long
def test_a_run_leaves_what_others_read(finished, tmp_path):
    folder = finished.folder
    programs, params, step = load_run(folder)
    assert step == 2
    assert_same(params, finished.params)
    row = overview(read_runs([folder])[0])
    counts = programs.trained.counts
    assert row["parameters trained"] == f"{counts['trained']:,} of adapters on {counts['all']:,}"
    assert all(x > 0 for x in read_metrics(folder)["grad_norm"][1])

    def places(policy):
        return state_shardings(programs.mesh, policy.init, jax.random.key(0))

    hub, weights = load_folder(export_run(folder, tmp_path / "merged"), places)
    assert_same(weights, params)
    export_run(folder, tmp_path / "adapter", adapter=True)
    lora, adapter = load_adapter(tmp_path / "adapter", hub.config, hub.vocab_size, places)
    assert lora == LORA
    with Checkpoints(folder / "reference", 1) as store:
        trunk = store.restore(programs.trained.params_like())
    assert_close(merged(lora, trunk, adapter), params)
    assert distance(trunk, params) > 0
    with pytest.raises(RunError, match="is not empty"):
        export_run(folder, tmp_path / "adapter", adapter=True)


@pytest.mark.long
def test_a_run_goes_on_from_its_trunk_and_adapters(finished, tmp_path):
    """The same numbers as of a run that never stopped."""

    def stop(*_):
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxrl_llm.train.write_report", stop)
        with pytest.raises(KeyboardInterrupt):
            small(folder)
    shutil.rmtree(folder / "checkpoints" / "2")
    assert_same(small(folder, resume=True).params, finished.params)


def test_what_adapters_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="variance_every measures gradients of all parameters"):
        config(variance_every=1)
    with pytest.raises(ConfigError, match="head of a tied model"):
        config(lora=Lora(rank=1, targets=("head",)))


LEARNS = shlex.split("""
    --task digit_sort,length=4,heldout=200 --steps 40 --prompts-per-step 16 --answers-per-prompt 8 --schedule constant
    --learning-rate 1e-3 --eval-every 40 --checkpoint-every 40 --warmup.max-steps 1500 --warmup.check-every 5
    --warmup.learning-rate 2e-3 --warmup.accuracy 0.45 --model.layers 2 --model.width 64 --model.heads 2
    --model.kv-heads 1 --model.head-size 32 --model.mlp-width 128 --no-model.tied
    --lora.rank 8 --lora.targets query key value out gate up down head
""")


@pytest.mark.long
def test_adapters_learn(tmp_path):
    """Sampled accuracy on held-out problems from about 9 to about 21 percent in 40 steps, by the command line."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, "-m", "jaxrl_llm", "train", *LEARNS, "--quiet", "--out", str(tmp_path / "run")]
    subprocess.run(command, env=environment, check=True, timeout=500)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    before, after = (summary[when]["eval/pass@1"] for when in ("before", "after"))
    assert after > 1.5 * before > 0.05
    assert summary["parameters"]["trained"] < 0.3 * summary["parameters"]["all"]
