"""Surrogates of single tokens: the policy gradient, importance weights per token and their clips."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxrl_llm.losses.ratios import exponential, held, scored, token_log_ratio
from jaxrl_llm.losses.surrogates._base import Surrogate, Values, pessimistic
from jaxrl_llm.losses.tokens import Tokens


def reinforce() -> Surrogate:
    """A · logp (Williams, 1992). On-policy only: nothing corrects for who sampled the answer."""
    return lambda tokens: scored(tokens.advantage, tokens.logp)


def token_ratio() -> Surrogate:
    """ρ_t A, ρ = π/μ: importance weights of single tokens, without a clip.

    Biased as an off-policy gradient, because the prefix keeps the weight of μ; a baseline leaves the bias as it is.
    """
    return lambda tokens: exponential(token_log_ratio(tokens)) * jax.lax.stop_gradient(tokens.advantage)


def clipped(*, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Surrogate:
    """min(ρA, clip(ρ, 1 - low, 1 + high) A) per token, ρ = π/μ (Schulman et al., 2017).

    For either sign of A the smaller of the two is taken, so the bound is pessimistic. `dual` > 1 also bounds the loss
    of a negative A from above, max(·, dual · A) (Ye et al., 2020). On the first update after sampling at temperature 1
    without truncation ρ = 1, the value is A and the gradient is that of `reinforce`. The weight of positive credit
    alone, `positive_learning_weight` elsewhere, is a factor on the advantage: the surrogate is proportional to |A|.
    """

    def surrogate(tokens: Tokens) -> Values:
        return pessimistic(token_log_ratio(tokens), jax.lax.stop_gradient(tokens.advantage), low, high, dual)

    return surrogate


def log_ratio_clamped(*, low: float = 0.2, high: float = 0.2, bound: float = math.log(1000)) -> Surrogate:
    """`clipped` of a log-ratio that is first held within ±bound, so that no exponential is large (StableReinforce,
    arXiv 2505.02835; bound log 1000).

    Inside the bound it is `clipped`. Outside, the gradient is 0: a token of negative credit whose ratio is above
    e^bound is no longer pushed down, where PPO pushes hardest; `clipped(dual=...)` stops it, too, at another ratio.
    """

    def surrogate(tokens: Tokens) -> Values:
        inside = jnp.clip(token_log_ratio(tokens), -bound, bound)
        return pessimistic(inside, jax.lax.stop_gradient(tokens.advantage), low, high, None)

    return surrogate


def cispo(*, low: float | None, high: float) -> Surrogate:
    """sg(clip(ρ, 1 - low, 1 + high)) · A · logp: the weight is clipped, no token is left out (MiniMax-M1,
    arXiv 2506.13585).

    `low` None: no lower bound. TRL's `epsilon_high` is the bound itself: its 1.28 is high = 0.28 with low None or 1.
    """

    def surrogate(tokens: Tokens) -> Values:
        weight = jnp.clip(exponential(token_log_ratio(tokens)), 0.0 if low is None else 1 - low, 1 + high)
        return scored(weight * tokens.advantage, tokens.logp)

    return surrogate


def sapo(*, positive: float = 1.0, negative: float = 1.05) -> Surrogate:
    """(4/τ) σ(τ(ρ - 1)) A with τ = `positive` where A > 0 and `negative` elsewhere: a soft clip (arXiv 2511.20347).

    The derivative in logp is 4 ρ σ(1 - σ) A: A at ρ = 1, falling to 0 on both sides. Used with `answer_mean`.
    """
    if not (positive > 0 and negative > 0):
        raise ValueError(f"positive and negative must be above 0, not {positive} and {negative}")

    def surrogate(tokens: Tokens) -> Values:
        advantage = jax.lax.stop_gradient(tokens.advantage)
        gate = lambda tau: jax.nn.sigmoid(tau * (exponential(token_log_ratio(tokens)) - 1)) * (4 / tau)  # noqa: E731
        return jnp.where(advantage > 0, gate(positive), gate(negative)) * advantage

    return surrogate


def dppo(*, low: float, high: float, maximum: float = 20.0) -> Surrogate:
    """1[π - μ <= high] sg(min(ρ, maximum)) A logp for A > 0, 1[π - μ >= -low] for the others (arXiv 2602.04879).

    The trust region is one of probabilities, not of ratios: the total variation that the sampled token alone accounts
    for. `maximum` as in verl, where the bounds have no default of their own.
    """

    def surrogate(tokens: Tokens) -> Values:
        change = jnp.exp(jnp.minimum(tokens.logp, 0)) - jnp.exp(jnp.minimum(tokens.behaviour_logp, 0))
        kept = jnp.where(tokens.advantage > 0, change <= high, change >= -low)
        weight = jnp.minimum(exponential(token_log_ratio(tokens)), maximum)
        return scored(jnp.where(kept, weight * tokens.advantage, 0), tokens.logp)

    return surrogate


def shaped_probability(*, offset: float = 0.1) -> Surrogate:
    """f(π) A with f(π) = π / (π + offset), for answers of an unknown policy (LUFFY; arXiv 2509.04419, offset 0.1).

    The derivative in logp is A · offset · π / (π + offset)²: highest where π = offset, where a likelihood would give A
    to every token, however unlikely. `behaviour_logp` is not read.
    """
    if not offset > 0:
        raise ValueError(f"offset must be above 0, not {offset}")

    def surrogate(tokens: Tokens) -> Values:
        return jax.nn.sigmoid(held(tokens.logp) - math.log(offset)) * jax.lax.stop_gradient(tokens.advantage)

    return surrogate


def probability() -> Surrogate:
    """π A: the policy gradient of answers whose sampler is taken to give every token the same chance."""
    return lambda tokens: exponential(tokens.logp) * jax.lax.stop_gradient(tokens.advantage)


def proximal(surrogate: Surrogate) -> Surrogate:
    """The same surrogate with the policy that sampled in the place of the distribution that was sampled from.

    ρ becomes π/π_old, and what π_old/μ does is left to a correction: three policies, not two (decoupled objective:
    Hilton et al., 2021, arXiv 2110.00641).
    """
    return lambda tokens: surrogate(dataclasses.replace(tokens, behaviour_logp=tokens.policy_logp))
