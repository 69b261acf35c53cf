"""Draw in rounds, and stop when every prompt has what it needs: the sampler of adaptive methods, inside jit."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


class Pool(NamedTuple):
    """What was drawn so far, at fixed capacity: N = rounds · M answers a prompt, in the order of drawing.

    answers  pytree with leaves [P N ...]; zeros where nothing was drawn
    drawn    [P N] True where an answer was drawn
    rounds   how many rounds ran
    """

    answers: Any
    drawn: Bool[Array, "P N"]
    rounds: Int[Array, ""]


def draw_in_rounds(
    draw_round: Callable[[Int[Array, ""], Bool[Array, " P"]], Any],
    done: Callable[[Pool], Bool[Array, " P"]],
    *,
    prompts: int,
    rounds: int,
) -> Pool:
    """Run `draw_round(round, active) -> leaves [P M ...]` until all prompts are done, at most `rounds` times.

    Answers to a prompt that was done before the round are thrown away, so `draw_round` may write anything there and
    should spend nothing on them. A prompt that is done stays done. When the draws of a round depend on the index of
    the answer, round · M + m, and not on what else is drawn, the pool is the one drawn at once with the rest left out.
    """
    everyone = jnp.ones(prompts, bool)
    like = jax.eval_shape(draw_round, jnp.int32(0), everyone)
    size = jax.tree.leaves(like)[0].shape[1]
    empty = Pool(
        jax.tree.map(lambda x: jnp.zeros((prompts, rounds * size, *x.shape[2:]), x.dtype), like),
        jnp.zeros((prompts, rounds * size), bool),
        jnp.int32(0),
    )

    def running(carry):
        pool, active = carry
        return (pool.rounds < rounds) & jnp.any(active)

    def body(carry):
        pool, active = carry

        def put(whole, part):
            there = active.reshape(prompts, *[1] * (part.ndim - 1))
            kept = jnp.where(there, part, jnp.zeros_like(part))
            return jax.lax.dynamic_update_slice_in_dim(whole, kept, pool.rounds * size, axis=1)

        answers = jax.tree.map(put, pool.answers, draw_round(pool.rounds, active))
        drawn = put(pool.drawn, jnp.ones((prompts, size), bool))
        pool = Pool(answers, drawn, pool.rounds + 1)
        return pool, active & ~done(pool)

    return jax.lax.while_loop(running, body, (empty, everyone))[0]
