"""The unified policy-gradient estimator: a mask, a denominator, a credit and the gradient of the policy.

    gradient = 1[stable] · (1/π_ref) · Â · ∇π            (arXiv 2509.04419)

Most surrogates are one choice of the first three; the docstrings of the denominators name them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxrl_llm.losses.ratios import (
    LogRatio,
    answer_log_ratio,
    exponential,
    mean_log_ratio,
    prefix_log_ratio,
    scored,
    token_log_ratio,
)
from jaxrl_llm.losses.surrogates._base import Surrogate, Values
from jaxrl_llm.losses.surrogates.rec_pieces import one_side
from jaxrl_llm.losses.tokens import Tokens

Mask = Callable[[Tokens], Bool[Array, "B G T"]]
Credit = Callable[[Tokens], Values]


def unified(*, mask: Mask, denominator: LogRatio, advantage: Credit) -> Surrogate:
    """sg(mask · (π/π_ref) · Â) · logp, with π/π_ref = exp(denominator(tokens)).

    `denominator` gives log π - log π_ref rather than log π_ref: where both are large, their difference is what is known
    exactly.
    """

    def surrogate(tokens: Tokens) -> Values:
        coefficient = exponential(denominator(tokens)) * advantage(tokens)
        return scored(jnp.where(mask(tokens), coefficient, 0), tokens.logp)

    return surrogate


def over_current(tokens: Tokens) -> Values:
    """π_ref = π: REINFORCE with the credit, imitation with a credit of 1."""
    return jnp.zeros_like(tokens.logp)


def over_behaviour(tokens: Tokens) -> Values:
    """π_ref = μ: importance weights of tokens; with `one_side` as the mask PPO and GRPO."""
    return token_log_ratio(tokens)


def over_one(tokens: Tokens) -> Values:
    """π_ref = 1: answers of an unknown policy, weighted by the probability that the current one gives them."""
    return tokens.logp


def over_mean(tokens: Tokens) -> Values:
    """π_ref = π (Π_t μ_t/π_t)^(1/L): GSPO, with `gspo_one_side` as the mask."""
    return mean_log_ratio(tokens)


def over_answer(tokens: Tokens) -> Values:
    """π_ref = π Π_t μ_t/π_t: importance weights of whole answers."""
    return answer_log_ratio(tokens)


def over_prefix(tokens: Tokens) -> Values:
    """π_ref = π Π_{j<=t} μ_j/π_j: importance weights of prefixes."""
    return prefix_log_ratio(tokens)


def over_clipped(*, low: float | None, high: float) -> LogRatio:
    """π_ref = π / clip(π/μ, 1 - low, 1 + high): CISPO."""
    floor = -math.inf if low is None or low >= 1 else math.log(1 - low)
    return lambda tokens: jnp.clip(token_log_ratio(tokens), floor, math.log(1 + high))


def over_shaped(*, offset: float = 0.1) -> LogRatio:
    """π_ref = (π + offset)² / offset: the shaped probability π/(π + offset) of LUFFY."""

    def denominator(tokens: Tokens) -> Values:
        return tokens.logp - 2 * jnp.logaddexp(tokens.logp, math.log(offset)) + math.log(offset)

    return denominator


def credit(tokens: Tokens) -> Values:
    """Â = A."""
    return tokens.advantage


def ones(tokens: Tokens) -> Values:
    """Â = 1: imitation."""
    return jnp.ones_like(tokens.advantage)


def raised(*, by: float) -> Credit:
    """Â = A + by: AsymRE, a baseline lowered by that much."""
    return lambda tokens: tokens.advantage + by


def with_imitation(*, coefficient: float) -> Credit:
    """Â = A + c μ/π: the gradient of E_μ[ρ r] - c KL(μ‖π), over μ as the denominator."""
    return lambda tokens: tokens.advantage + coefficient * exponential(-jax.lax.stop_gradient(token_log_ratio(tokens)))


def stable(*, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Mask:
    """`one_side`, and also ρ <= dual where A < 0: the tokens that the dual clip leaves alive."""
    base = one_side(low=low, high=high)
    if dual is None:
        return base
    bound = math.log(dual)
    return lambda tokens: base(tokens) & ((tokens.advantage >= 0) | (token_log_ratio(tokens) <= bound))
