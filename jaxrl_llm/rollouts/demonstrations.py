"""Worked solutions as rollouts."""

import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxrl_llm.types import Problems, Rollout


def demonstration(problems: Problems, rows: Int[Array, " P"]) -> Rollout:
    """Solutions as if they had been answers, one a prompt, with reward 1: imitation is a rollout like any other."""
    answer, acted = problems.solution[:, None, :], problems.solution_mask[:, None, :]
    one = jnp.ones(answer.shape[:2], jnp.float32)
    silent = jnp.zeros(answer.shape, jnp.float32)
    return Rollout(
        prompt=problems.prompt,
        prompt_mask=problems.prompt_mask,
        answer=answer,
        acted=acted,
        behaviour_logp=silent,
        policy_logp=silent,
        reward=one,
        components=one[..., None],
        valid=jnp.any(acted, axis=-1),
        truncated=jnp.zeros(one.shape, bool),
        prompt_id=rows,
        version=jnp.zeros(one.shape, jnp.int32),
    )
