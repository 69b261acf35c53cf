"""How a token is drawn from logits, and with which probability."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingRules:
    """Temperature, then top-k, then top-p, in the order of the field's samplers."""

    temperature: float = 1.0  # 0: always the likeliest token
    top_k: int = 0  # keep this many likeliest tokens; 0: all
    top_p: float = 1.0  # keep the fewest likeliest tokens that hold this probability; 1: all

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or more, and finite, not {self.temperature}")
        if self.top_k < 0:
            raise ValueError(f"top_k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {self.top_p}")


GREEDY = SamplingRules(temperature=0.0)


def restrict(logits: Float[Array, "P G V"], rules: SamplingRules) -> Float[Array, "P G V"]:
    """Logits of the distribution that is really sampled: divided by the temperature, -inf where truncated away.

    Of tokens tied at the edge of top-k or top-p all are kept, so the outcome does not depend on the order of ids.
    """
    if rules.temperature == 0:
        best = jnp.max(logits, axis=-1, keepdims=True)
        first = jnp.cumsum(logits == best, axis=-1) == 1  # of equals the lowest id, as argmax does
        return jnp.where((logits == best) & first, 0.0, -jnp.inf)
    logits = logits / rules.temperature
    if 0 < rules.top_k < logits.shape[-1]:
        edge = jax.lax.top_k(logits, rules.top_k)[0][..., -1:]
        logits = jnp.where(logits >= edge, logits, -jnp.inf)
    if rules.top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        share = jax.nn.softmax(ordered, axis=-1)
        inside = jnp.cumsum(share, axis=-1) - share < rules.top_p
        edge = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= edge, logits, -jnp.inf)
    return logits


def draw(
    keys: Key[Array, "P G"], logits: Float[Array, "P G V"], rules: SamplingRules
) -> tuple[Int[Array, "P G"], Float[Array, "P G"], Float[Array, "P G"]]:
    """A token, its log-probability under the sampled distribution, and its log-probability under the policy itself."""
    restricted = restrict(logits, rules)
    if rules.temperature == 0:
        token = jnp.argmax(restricted, axis=-1)
    else:
        noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], logits.dtype)))(keys)
        token = jnp.argmax(restricted + noise, axis=-1)

    def at(x):
        return jnp.take_along_axis(jax.nn.log_softmax(x, axis=-1), token[..., None], axis=-1)[..., 0]

    return token, at(restricted), at(logits)
