"""After the first step nothing is compiled any more."""

import dataclasses

import jax
import jax.monitoring
import jax.numpy as jnp
import pytest
import tiny

from jaxrl_llm import recipes
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.evaluate import Evaluator
from jaxrl_llm.programs import Programs
from jaxrl_llm.sharding import MeshShape, fetch

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: COMPILED.append(event) if event.startswith("/jax/core/compile/") else None
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The first compilation is dear and not what is tested."""
    monkeypatch.setattr(jax, "jit", tiny.jit)


def compilations(work):
    """Programs traced, lowered or compiled by `work()`; a hit in the cache on the disk counts, too."""
    COMPILED.clear()
    work()
    return len(COMPILED)


def test_the_counter_counts_a_compilation_for_every_new_shape():
    twice = tiny.jit(lambda x: 2 * x)
    inputs = [jnp.zeros(n) for n in (3, 3, 4, 5)]
    assert [compilations(lambda x=x: twice(x)) > 0 for x in inputs] == [True, False, True, True]


def test_the_counter_counts_a_value_that_is_baked_in():
    inputs = [jnp.zeros(3) + n for n in (1, 2)]
    powers = tiny.jit(lambda x, n: x**n, static_argnums=1)
    assert all(compilations(lambda x=x, n=n: powers(x, n)) > 0 for n, x in enumerate(inputs))


def run_of(mesh, devices):
    config = Config(
        task="addition,digits=1",
        recipe=recipes.bnpo(),
        model=tiny.SMALL,
        prompts_per_step=8,
        answers_per_prompt=4,
        epochs=2,
        warmup=WarmUp(max_steps=3, batch=8),
        mesh=mesh,
    )
    programs = Programs(config, jax.devices()[:devices])
    return programs, Evaluator(programs.policy, programs.task, programs.mesh, seed=0, problems=12, samples=2, batch=8)


@pytest.mark.parametrize(("mesh", "devices"), [(MeshShape(), 1), (MeshShape(fsdp=2, tensor=2), 4)], ids=["1", "1x2x2"])
def test_nothing_is_compiled_after_the_first_step(mesh, devices):
    """Twenty steps on varying rows, with evaluations among them and one batch that is refused."""
    programs, evaluator = run_of(mesh, devices)
    params = programs.fresh_params()
    reference = jax.tree.map(lambda x: x.copy(), params)
    held = {"state": programs.start(programs.learner, params)}
    nan = programs.sample(params, 1).reward * jnp.nan

    def step(number):
        rollout = programs.sample(held["state"].params, number)
        jax.block_until_ready(rollout)
        if number == 5:
            rollout = dataclasses.replace(rollout, reward=nan)
        held["state"], metrics, _ = programs.learn(held["state"], reference, rollout)
        fetch((held["state"].step, metrics))
        if number % 5 == 1:
            evaluator(held["state"].params, number)

    assert compilations(lambda: step(1)) > 0
    assert compilations(lambda: [step(number) for number in range(2, 21)]) == 0
    assert int(held["state"].step) == 20
    assert int(held["state"].skipped) == 2


def test_nothing_is_compiled_after_the_first_step_of_warm_up():
    programs, evaluator = run_of(MeshShape(), 1)
    held = {"state": programs.start(programs.imitator, programs.fresh_params())}

    def step(number):
        held["state"], metrics = programs.imitate(held["state"], number)
        fetch(metrics)
        evaluator(held["state"].params, number)

    assert compilations(lambda: step(1)) > 0
    assert compilations(lambda: [step(number) for number in range(2, 8)]) == 0
