"""Learners of the tests, and one compiled step of theirs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny

from jaxrl_llm import recipes
from jaxrl_llm.learner import Learner
from jaxrl_llm.losses import answer_mean, answer_sum, fixed_divisor, token_mean

AGGREGATES = {
    "token_mean": token_mean(),
    "answer_mean": answer_mean(),
    "answer_sum": answer_sum(),
    "fixed_divisor": fixed_divisor(divisor=7.0),
}
RECIPES = {
    "reinforce": recipes.reinforce(baseline=True),
    "rloo": recipes.rloo(kl_coefficient=0.3),
    "grpo": recipes.grpo(kl_coefficient=0.3),
    "dr_grpo": recipes.dr_grpo(),
    "bnpo": recipes.bnpo(dual=1.5),
}


def learner(policy, recipe, optimizer=None, **changes):
    """Around a recipe; the default optimizer subtracts the gradient, so that parameters show it."""
    return Learner(
        policy=policy,
        advantage=recipe.advantage,
        objective=changes.pop("objective", recipe.objective),
        optimizer=optimizer or optax.sgd(1.0),
        learning_rate=changes.pop("learning_rate", lambda updates: 1.0),
        **changes,
    )


def compiled(built):
    """`learn` of a learner, compiled; the state that goes in stays usable."""
    return tiny.jit(built.learn)


def step(built, params, rollout, reference=None):
    """Parameters and metrics after one step from the start."""
    state, metrics, _ = compiled(built)(built.init(params), reference, rollout)
    return state.params, metrics


def distance(a, b):
    """Largest difference of two trees."""
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def assert_close(a, b, atol=1e-6, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=rtol), a, b)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def twice(rollout):
    """The batch, and behind it the batch again."""
    doubled = jax.tree.map(lambda x: jnp.concatenate([x, x]), rollout)
    return dataclasses.replace(doubled, prompt_id=jnp.arange(len(doubled.prompt_id), dtype=jnp.int32))
