"""Every recipe trains the default task: one compiled program, one gradient on any mesh and for any accumulation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from test_compiles import compilations

from jaxrl_llm import programs as programs_module
from jaxrl_llm import recipes, spec
from jaxrl_llm import trained as trained_module
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.programs import Programs
from jaxrl_llm.sharding import MeshShape, by_prompt, fetch, place
from jaxrl_llm.tasks import addition
from jaxrl_llm.types import Grade

RECIPES = spec.public_functions(recipes)
VARIANTS = {
    "oreal,token_model=true": "the token reward model",
    "reinforce_ada,target=positive": "its first exit",
    "reinforce,baseline=true": "a state",
    "spurious,kind=majority": "votes",
    "rloo_james_stein,deployed=true": "a state",
    "topr_reinforce,token_level=true,baseline=0.5": "token ratios and a shift",
}


def coin(answer, acted, truth):
    """A grader that a policy without training meets half of the time: is the sum of the tokens even? The form is right
    where there are more than two tokens."""
    del truth
    even = (jnp.sum(jnp.where(acted, answer, 0), axis=-1) % 2 == 0).astype(jnp.float32)
    longer = (jnp.sum(acted, axis=-1) > 2).astype(jnp.float32)
    return Grade(reward=even, components=jnp.stack([even, longer], axis=-1), valid=answer[..., 0] != 3)


TASK = dataclasses.replace(addition(), grade_fn=coin)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The default task around a policy that is a table: what a recipe adds is compiled, a decoder is not."""
    monkeypatch.setattr(jax, "jit", tiny.jit)
    for module in (programs_module, trained_module):
        monkeypatch.setattr(module, "Policy", tiny.Bigram)


def build(recipe, devices=1, **changes):
    plain = {"prompts_per_step": 32, "answers_per_prompt": 4, "epochs": 1, "learning_rate": 1e-2, "seed": 1}
    config = Config(
        task=TASK,
        recipe=recipe,
        model=tiny.SMALL,
        warmup=WarmUp(max_steps=0),
        mesh=MeshShape(data=devices),
        **(plain | changes),
    )
    return Programs(config, jax.devices()[:devices])


def taught(programs, rollout, reference):
    """What one learning step leaves behind: moments (a tenth of the gradient), credit, and all other state."""
    state = programs.start(programs.learner, programs.fresh_params())
    state, metrics, credit = programs.learn(state, reference, rollout)
    jax.block_until_ready(state)
    return fetch((state.moments, state.credit, state.anchor, state.companion, metrics["loss"], credit))


# Presets are made of parts that the recipes above share, and their numbers are tested against their libraries'.
MEMBERS = [pytest.param(name, marks=pytest.mark.long) if "_as_in_" in name else name for name in (*RECIPES, *VARIANTS)]


@pytest.mark.parametrize("recipe", MEMBERS)
def test_a_recipe_trains_on_one_program_and_its_gradient_is_that_of_any_cut(recipe):
    programs = build(recipe)
    params = programs.fresh_params()
    reference = jax.tree.map(lambda x: 0.9 * x, params)
    held = {"state": programs.start(programs.learner, params), "norms": []}

    def step(number):
        held["rollout"] = programs.sample(held["state"].params, number)
        held["state"], metrics, _ = programs.learn(held["state"], reference, held["rollout"])
        held["norms"].append(float(fetch(metrics["grad_norm"])))

    step(1)
    first = held["rollout"]
    assert compilations(lambda: [step(2), step(3)]) == 0
    assert int(held["state"].skipped) == 0
    assert max(held["norms"]) > 1e-6
    assert tiny_distance(held["state"].params, reference) > 1e-6

    cut = build(recipe, devices=8, accumulation=4)
    elsewhere = taught(cut, place(fetch(first), by_prompt(cut.mesh)), fetch(reference))
    here = taught(programs, first, reference)
    # Sums of float32 in another order: cancelling terms lose some digits, squares in the moments twice as many. A cut
    # that counts for itself is off by tens of per cent.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), elsewhere, here)


def tiny_distance(a, b):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
