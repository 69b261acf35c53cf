"""Corrections: detached coefficients on the surrogate that are computed from the whole batch before it is cut.

A correction is a function of `Tokens` [P G T] of *all* prompts, so it may compare answers and still be the same number
on any mesh and for any accumulation. A `moving` one is computed anew with the current policy before every update, at
the price of one more forward pass; the others see the policy that sampled (`logp` is `policy_logp` and `entropy` 0) and
are computed once a rollout.

Here are weights for the gap between the policy that sampled and the distribution that was sampled from (another engine,
another precision, truncated sampling): w = π_old/μ, never moving. The surrogate whose ratio starts at 1 with them is
`proximal(...)`; a plain surrogate has π_old/μ in its ratio already. `selections` has those that choose tokens.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import masked
from jaxrl_llm.losses.ratios import LogRatio, answer_log_ratio, exponential, mean_log_ratio, token_log_ratio
from jaxrl_llm.losses.tokens import Tokens

Values = Float[Array, "P G T"]


class Correction(NamedTuple):
    """weight(tokens) [P G T] multiplies the surrogate of each token; 0 leaves a token out."""

    weight: Callable[[Tokens], Float[Array, "P G T"]]
    moving: bool = False


def truncated_token(*, maximum: float) -> Correction:
    """min(w_t, maximum) per token (truncated importance sampling: Yao et al., 2025)."""
    return Correction(lambda tokens: jnp.minimum(_sampling_ratio(token_log_ratio, tokens), maximum))


def truncated_answer(*, maximum: float) -> Correction:
    """min(Π_t w_t, maximum), the same at every token of the answer (open-instruct e6c3044: maximum 2)."""
    return Correction(lambda tokens: jnp.minimum(_sampling_ratio(answer_log_ratio, tokens), maximum))


def masked_outside_token(*, low: float, high: float) -> Correction:
    """w_t where low <= w_t <= high, else 0. It drops what truncation keeps: a token far off is left out.

    IcePop (Ling team, 2025).
    """
    return Correction(lambda tokens: _or_zero(_sampling_ratio(token_log_ratio, tokens), low, high))


def masked_outside_answer(*, low: float, high: float) -> Correction:
    """w = Π_t w_t where low <= w <= high, else 0 for the whole answer (TRL's sequence_mask: low 0, high 3)."""
    return Correction(lambda tokens: _or_zero(_sampling_ratio(answer_log_ratio, tokens), low, high))


def masked_outside_mean(*, low: float, high: float) -> Correction:
    """w_t, not truncated, where low <= (Π_t w_t)^(1/L) <= high, else 0 for the whole answer of L tokens.

    OpenRLHF 3c3be62, `seq-mask-tis`.
    """

    def weight(tokens: Tokens) -> Values:
        mean = _sampling_ratio(mean_log_ratio, tokens)
        return jnp.where((mean >= low) & (mean <= high), _sampling_ratio(token_log_ratio, tokens), 0)

    return Correction(weight)


def batch_normalised(correction: Correction) -> Correction:
    """w / mean of w over the acted tokens of the batch, so that the mean is 1. All weights 0: they stay 0.

    An option of the rollout correction of verl (1dda039).
    """

    def weight(tokens: Tokens) -> Values:
        w = correction.weight(tokens)
        return _divided(w, masked.mean(w, tokens.where, axis=(0, 1, 2), keepdims=True))

    return Correction(weight, correction.moving)


def batch_normalised_answers(correction: Correction) -> Correction:
    """w / mean over answers of their mean w: `batch_normalised` for weights of whole answers. Weights of 0 stay 0."""

    def weight(tokens: Tokens) -> Values:
        w = correction.weight(tokens)
        answer = masked.mean(w, tokens.where, axis=-1, keepdims=True)
        some = jnp.any(tokens.where, axis=-1, keepdims=True)
        return _divided(w, masked.mean(answer, some, axis=(0, 1, 2), keepdims=True))

    return Correction(weight, correction.moving)


def self_normalised_group() -> Correction:
    """n w_i / Σ_j w_j over the n answers of a group, w = Π_t π_t/μ_t of the current policy: mean 1 in every group.

    With `reinforce` and `answer_sum` self-normalised importance sampling: consistent, biased in a finite group. A group
    of one has weight 1, whatever its ratio. Moving. Owen, 2013.
    """
    return Correction(lambda tokens: _self_normalised(tokens, axis=1), moving=True)


def self_normalised_batch() -> Correction:
    """`self_normalised_group` with the sum over all answers of the batch."""
    return Correction(lambda tokens: _self_normalised(tokens, axis=(0, 1)), moving=True)


def effective_sample_size(weight: Values, where: Bool[Array, "P G T"]) -> Float[Array, ""]:
    """(Σ w)² / (N Σ w²) over the N entries where True, in [1/N, 1]: 1/(1 + χ²). 0 where all weights are 0.

    Of answers rather than tokens: pass the weights and a mask [P G 1] with one entry an answer. Kong, 1992.
    """
    # The largest weight is taken out first: squares of ratios overflow where ratios do not.
    peak = jnp.max(jnp.where(where, jnp.abs(weight), 0))
    w = weight / jnp.where(peak > 0, peak, 1)
    squares = masked.total(jnp.square(w), where) * masked.count(where).astype(weight.dtype)
    return jnp.where(squares > 0, jnp.square(masked.total(w, where)) / jnp.where(squares > 0, squares, 1), 0)


def _sampling_ratio(log_ratio: LogRatio, tokens: Tokens) -> Values:
    """π_old/μ, whatever policy `logp` belongs to."""
    return exponential(log_ratio(dataclasses.replace(tokens, logp=tokens.policy_logp)))


def _or_zero(w: Values, low: float, high: float) -> Values:
    return jnp.where((w >= low) & (w <= high), w, 0)


def _divided(w: Values, mean: Float[Array, "1 1 1"]) -> Values:
    return w / jnp.where(mean > 0, mean, 1)


def _self_normalised(tokens: Tokens, axis: int | tuple[int, ...]) -> Values:
    x = answer_log_ratio(tokens)[..., :1]
    some = jnp.any(tokens.where, axis=-1, keepdims=True)
    peak = jnp.max(jnp.where(some, x, -jnp.inf), axis=axis, keepdims=True)
    w = jnp.where(some, jnp.exp(jnp.where(some, x - jnp.where(jnp.isfinite(peak), peak, 0), 0)), 0)
    mean = masked.mean(w, some, axis=axis, keepdims=True)
    return jax.lax.stop_gradient(jnp.broadcast_to(w / jnp.where(mean > 0, mean, 1), tokens.logp.shape))
