"""Corrections that choose or reweigh tokens: by covariance, and by the class of their credit."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import masked
from jaxrl_llm.losses.corrections import Correction
from jaxrl_llm.losses.penalties import Penalty
from jaxrl_llm.losses.ratios import exponential, token_log_ratio
from jaxrl_llm.losses.tokens import Tokens

ROUNDING = 1e-4  # nats, between the log-probabilities of sampler and learner

Values = Float[Array, "P G T"]
Where = Bool[Array, "P G T"]


def clip_cov(
    *,
    fraction: float = 2e-4,
    low: float = 1.0,
    high: float = 5.0,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Correction:
    """0 at k = max(⌊fraction · N⌋, 1) random tokens with low < cov_t < high, 1 at the others (Cui et al., 2025).

    cov_t = (A_t - mean A)(log π_t - mean log π), means over the N acted tokens of the batch. Tokens that PPO's clip
    with these bounds stops anyway are not chosen, and all are where fewer than k qualify. The choice is by `noise`, so
    it is the same on any mesh; in other libraries it changes from run to run. Moving. Defaults as in verl.
    """

    def weight(tokens: Tokens) -> Values:
        cov, ratio = _covariance(tokens), exponential(token_log_ratio(tokens))
        stopped = ((tokens.advantage > 0) & (ratio > 1 + clip_high)) | ((tokens.advantage < 0) & (ratio < 1 - clip_low))
        eligible = tokens.where & (cov > low) & (cov < high) & ~stopped
        chosen = _first((tokens.noise,), eligible, _share(tokens.where, fraction))
        return jnp.where(chosen, 0, jnp.ones_like(cov))

    return Correction(weight, moving=True)


def kl_cov(*, fraction: float = 2e-4, coefficient: float = 1.0) -> Penalty:
    """coefficient · |log π - log μ| at the k = max(⌊fraction · N⌋, 1) tokens of largest covariance (Cui et al., 2025).

    The covariance is that of `clip_cov`; ties go by `noise`, so that a batch without credit is not penalised whole.
    The cost compares with the policy that sampled and needs no reference. Below 1e-4 nats it counts as 0: the slope of
    an absolute value would make a gradient of full size out of the sampler's rounding. Moving.
    """

    def share(tokens: Tokens) -> Values:
        cov = _covariance(tokens)
        chosen = _first((-cov, tokens.noise), tokens.where, _share(tokens.where, fraction))
        return chosen.astype(cov.dtype)

    def cost(tokens: Tokens) -> Values:
        x = token_log_ratio(tokens)
        return jnp.where(jnp.abs(x) > ROUNDING, jnp.abs(x), 0)

    return Penalty(cost, coefficient, "loss", uses_reference=False, weight=Correction(share, moving=True))


def class_denominators(*, positive: float = 1.0, negative: float = 1.0) -> Correction:
    """positive · N/N₊ at tokens with A > 0, negative · N/N₋ at those with A < 0: each class is a mean of its own.

    With `token_mean`, whose weights are 1/N, each class is divided by its own tokens (OREAL, arXiv 2502.06781:
    positive 1, negative 0.5); penalties keep the 1/N. Tokens without credit are in neither class. An empty class adds
    nothing. A factor of 0 drops the class with its denominator, which is what deleting its rows does (the released code
    of arXiv 2506.01347): its step is 1/(share of the kept class) times the one that keeps the rows.
    """

    def weight(tokens: Tokens) -> Values:
        up, down = tokens.where & (tokens.advantage > 0), tokens.where & (tokens.advantage < 0)
        return _per_class(up, down, positive, negative, tokens.where, tokens.advantage.dtype)

    return Correction(weight)


def class_denominators_answers(*, positive: float = 1.0, negative: float = 1.0) -> Correction:
    """`class_denominators` with answers counted, not tokens: for `answer_mean` and `answer_sum`.

    An answer is positive or negative as its mean credit is.
    """

    def weight(tokens: Tokens) -> Values:
        some = jnp.any(tokens.where, axis=-1, keepdims=True)
        mean = masked.mean(tokens.advantage, tokens.where, axis=-1, keepdims=True)
        each = _per_class(some & (mean > 0), some & (mean < 0), positive, negative, some, tokens.advantage.dtype)
        return jnp.broadcast_to(each, tokens.advantage.shape)

    return Correction(weight)


def _per_class(up: Where, down: Where, positive: float, negative: float, where: Where, dtype) -> Values:
    n = masked.count(where).astype(dtype)
    part = lambda mask: jnp.where(mask, n / jnp.maximum(masked.count(mask), 1).astype(dtype), 0)  # noqa: E731
    return positive * part(up) + negative * part(down)


def _covariance(tokens: Tokens) -> Values:
    centred = lambda x: x - masked.mean(x, tokens.where, axis=(0, 1, 2), keepdims=True)  # noqa: E731
    return jnp.where(tokens.where, centred(tokens.advantage) * centred(tokens.logp), 0)


def _share(where: Where, fraction: float):
    return jnp.maximum(jnp.floor(fraction * masked.count(where).astype(jnp.float32)), 1).astype(jnp.int32)


def _first(keys: tuple[Values, ...], where: Where, k) -> Where:
    """The k entries of smallest keys among those where True, the first key first; all of them where there are fewer.

    What ties in all keys goes by place.
    """
    chosen = jnp.zeros_like(where)
    for key in keys:
        left = k - masked.count(chosen)
        last = masked.kth_smallest(key, where, jnp.minimum(left, masked.count(where)))
        below = where & (key < last)
        chosen, where = chosen | below, where & (key == last)
    left = k - masked.count(chosen)
    rank = jnp.cumsum(where, axis=None, dtype=jnp.int32).reshape(where.shape)
    return chosen | (where & (rank <= left))
