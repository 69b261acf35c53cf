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


SMALL_K = 64  # up to here `lax.top_k` is quicker than the search


def restrict(logits: Float[Array, "P G V"], rules: SamplingRules) -> Float[Array, "P G V"]:
    """Logits of the distribution that is really sampled: divided by the temperature, -inf where truncated away.

    Of tokens tied at the edge of top-k or top-p all are kept, so the outcome does not depend on the order of ids. Top-p
    keeps the tokens that less than top_p of probability is likelier than. Nothing is sorted.
    """
    if rules.temperature == 0:
        there = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        return jnp.where(there == likeliest(logits)[..., None], 0.0, -jnp.inf)
    logits = logits / rules.temperature if rules.temperature != 1 else logits
    if 0 < rules.top_k < logits.shape[-1]:
        if rules.top_k <= SMALL_K:
            edge = jax.lax.top_k(logits, rules.top_k)[0][..., -1:]
            logits = jnp.where(logits >= edge, logits, -jnp.inf)
        else:
            logits = _fewest(logits, jnp.ones_like(logits), rules.top_k)
    if rules.top_p < 1:
        logits = _fewest(logits, jax.nn.softmax(logits, axis=-1), rules.top_p)
    return logits


def _fewest(logits: Float[Array, "P G V"], weight: Float[Array, "P G V"], bound: float | int) -> Float[Array, "P G V"]:
    """-inf where the tokens with larger logits weigh `bound` or more together; `weight` is not negative.

    The edge is found by bisection over the images of logits in the whole numbers, an order that floats share: 32 sums,
    each over the vocabulary. A sum with more terms left out is never larger, rounded or not, so the search is exact.
    """
    image = _image(logits)
    kept = jnp.max(image, axis=-1, keepdims=True)  # of a threshold that keeps all above it; nothing is above the best
    lost = jnp.full_like(kept, jnp.iinfo(jnp.int32).min)

    def halve(_, bounds):
        lost, kept = bounds
        middle = (lost & kept) + ((lost ^ kept) >> 1)  # the mean, rounded down, where the sum would overflow
        light = jnp.sum(jnp.where(image > middle, weight, 0), axis=-1, keepdims=True) < bound
        return jnp.where(light, lost, middle), jnp.where(light, middle, kept)

    _, edge = jax.lax.fori_loop(0, 32, halve, (lost, kept))
    return jnp.where(image >= edge, logits, -jnp.inf)


def _image(logits: Float[Array, "*B"]) -> Int[Array, "*B"]:
    """Whole numbers in the order of the floats: their bits, those of negative ones turned over."""
    wide = jnp.asarray(logits, jnp.float32)
    bits = jax.lax.bitcast_convert_type(jnp.where(wide == 0, 0.0, wide), jnp.int32)  # -0 is 0
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def likeliest(logits: Float[Array, "P G V"]) -> Int[Array, "P G"]:
    """The lowest id of the largest logit, as `argmax`: two plain reductions, which on CPU take a tenth of its time."""
    here = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    best = logits == jnp.max(logits, axis=-1, keepdims=True)
    last = logits.shape[-1] - 1
    return jnp.min(jnp.where(best, here, last), axis=-1)  # NaN equals nothing, and still gives an id


def draw(
    keys: Key[Array, "P G"], logits: Float[Array, "P G V"], rules: SamplingRules
) -> tuple[Int[Array, "P G"], Float[Array, "P G"], Float[Array, "P G"]]:
    """A token, its log-probability under the sampled distribution, and its log-probability under the policy itself."""
    if rules.temperature == 0:
        token = likeliest(logits)
        return token, jnp.zeros(token.shape, logits.dtype), _logp(logits, token)
    restricted = restrict(logits, rules)
    noise = jax.vmap(jax.vmap(lambda key: jax.random.gumbel(key, logits.shape[-1:], logits.dtype)))(keys)
    token = likeliest(restricted + noise)
    policy_logp = _logp(logits, token)
    return token, policy_logp if restricted is logits else _logp(restricted, token), policy_logp


def _logp(logits: Float[Array, "P G V"], token: Int[Array, "P G"]) -> Float[Array, "P G"]:
    """`log_softmax` at one token, without the table of the others."""
    best = jnp.max(logits, axis=-1)
    chosen = jnp.take_along_axis(logits, token[..., None], axis=-1)[..., 0]
    return chosen - best - jnp.log(jnp.sum(jnp.exp(logits - best[..., None]), axis=-1))
