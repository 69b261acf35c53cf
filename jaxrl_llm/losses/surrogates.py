"""Surrogates: the per-token objective, to be maximised, whose gradient in `logp` is the policy gradient.

All take `Tokens` [B G T] and return that shape. A surrogate may combine the tokens of one answer, never those of
several: what needs the whole batch is a correction. Padding is the business of the aggregation. Gradient flows through
`logp` alone.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.losses.tokens import Tokens

Values = Float[Array, "B G T"]
Surrogate = Callable[[Tokens], Values]


def reinforce() -> Surrogate:
    """A · logp (Williams, 1992). On-policy only: nothing corrects for who sampled the answer."""
    return lambda tokens: jax.lax.stop_gradient(tokens.advantage) * tokens.logp


def clipped(*, low: float = 0.2, high: float = 0.2, dual: float | None = None) -> Surrogate:
    """min(ρA, clip(ρ, 1 - low, 1 + high) A) per token, ρ = π/μ (Schulman et al., 2017).

    For either sign of A the smaller of the two is taken, so the bound is pessimistic. `dual` > 1 also bounds the loss
    of a negative A from above, max(·, dual · A) (Ye et al., 2020). On the first update after sampling at temperature 1
    without truncation ρ = 1, the value is A and the gradient is that of `reinforce`.
    """

    def surrogate(tokens: Tokens) -> Values:
        behaviour_logp, advantage = jax.lax.stop_gradient((tokens.behaviour_logp, tokens.advantage))
        ratio = jnp.exp(tokens.logp - behaviour_logp)
        value = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)
        if dual is None:
            return value
        return jnp.where(advantage < 0, jnp.maximum(value, dual * advantage), value)

    return surrogate
