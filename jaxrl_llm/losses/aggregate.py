"""Aggregations: how per-token terms [P G T] become one number, written as the weight of each token.

The loss is Σ w·x with w = aggregate(where), `where` the acted tokens of valid answers of the *whole* batch. The weights
depend on masks alone, so they are computed once before the batch is cut into micro-batches or spread over devices,
and accumulation, padding and sharding cannot change the loss. Answers without an acted token count for nothing,
neither above nor below the line; a batch without any gets weights of 0.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Where = Bool[Array, "P G T"]
Weights = Float[Array, "P G T"]
Aggregate = Callable[[Where], Weights]


def token_mean() -> Aggregate:
    """w = 1 / (tokens of the batch): every token weighs the same, so long answers weigh more (DAPO)."""

    def weights(where: Where) -> Weights:
        return where / jnp.maximum(jnp.sum(where), 1).astype(jnp.float32)

    return weights


def answer_mean() -> Aggregate:
    """w = 1 / (tokens of the answer · answers): every answer weighs the same; its tokens share that weight (GRPO)."""

    def weights(where: Where) -> Weights:
        length = jnp.sum(where, axis=-1, keepdims=True)
        return where / (jnp.maximum(length, 1) * _answers(where)).astype(jnp.float32)

    return weights


def answer_sum() -> Aggregate:
    """w = 1 / answers: the log-probability of an answer is the sum over its tokens, as the policy gradient says."""

    def weights(where: Where) -> Weights:
        return where / _answers(where).astype(jnp.float32)

    return weights


def fixed_divisor(*, divisor: float) -> Aggregate:
    """w = 1 / (divisor · answers), the same for all lengths (Dr. GRPO, Liu et al., 2025: divisor = T)."""
    if not divisor > 0:
        raise ValueError(f"divisor must be above 0, not {divisor}")

    def weights(where: Where) -> Weights:
        return where / (divisor * _answers(where))

    return weights


def _answers(where: Where):
    return jnp.maximum(jnp.sum(jnp.any(where, axis=-1)), 1)
