"""Aggregations: how per-token terms [P G T] become one number, written as the weight of each token.

The loss is Σ w·x with w = aggregate(where), `where` the acted tokens of valid answers of the *whole* batch. The weights
depend on masks alone, so they are computed once before the batch is cut into micro-batches or spread over devices,
and accumulation, padding and sharding cannot change the loss. Answers without an acted token count for nothing,
neither above nor below the line; a batch without any gets weights of 0. Weights are float32, and float64 under x64.
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
        return where / _default_float(jnp.maximum(jnp.sum(where), 1))

    return weights


def answer_mean() -> Aggregate:
    """w = 1 / (tokens of the answer · answers): every answer weighs the same; its tokens share that weight (GRPO)."""

    def weights(where: Where) -> Weights:
        length = jnp.sum(where, axis=-1, keepdims=True)
        return where / _default_float(jnp.maximum(length, 1) * _answers(where))

    return weights


def answer_sum() -> Aggregate:
    """w = 1 / answers: the log-probability of an answer is the sum over its tokens, as the policy gradient says."""

    def weights(where: Where) -> Weights:
        return where / _default_float(_answers(where))

    return weights


def fixed_divisor(*, divisor: float) -> Aggregate:
    """w = 1 / (divisor · answers), the same for all lengths (Dr. GRPO, Liu et al., 2025: divisor = T)."""
    if not divisor > 0:
        raise ValueError(f"divisor must be above 0, not {divisor}")

    def weights(where: Where) -> Weights:
        return where / (divisor * _default_float(_answers(where)))

    return weights


def prompt_mean() -> Aggregate:
    """w = 1 / (tokens of the prompt's answers · prompts): token mean inside each prompt, then the mean over prompts.

    The formula of the DAPO paper (Yu et al., 2025), whose code takes `token_mean`.
    """

    def weights(where: Where) -> Weights:
        tokens = jnp.sum(where, axis=(1, 2), keepdims=True)
        prompts = jnp.maximum(jnp.sum(tokens > 0), 1)
        return where / _default_float(jnp.maximum(tokens, 1) * prompts)

    return weights


def prompt_answer_sum() -> Aggregate:
    """w = 1 / (answers of the prompt · prompts): `answer_sum` inside each prompt, then the mean over prompts.

    Where prompts have unequal numbers of answers every prompt still weighs the same (GVM-RAFT, arXiv 2505.02391). A
    prompt without an answer counts for nothing, neither above nor below the line. Equal numbers: `answer_sum`.
    """

    def weights(where: Where) -> Weights:
        answers = jnp.sum(jnp.any(where, axis=-1), axis=1)[:, None, None]
        prompts = jnp.maximum(jnp.sum(answers > 0), 1)
        return where / _default_float(jnp.maximum(answers, 1) * prompts)

    return weights


def variance_reduced_length(*, alpha: float) -> Aggregate:
    """w_i = L_i^-α / (mean_j L_j^-α · answers), the mean over the answers of the group (VL-Norm, arXiv 2509.07558).

    α = 0: `answer_sum`. α = 1: tokens share the weight of an answer, as in `answer_mean`, but the sum over the group is
    kept. It lowers the variance where the variance of an answer's gradient grows as L^α; it changes the direction
    unless the expected gradient of an answer is independent of its length.
    """

    def weights(where: Where) -> Weights:
        length = jnp.sum(where, axis=-1, keepdims=True)
        some = length > 0
        power = jnp.where(some, _default_float(jnp.maximum(length, 1)) ** -alpha, 0)
        count = _default_float(jnp.maximum(jnp.sum(some, axis=1, keepdims=True), 1))
        mean = jnp.sum(power, axis=1, keepdims=True) / count
        return where * power / (jnp.where(mean > 0, mean, 1) * _answers(where))

    return weights


def _answers(where: Where):
    return jnp.maximum(jnp.sum(jnp.any(where, axis=-1)), 1)


def _default_float(count):
    return count.astype(jnp.result_type(float))
