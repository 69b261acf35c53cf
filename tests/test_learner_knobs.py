"""Every knob moves the parameters when it should: peers declare knobs that nothing reads."""

import ast
import dataclasses
import inspect

import jax
import jax.numpy as jnp
import optax
import pytest
import tiny
from learners import assert_close, compiled, distance, learner

from jaxrl_llm import config_checks, recipes, schedules
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.learner import Learner
from jaxrl_llm.programs import build_optimizer

POLICY, PARAMS = tiny.bigram()
REFERENCE = jax.tree.map(lambda x: 0.8 * x, PARAMS)
FAR = tiny.ragged(POLICY, PARAMS, answers=8, noise=2.0)  # far off-policy: some ratios above 10
CHANGED = {
    "reinforce": {"baseline": True, "decay": 0.2},
    "rloo": {"kl_coefficient": 0.3},
    "grpo": {"low": 0.05, "high": 0.05, "kl_coefficient": 0.3, "ddof": 0, "eps": 0.3},
    "dr_grpo": {"divisor": 10.0, "low": 0.05, "high": 0.05},
    "bnpo": {"low": 0.05, "high": 0.05, "dual": 3.0},
}
BASE = {name: {} for name in CHANGED} | {"reinforce": {"decay": 0.9, "baseline": True}}


def three_steps(recipe, optimizer=None, **changes):
    """Parameters after three steps on unequal rewards: a moving average shows its decay in the third."""
    built = learner(POLICY, recipe, optimizer, **changes)
    run, state = compiled(built), built.init(PARAMS)
    for scale in (1.0, 0.25, 0.5):
        state, _, _ = run(state, REFERENCE, dataclasses.replace(FAR, reward=FAR.reward * scale))
    return state.params


@pytest.mark.parametrize("name", CHANGED)
def test_peer_defect_dead_knobs_of_recipes(name):
    """EasyDeL's epsilon and lmpo's kl_coef do nothing."""
    recipe = getattr(recipes, name)
    assert set(inspect.signature(recipe).parameters) == set(CHANGED[name]), "every knob has a changed value here"
    base = three_steps(recipe(**BASE[name]))
    for knob, value in CHANGED[name].items():
        other = BASE[name] | ({"baseline": False} if knob == "baseline" else {knob: value})
        assert distance(three_steps(recipe(**other)), base) > 1e-4, f"{name}: {knob} changes nothing"


@pytest.mark.parametrize("name", recipes.__all__)
def test_peer_defect_a_knob_that_the_recipe_does_not_read(name):
    """Every argument stands somewhere in the body; what the parts do with it is tested with the parts."""
    function = getattr(recipes, name)
    body = ast.parse(inspect.getsource(function)).body[0].body
    read = {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name)}
    assert set(inspect.signature(function).parameters) <= read


def config(**changes):
    plain = {"learning_rate": 1e-3, "schedule": schedules.constant(warmup=0), "max_grad_norm": 1.0}
    fixed = {"task": "addition,digits=1", "recipe": "grpo", "warmup": WarmUp(max_steps=0), "prompts_per_step": 4}
    return Config(**fixed, steps=3, **(plain | changes))


def configured(**changes):
    """Three steps as `Programs` would take them."""
    c = config(**changes)
    rate = c.schedule.build(c.learning_rate, c.steps * c.epochs)
    return three_steps(c.recipe, build_optimizer(c, rate), epochs=c.epochs, accumulation=c.accumulation)


def test_peer_defect_dead_knobs_of_the_learner():
    """EasyDeL's num_iterations is never read."""
    base = configured()
    for knob, value in {
        "epochs": 2,
        "max_grad_norm": 1e-8,
        "weight_decay": 0.5,
        "learning_rate": 1e-2,
        "optimizer": "sgd",
        "schedule": schedules.linear(warmup=0),
    }.items():
        assert distance(configured(**{knob: value}), base) > 1e-4, f"{knob} changes nothing"
    assert_close(configured(accumulation=2), base)
    fixed = {"policy", "advantage", "objective", "optimizer", "learning_rate", "accumulation", "epochs"}
    fixed |= {"reward", "anchor", "companion", "seed"}  # tests/test_method_parts.py
    fixed |= {"rescored"}  # tests/test_sampler_gap.py
    assert {field.name for field in dataclasses.fields(Learner)} == fixed, "a new field needs a test"


def test_the_optimizer_is_adamw_behind_a_bound_on_the_norm():
    """Two steps by hand, in the order of Loshchilov and Hutter."""
    c = config(max_grad_norm=0.5, weight_decay=0.1)
    optimizer = build_optimizer(c, lambda count: 0.01 * (1 + count))
    params = {"x": jnp.asarray([1.0, -2.0])}
    state = optimizer.init(params)
    x, m, v = params["x"], 0.0, 0.0
    for t, grad in enumerate(([3.0, 4.0], [0.1, -0.2]), start=1):
        updates, state = optimizer.update({"x": jnp.asarray(grad)}, state, params)
        params = optax.apply_updates(params, updates)
        g = jnp.asarray(grad) / max(1.0, float(jnp.linalg.norm(jnp.asarray(grad))) / 0.5)
        m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g**2
        x = x - 0.01 * t * (m / (1 - 0.9**t) / (jnp.sqrt(v / (1 - 0.99**t)) + 1e-8) + 0.1 * x)
        assert_close(params["x"], x)


def test_plain_sgd_moves_by_the_rate_times_the_bounded_gradient():
    c = config(optimizer="sgd", max_grad_norm=0.5, weight_decay=0.1)
    optimizer = build_optimizer(c, lambda count: 0.01 * (1 + count))
    params = {"x": jnp.asarray([1.0, -2.0])}
    updates, state = optimizer.update({"x": jnp.asarray([3.0, 4.0])}, optimizer.init(params), params)
    assert_close(updates["x"], -0.01 * (jnp.asarray([0.3, 0.4]) + 0.1 * params["x"]))
    updates, _ = optimizer.update({"x": jnp.asarray([0.0, 0.0])}, state, {"x": jnp.zeros(2)})
    assert_close(updates["x"], jnp.zeros(2))  # nothing is remembered
    object.__setattr__(c, "optimizer", "sgdd")  # as in a process that does not check types
    with pytest.raises(ConfigError, match="did you mean 'sgd'"):
        config_checks.check_numbers(c)


def test_without_a_bound_a_gradient_keeps_its_norm():
    """Adam hardly sees the scale of a gradient, but of two unequal ones the larger leaves more in the moments."""
    ends = []
    for bound in (0.0, 0.5, 1e9):
        optimizer = build_optimizer(config(max_grad_norm=bound), lambda count: 0.01)
        params = {"x": jnp.asarray([1.0, -2.0])}
        state = optimizer.init(params)
        for grad in ([30.0, 40.0], [0.1, -0.2]):
            updates, state = optimizer.update({"x": jnp.asarray(grad)}, state, params)
            params = optax.apply_updates(params, updates)
        ends.append(params)
    assert_close(ends[0], ends[2])
    assert distance(ends[0], ends[1]) > 1e-4
