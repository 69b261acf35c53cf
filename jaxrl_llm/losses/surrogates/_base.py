"""What a surrogate is, and the clip that several share."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.losses.ratios import exponential
from jaxrl_llm.losses.tokens import Tokens

Values = Float[Array, "B G T"]
Surrogate = Callable[[Tokens], Values]


def pessimistic(log_ratio: Values, advantage: Values, low: float, high: float, dual: float | None) -> Values:
    """The clipped surrogate of these log-ratios."""
    ratio = exponential(log_ratio)
    value = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - low, 1 + high) * advantage)
    if dual is None:
        return value
    return jnp.where(advantage < 0, jnp.maximum(value, dual * advantage), value)
