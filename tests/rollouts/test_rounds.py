"""A sampler that stops early draws what a sampler that does not would have drawn, less the rest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import random
from jaxrl_llm.advantages._base import bare_rollout
from jaxrl_llm.rollouts.rounds import draw_in_rounds
from jaxrl_llm.rollouts.select.reinforce_ada import balanced, count_classes, enough_of_both

ROUNDS, SIZE, KEEP = 5, 4, 4
RATE = np.array([0.5, 0.4, 0.3, 0.6], np.float32)
PROMPT = jnp.arange(4)


def draws(keys, rate):
    noise = jax.vmap(jax.vmap(jax.random.uniform))(keys)
    reward = (noise < rate[:, None]).astype(jnp.float32)
    return {"reward": reward, "token": jnp.stack([noise, -noise], axis=-1), "even": noise > 0.5}


def enough(pool):
    return enough_of_both(KEEP)(*count_classes(pool.answers["reward"], pool.drawn, 0.7))


@functools.partial(jax.jit, static_argnames="done")
def in_rounds(seed, rate, done=enough):
    keys = random.answer_keys(jax.random.key(seed), 0, PROMPT, ROUNDS * SIZE)

    def draw_round(number, active):
        out = draws(jax.lax.dynamic_slice_in_dim(keys, number * SIZE, SIZE, axis=1), rate)
        return {**out, "token": jnp.where(active[:, None, None], out["token"], jnp.nan)}

    return draw_in_rounds(draw_round, done, prompts=len(PROMPT), rounds=ROUNDS)


@jax.jit
def at_once(seed, rate):
    return draws(random.answer_keys(jax.random.key(seed), 0, PROMPT, ROUNDS * SIZE), rate)


def rounds_needed(reward):
    for number in range(1, ROUNDS + 1):
        right = reward[: number * SIZE].sum()
        if right >= 2 and number * SIZE - right >= 2:
            return number
    return ROUNDS


def test_stops_when_every_prompt_has_enough_and_draws_the_same_answers():
    seen = set()
    for seed in range(12):
        pool, whole = in_rounds(seed, RATE), at_once(seed, RATE)
        needed = np.array([rounds_needed(r) for r in np.asarray(whole["reward"])])
        assert pool.rounds == needed.max()
        drawn = np.arange(ROUNDS * SIZE)[None] < needed[:, None] * SIZE
        np.testing.assert_array_equal(pool.drawn, drawn)
        for name, leaf in whole.items():
            there = drawn.reshape(*drawn.shape, *[1] * (leaf.ndim - 2))
            np.testing.assert_array_equal(pool.answers[name], np.where(there, leaf, 0))
            assert pool.answers[name].dtype == leaf.dtype
        seen |= set(needed.tolist())
    assert len(seen) > 2, "the seeds do not stop at different rounds"


@pytest.mark.parametrize(("rate", "rounds"), [(np.zeros(4), ROUNDS), (np.ones(4), ROUNDS)])
def test_runs_all_rounds_for_prompts_that_never_have_enough(rate, rounds):
    pool = in_rounds(0, rate.astype(np.float32))
    assert pool.rounds == rounds
    assert bool(pool.drawn.all())


def test_a_prompt_that_was_done_stays_done():
    """Here `done` is true of the first prompt, after the first round only; the others keep the loop running."""
    flickers = lambda pool: (pool.rounds == 1) & (PROMPT == 0)  # noqa: E731
    pool = in_rounds(0, RATE, done=flickers)
    assert pool.rounds == ROUNDS
    np.testing.assert_array_equal(np.asarray(pool.drawn).sum(axis=1), [SIZE, *[ROUNDS * SIZE] * 3])


def test_the_selector_keeps_the_same_of_both_pools():
    select = jax.jit(balanced(KEEP, SIZE, ROUNDS))
    for seed in range(4):
        pool, whole = in_rounds(seed, RATE), at_once(seed, RATE)
        out = select(bare_rollout(pool.answers["reward"], pool.drawn, token=pool.answers["token"]))
        other = select(bare_rollout(whole["reward"], token=whole["token"]))
        jax.tree.map(np.testing.assert_array_equal, out, other)
