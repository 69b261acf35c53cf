"""REINFORCE with a mask, a weight and a regulariser, each chosen alone (arXiv 2509.24203).

`one_side` with `importance` has the gradient of `clipped`; `no_mask` with `no_weight` is `reinforce`. Where every ratio
is 1, all masks are 1, `importance` is 1 and `squared_log_ratio` pulls nowhere.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxrl_llm.losses import ratios
from jaxrl_llm.losses.ratios import scored, token_log_ratio
from jaxrl_llm.losses.surrogates._base import Surrogate, Values
from jaxrl_llm.losses.tokens import Tokens

Mask = Callable[[Tokens], Bool[Array, "B G T"]]
Measure = Callable[[Tokens], Values]


def rec(*, mask: Mask, weight: Measure, regulariser: Measure) -> Surrogate:
    """sg(M W) · A · logp - regulariser, per token."""

    def surrogate(tokens: Tokens) -> Values:
        kept = jnp.where(mask(tokens), weight(tokens) * tokens.advantage, 0)
        return scored(kept, tokens.logp) - regulariser(tokens)

    return surrogate


def no_mask(tokens: Tokens) -> Bool[Array, "B G T"]:
    """M = 1."""
    return jnp.ones(tokens.logp.shape, bool)


def one_side(*, low: float = 0.2, high: float = 0.2) -> Mask:
    """M = (A >= 0 and ρ <= 1 + high) or (A <= 0 and ρ >= 1 - low): the tokens that PPO's clip leaves alive.

    At the bound itself, where PPO's surrogate has a kink, the token is kept.
    """
    return lambda tokens: _one_side(token_log_ratio(tokens), tokens, low, high)


def two_side(*, low: float = 0.2, high: float = 0.2) -> Mask:
    """M = 1 - low <= ρ <= 1 + high, whatever the credit."""
    return lambda tokens: _inside(_ratio(tokens), low, high)


def ring(*, low: float = 0.2, high: float = 0.2, far_low: float = 0.6, far_high: float = 2.0) -> Mask:
    """`two_side`, or (A >= 0 and ρ <= 1 - far_low), or (A <= 0 and ρ >= 1 + far_high): far on the harmless side, too.

    Between the inner and the outer bound a token is left out on either side. Defaults as in Trinity's README; its
    constructor has far_low = far_high = 0.4.
    """

    def mask(tokens: Tokens) -> Bool[Array, "B G T"]:
        ratio = _ratio(tokens)
        far_up = (tokens.advantage >= 0) & (ratio <= 1 - far_low)
        far_down = (tokens.advantage <= 0) & (ratio >= 1 + far_high)
        return _inside(ratio, low, high) | far_up | far_down

    return mask


def gspo_one_side(*, low: float, high: float) -> Mask:
    """`one_side` of the geometric mean of the answer's ratios; used with `answer_mean`."""
    return lambda tokens: _one_side(ratios.mean_log_ratio(tokens), tokens, low, high)


def no_weight(tokens: Tokens) -> Values:
    """W = 1."""
    return jnp.ones_like(tokens.logp)


def importance(tokens: Tokens) -> Values:
    """W = ρ."""
    return _ratio(tokens)


def exponential(*, temperature: float = 1.0) -> Measure:
    """W = exp(A / temperature), not normalised (RED-Weight). As the temperature grows, W becomes 1."""
    return lambda tokens: ratios.exponential(tokens.advantage / temperature)


def no_regulariser(tokens: Tokens) -> Values:
    """0."""
    return jnp.zeros_like(tokens.logp)


def squared_log_ratio(*, coefficient: float) -> Measure:
    """c (log π - log μ)²: with c = τ/2 the regulariser of OPMD in Kimi's form. No gradient where ρ = 1."""
    return lambda tokens: coefficient * jnp.square(token_log_ratio(tokens))


def forward_kl(*, coefficient: float) -> Measure:
    """-c log π: imitation of what was sampled. The same as c more credit for every token."""
    return lambda tokens: -coefficient * tokens.logp


def opmd(*, coefficient: float = 0.1) -> Surrogate:
    """A logp - c (log π - log μ)² (Kimi k1.5 with c = τ/2; arXiv 2509.24203 with c = 0.1)."""
    return rec(mask=no_mask, weight=no_weight, regulariser=squared_log_ratio(coefficient=coefficient))


def opmd_early(*, temperature: float = 1.0) -> Surrogate:
    """A logp / (1 + τ): the older OPMD of Trinity-RFT, a REINFORCE with another step size."""
    return lambda tokens: scored(tokens.advantage / (1 + temperature), tokens.logp)


def asymmetric_reinforce(*, coefficient: float = 0.1) -> Surrogate:
    """A logp + c logp: REINFORCE with the baseline lowered by c (AsymRE in arXiv 2509.24203, c = 0.1)."""
    return rec(mask=no_mask, weight=no_weight, regulariser=forward_kl(coefficient=coefficient))


def _ratio(tokens: Tokens) -> Values:
    return ratios.exponential(token_log_ratio(tokens))


def _inside(ratio: Values, low: float, high: float) -> Bool[Array, "B G T"]:
    return (ratio >= 1 - low) & (ratio <= 1 + high)


def _one_side(log_ratio: Values, tokens: Tokens, low: float, high: float) -> Bool[Array, "B G T"]:
    ratio = ratios.exponential(log_ratio)
    return ((tokens.advantage >= 0) & (ratio <= 1 + high)) | ((tokens.advantage <= 0) & (ratio >= 1 - low))
