"""Log-ratios of the current policy to the one that sampled, per token, per prefix and per answer, and safe ratios.

A log-ratio is held within ±60 before it is exponentiated. e^60 is 1e26 and e^-60 is 1e-26: no ratio that a training run
can use lies outside, and inside nothing changes. So the ratio of a token that was "impossible" for either policy is a
finite number, its product with a credit of 0 is 0, and its derivative is 0, not NaN.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import masked
from jaxrl_llm.losses.tokens import Tokens

Values = Float[Array, "B G T"]
LogRatio = Callable[[Tokens], Values]

LOG_RATIO_BOUND = 60.0


def held(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """x within ±60; the derivative is 0 at the bounds, too, so that holding twice is holding once."""
    inside = jnp.abs(x) < LOG_RATIO_BOUND
    return jnp.where(inside, jnp.where(inside, x, 0), LOG_RATIO_BOUND * jnp.sign(jax.lax.stop_gradient(x)))


def exponential(x: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """exp of x held within ±60."""
    return jnp.exp(held(x))


def token_log_ratio(tokens: Tokens) -> Values:
    """log ρ_t = log π_t - log μ_t, held within ±60. Gradient flows through log π_t."""
    ratio = tokens.logp - jax.lax.stop_gradient(tokens.behaviour_logp)
    return held(jnp.where(tokens.where, ratio, 0))


def prefix_log_ratio(tokens: Tokens) -> Values:
    """log Π_{j<=t} ρ_j at token t, held within ±60. Gradient flows through the tokens of the prefix."""
    return held(jnp.cumsum(token_log_ratio(tokens), axis=-1))


def answer_log_ratio(tokens: Tokens) -> Values:
    """log Π_t ρ_t, the same at every token of the answer, held within ±60. Gradient flows through all its tokens."""
    whole = jnp.sum(token_log_ratio(tokens), axis=-1, keepdims=True)
    return jnp.broadcast_to(held(whole), tokens.logp.shape)


def mean_log_ratio(tokens: Tokens) -> Values:
    """(1/L) Σ_t log ρ_t over the L acted tokens: the logarithm of the geometric mean of the ratios; 0 where L = 0."""
    mean = masked.mean(token_log_ratio(tokens), tokens.where, axis=-1, keepdims=True)
    return jnp.broadcast_to(mean, tokens.logp.shape)


def through_own_token(log_ratio: Values, tokens: Tokens) -> Values:
    """The same values, with a derivative of 1 in the log-probability of the token itself and of 0 in all others.

    This is how a ratio of a whole answer becomes a surrogate of single tokens: the policy gradient of the answer is the
    coefficient of the answer times the score of each token.
    """
    own = jnp.maximum(tokens.logp, jnp.finfo(tokens.logp.dtype).min)  # -inf less itself would be NaN
    return jax.lax.stop_gradient(log_ratio) + (own - jax.lax.stop_gradient(own))


def scored(coefficient: Values, logp: Values) -> Values:
    """sg(coefficient) · logp, and exactly 0 where the coefficient is 0, even of a token of probability 0."""
    coefficient = jax.lax.stop_gradient(coefficient)
    live = coefficient != 0
    return jnp.where(live, coefficient * jnp.where(live, logp, 0), 0)
