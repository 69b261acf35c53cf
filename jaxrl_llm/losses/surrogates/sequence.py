"""Surrogates whose weight belongs to a prefix or to a whole answer.

The weight is detached and the gradient goes through the token itself, `coefficient · ∇log π_t` at every token, so that
any aggregation may follow. With `answer_sum` that is the gradient of weight · Σ_t log π_t. Taking the derivative of the
weight itself and spreading it over the tokens gives the same numbers, answer by answer, because ∇w = w ∇log w.
"""

import jax
import jax.numpy as jnp

from jaxrl_llm.losses.ratios import (
    answer_log_ratio,
    exponential,
    mean_log_ratio,
    prefix_log_ratio,
    through_own_token,
    token_log_ratio,
)
from jaxrl_llm.losses.surrogates._base import Surrogate, Values, pessimistic
from jaxrl_llm.losses.tokens import Tokens


def sequence_ratio() -> Surrogate:
    """w A, w = Π_t ρ_t: exact importance sampling of whole answers.

    The only unbiased weight here for a credit of the whole answer; its variance grows exponentially with length and
    staleness. Neutral to baselines. Precup et al., 2000.
    """
    return lambda tokens: _weighted(answer_log_ratio(tokens), tokens)


def prefix_ratio() -> Surrogate:
    """A_t Π_{j<=t} ρ_j (cumulative token ratio, arXiv 2605.07331).

    Unbiased if A_t depends on the prefix and the token alone; biased with a sampled return, whose later tokens came
    from μ. Neutral to baselines.
    """
    return lambda tokens: _weighted(prefix_log_ratio(tokens), tokens)


def gspo(*, low: float = 3e-4, high: float = 4e-4) -> Surrogate:
    """min(sA, clip(s, 1 - low, 1 + high) A), s = (Π_t ρ_t)^(1/L) of the answer's L tokens (arXiv 2507.18071).

    In the form of single tokens, s_t = sg(s) π_t / sg(π_t): equal to the form of whole answers under `answer_mean`, its
    own aggregation, where each token gets s A / L. Answers of one token give `clipped`. Bounds as in verl and Trinity.
    """

    def surrogate(tokens: Tokens) -> Values:
        log_ratio = through_own_token(mean_log_ratio(tokens), tokens)
        return pessimistic(log_ratio, jax.lax.stop_gradient(tokens.advantage), low, high, None)

    return surrogate


def clipped_answer(*, low: float = 0.2, high: float = 0.2) -> Surrogate:
    """min(wA, clip(w, 1 - low, 1 + high) A), w = Π_t ρ_t of the whole answer: what TRL's RLOO clips.

    In the form of single tokens, as `gspo`: with `answer_sum` the gradient is that of the mean over answers, since
    ∇w = w Σ_t ∇log π_t. The value is not: each answer counts in it once for each of its tokens. Answers of one token
    give `clipped`.
    """

    def surrogate(tokens: Tokens) -> Values:
        log_ratio = through_own_token(answer_log_ratio(tokens), tokens)
        return pessimistic(log_ratio, jax.lax.stop_gradient(tokens.advantage), low, high, None)

    return surrogate


def geo_mean(*, low: float, high: float) -> Surrogate:
    """A exp((1/L) Σ_t x_t): x_t = min(log ρ_t, high) where A > 0, max(log ρ_t, -low) elsewhere (GMPO).

    The bounds are on log-ratios. A token beyond its bound has gradient 0, but its bound is in the weight of the others.
    arXiv 2507.20673. For a credit that is the same at all tokens of the answer; with `answer_mean` it is the paper's
    objective, in which each token gets the weight / L.
    """

    def surrogate(tokens: Tokens) -> Values:
        advantage = jax.lax.stop_gradient(tokens.advantage)
        log_ratio = jax.lax.stop_gradient(token_log_ratio(tokens))
        held = jnp.where(advantage > 0, jnp.minimum(log_ratio, high), jnp.maximum(log_ratio, -low))
        mean = jnp.sum(jnp.where(tokens.where, held, 0), axis=-1, keepdims=True) / _length(tokens)
        mean = jnp.broadcast_to(mean, held.shape)
        live = through_own_token(mean, tokens)
        return exponential(jnp.where(held == log_ratio, live, mean)) * advantage

    return surrogate


def _length(tokens: Tokens):
    return jnp.maximum(jnp.sum(tokens.where, axis=-1, keepdims=True), 1).astype(tokens.logp.dtype)


def _weighted(log_ratio: Values, tokens: Tokens) -> Values:
    return exponential(through_own_token(log_ratio, tokens)) * jax.lax.stop_gradient(tokens.advantage)
