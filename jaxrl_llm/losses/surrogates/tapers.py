"""Tapered weights: the detached weight of an answer or a token is a function of its ratio, one for each sign of credit.

The baseline matters here: with a weight that is not the ratio, subtracting b from the credit changes the objective
(it acts as the share of positive answers in the data). `effective_positives` says how.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.losses.ratios import LogRatio, answer_log_ratio, exponential, scored, token_log_ratio
from jaxrl_llm.losses.surrogates._base import Surrogate, Values
from jaxrl_llm.losses.tokens import Tokens

Taper = Callable[[Values], Values]


def tapered(*, positive: Taper, negative: Taper, ratio: LogRatio) -> Surrogate:
    """sg(f(x)) · A · logp, x = ratio(tokens) a log-ratio, f = `positive` where A >= 0 and `negative` elsewhere.

    The form of TOPR (arXiv 2503.14286), for any ratio and any fading.
    """

    def surrogate(tokens: Tokens) -> Values:
        x = ratio(tokens)
        weight = jnp.where(tokens.advantage >= 0, positive(x), negative(x))
        return scored(weight * tokens.advantage, tokens.logp)

    return surrogate


def between(low: float, high: float) -> Taper:
    """clip(ρ, low, high). (1, 1): the ratio is ignored; (0, inf): plain importance sampling; (0, 1): truncated at 1."""
    return lambda x: jnp.clip(exponential(x), low, high)


def gamma_shaped(power: float, rate: float) -> Taper:
    """e^rate ρ^power e^(-rate ρ): 1 at ρ = 1, 0 at both ends (VESPO, arXiv 2602.10693)."""
    return lambda x: exponential(rate + power * x - rate * exponential(x))


def topr(*, positive: tuple[float, float] = (1.0, 1.0), negative: tuple[float, float] = (0.0, 1.0)) -> Surrogate:
    """sg(clip(w, a, b)) · A · logp, w = Π_t ρ_t of the answer, bounds (a, b) by the sign of A (arXiv 2503.14286).

    The canonical bounds leave right answers alone and let a wrong one fade with its own probability, so the objective
    is bounded below. All bounds 1: REINFORCE on the data as they are. (0, inf) for both: importance sampling. Positives
    alone, negative = (0, 0): weighted imitation.
    """
    return tapered(positive=between(*positive), negative=between(*negative), ratio=answer_log_ratio)


def topr_token(*, positive: tuple[float, float] = (1.0, 1.0), negative: tuple[float, float] = (0.0, 1.0)) -> Surrogate:
    """`topr` with the ratio of each token, as in the port of Trinity-RFT; the paper's is of the whole answer."""
    return tapered(positive=between(*positive), negative=between(*negative), ratio=token_log_ratio)


def vespo(*, positive: tuple[float, float] = (2.0, 3.0), negative: tuple[float, float] = (3.0, 2.0)) -> Surrogate:
    """sg(e^l w^k e^(-l w)) · A · logp, (k, l) by the sign of A, w = Π_t ρ_t (arXiv 2602.10693)."""
    return tapered(positive=gamma_shaped(*positive), negative=gamma_shaped(*negative), ratio=answer_log_ratio)


def effective_positives(rate: Float[Array, "*S"], baseline: float | int) -> Float[Array, "*S"]:
    """p(1 - c) / (1 + c(1 - 2p)): the share of positive answers that a baseline c makes of a share p, rewards ±1.

    It is Σ |A| over the positives by Σ |A| over all, A = r - c. c = 0: p; c = -1: all; c = 1: none. Where every A is 0
    (c = 1 and p = 1, or c = -1 and p = 0) it is 0. arXiv 2503.14286.
    """
    whole = 1 + baseline * (1 - 2 * rate)
    return jnp.where(whole > 0, rate * (1 - baseline) / jnp.where(whole > 0, whole, 1), 0)
