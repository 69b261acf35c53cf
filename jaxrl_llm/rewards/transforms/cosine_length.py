"""A length reward that asks for long thought only where it pays (Light-IF, arXiv 2508.03178, released code 01e9003)."""

import jax.numpy as jnp

from jaxrl_llm.rewards._base import RewardTransform, lengths, stateless


def cosine_length(
    limit: int = 8192,
    *,
    threshold: float = 0.2,
    right: float | int = 2.0,
    wrong: float | int = -1.0,
    exceeded: float | int = -2.0,
) -> RewardTransform:
    """r ← φ · right · r  where r >= threshold,  φ · wrong  elsewhere,  φ = (1 - cos(π L / limit)) / 2;  exceeded if
    L >= limit.

    L counts acted tokens. φ rises from 0 to 1, so a good answer earns more and a bad one loses more the longer it is.
    The result is the length term alone; r is read as the score it is built on.
    """

    def fn(rollout):
        length = lengths(rollout)
        factor = (1 - jnp.cos(jnp.pi * jnp.minimum(length / limit, 1))) / 2
        value = jnp.where(rollout.reward >= threshold, right * rollout.reward, wrong)
        return jnp.where(length >= limit, exceeded, factor * value)

    return stateless(fn)
