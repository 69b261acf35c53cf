"""A run inside a compiled sweep is the run that `train` would do. Equal: answers, grades, held-out figures; float32
metrics differ by rounding, because the compiler fuses a scan under vmap otherwise than a single step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from rich.console import Console

from experiments.sweep import base_policy, evaluator_of
from experiments.whole_run import by_hand, compiled, on_one_device
from jaxrl_llm.metrics import read_metrics
from jaxrl_llm.random import Stream, answer_keys, stream_key
from jaxrl_llm.train import train
from jaxrl_llm.warmup import attempts

COUNTS = ("reward/mean", "completions/mean_length", "frac_reward_zero_std", "num_tokens", "reward/component")
SILENT = Console(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("base")


def assert_same_run(one, other):
    assert one.looks == other.looks
    assert one.failed == other.failed
    assert one.metrics.keys() == other.metrics.keys()
    for name in one.metrics:
        if name in COUNTS:
            np.testing.assert_array_equal(one.metrics[name], other.metrics[name], err_msg=name)
        else:
            # Rounding of a step is 1e-6 and five steps amplify it; log-probabilities of ~5 nats bound the differences.
            np.testing.assert_allclose(one.metrics[name], other.metrics[name], rtol=1e-3, atol=2e-5, err_msg=name)


SLOW = ("remax", "dapo", "rif_rft,attempts=4", "ppo", "clip_cov_grpo", "t1")


@pytest.mark.parametrize("recipe", ["rloo", *(pytest.param(name, marks=pytest.mark.long) for name in SLOW)])
def test_runs_of_one_program_are_those_of_the_loop(recipe, folder):
    """Greedy baselines, pools, screenings, second networks, draws of the objective, moving references."""
    config = dataclasses.replace(small.BASE, recipe=recipe)
    programs = on_one_device(config)
    params = base_policy(programs, folder, SILENT)
    if config.recipe.screening:
        programs.screen(attempts(programs, params))
    runs = compiled(programs, quick=True)(params, [7, 8], [3e-3, 1e-2])
    alone = on_one_device(dataclasses.replace(config, seed=8, learning_rate=1e-2))
    alone.agenda = programs.agenda
    assert_same_run(runs[1], by_hand(alone, evaluator_of(alone), params))
    assert not np.array_equal(runs[0].metrics["reward/mean"], runs[1].metrics["reward/mean"])


def test_a_run_of_the_base_seed_is_the_run_of_train(tmp_path, monkeypatch):
    """Warm-up and all, both on one device: on several the order of sums, and so the rounding, is another."""
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    result = train(small.BASE, tmp_path / "run", quiet=True, console=SILENT)
    (record,) = small.sweep(seeds=[small.BASE.seed]).run(tmp_path / "sweep", console=SILENT)
    assert record["figures"] == pytest.approx(result.after, rel=1e-8)
    assert record["before"] == pytest.approx(result.before, rel=1e-8)
    assert record["before"] != record["figures"]
    log = read_metrics(result.folder)
    for name, (steps, values) in record["curves"].items():
        looks = name.startswith("eval/")  # `train` logs those of step 0 in its summary alone
        assert steps[looks:] == log[name][0]
        np.testing.assert_allclose(values[looks:], log[name][1], rtol=1e-3, atol=2e-5, err_msg=name)


def test_decoding_runs_leave_the_loop_together():
    """The counter of tokens is one number for all runs. With one a run, `vmap` would copy the caches at every token, to
    keep those of the runs that have ended."""
    programs = on_one_device(small.BASE)
    params = jax.eval_shape(programs.fresh_params)
    asked = jax.tree.map(lambda x: x[:2], small.BASE.task.train)
    rows = jnp.arange(2)  # made out here: inside a trace it may be a constant that is no array of JAX

    def counter(axis):
        def answers(params, seed, rate):
            keys = answer_keys(stream_key(seed, Stream.ROLLOUT), 1, rows, 4)
            run = programs.traced(seed, rate, axis)
            return run.answers(params, asked.prompt, asked.prompt_mask, keys, small.BASE.sampling)

        many = jax.vmap(answers, (None, 0, 0), axis_name="runs")
        jaxpr = jax.make_jaxpr(many)(params, np.arange(3), np.ones(3, np.float32))
        (loop,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "while"]
        return loop.outvars[0].aval.shape

    assert counter("runs") == ()
    assert counter(None) == (3,)
