"""What several token transforms share. A hole is a token between acted ones that the policy did not choose.

Holes and padding carry no credit; sums run across holes, and distances count acted tokens alone.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import masked
from jaxrl_llm.types import Rollout

Values = Float[Array, "P G T"]
Where = Bool[Array, "P G T"]
Spans = Int[Array, "*B S"]


def acted_tokens(rollout: Rollout) -> Where:
    """The acted tokens of valid answers: the only ones that carry credit."""
    return rollout.acted & rollout.valid[..., None]


def to_go(x: Values, where: Where, discount: float | int) -> Values:
    """yₜ = Σ discount^(acted tokens from t up to u, u not counted) · xᵤ over the acted u >= t.

    At a hole y is that of the next acted token, past the last one 0. The linear recurrence yₜ = xₜ + aₜ·yₜ₊₁, with a
    the discount at acted tokens and 1 elsewhere, is an associative scan, so its depth is log T.
    """
    factor = jnp.where(where, jnp.asarray(discount, x.dtype), 1)

    def join(late, early):
        (a, b), (c, d) = late, early
        return a * c, d + c * b

    return jax.lax.associative_scan(join, (factor, jnp.where(where, x, 0)), reverse=True, axis=x.ndim - 1)[1]


def following(x: Values, where: Where) -> Values:
    """x of the next acted token after t; 0 after the last."""
    here_or_later = to_go(x, where, 0.0)
    return jnp.concatenate([here_or_later[..., 1:], jnp.zeros_like(x[..., :1])], axis=-1)


def position(where: Where) -> Int[Array, "P G T"]:
    """Number of acted tokens of the answer before t."""
    return jnp.cumsum(where, axis=-1, dtype=jnp.int32) - where.astype(jnp.int32)


def compact(x: Values, where: Where) -> Values:
    """The acted tokens of each answer moved to the front in their order, the rest 0."""
    x = jnp.where(where, x, 0)
    return jnp.take_along_axis(x, jnp.argsort(~where, axis=-1, stable=True), axis=-1)


def spread(x: Values, where: Where) -> Values:
    """The inverse of `compact`: acted token number k of an answer gets x at k, the rest 0."""
    return jnp.where(where, jnp.take_along_axis(x, position(where) % x.shape[-1], axis=-1), 0)


def top_fraction(score: Values, where: Where, fraction: float | int) -> Where:
    """The k = max(⌊fraction · n⌋, 1) highest scores among the n tokens of the whole batch.

    Tokens that tie with the k-th are all kept, so that no order of the batch decides. ⌊fraction · n⌋ is taken in the
    default float type.
    """
    score = jnp.where(where, score, -jnp.inf)
    n = masked.count(where)
    k = jnp.clip(jnp.floor(fraction * n).astype(jnp.int32), 1, score.size)
    threshold = jnp.sort(score, axis=None, descending=True)[k - 1]
    return where & (score >= threshold)


def spans_to_tokens(start: Spans, end: Spans, score: Float[Array, "*B S"], length: int) -> Float[Array, "*B {length}"]:
    """rₜ = Σ of the scores of the spans [start, end) that cover token t; 0 where none does (Text2Grad, 2025).

    A span that could not be aligned is given as an empty one (end <= start); its score may be anything. Overlapping
    spans add up. One span over the whole answer is a constant reward per token.
    """
    t = jnp.arange(length).reshape((1,) * start.ndim + (length,))
    covers = (start[..., None] <= t) & (t < end[..., None])
    return jnp.sum(jnp.where(covers, score[..., None], 0), axis=-2)


def length_damping(position: Int[Array, "*S"], suggested_length: float | int, slope: float | int) -> Float[Array, "*S"]:
    """1 / (1 + exp(clip(slope · (position - suggested_length) - 6, -10, 6)))  (Text2Grad, 2025).

    Near 1 up to the suggested length, 1/2 at suggested_length + 6/slope, never below 1/(1 + e⁶).
    """
    return jax.nn.sigmoid(-jnp.clip(slope * (position - suggested_length) - 6.0, -10.0, 6.0))


def energy_baselined(x: Values, energy: Values, where: Where, leave_one_out: bool, zero_tail: bool) -> Values:
    """x less its mean over the answers at the same acted-token number, weighted by the energy spent so far.

    Written as Σⱼ Wⱼ(xᵢ - xⱼ) / Σⱼ Wⱼ: equal answers get exactly 0, and no large own term is added and taken away again.
    """
    spent = jnp.cumsum(jnp.where(where, energy, 0), axis=-1)
    x, spent, alive = compact(x, where), compact(spent, where), compact(where.astype(x.dtype), where)
    others = 1 - jnp.eye(x.shape[1], dtype=x.dtype)[None, :, :, None]
    pair = alive[:, None] * (others if leave_one_out else jnp.ones_like(others))
    weight = pair * spent[:, None]
    weight = jnp.where(jnp.sum(weight, axis=2, keepdims=True) > 0, weight, pair)
    mass = jnp.sum(weight, axis=2)
    credit = jnp.sum(weight * (x[:, :, None] - x[:, None]), axis=2) / jnp.where(mass > 0, mass, 1)
    alone = jnp.sum(alive, axis=1, keepdims=True) < 2
    return spread(jnp.where(alone, x if zero_tail else 0, credit), where)


def leave_one_out_of(reward: Values, where: Where) -> Values:
    """n/(n-1) · (R - mean R) at every acted token, R the token rewards of an answer summed, n the answers with one."""
    some = jnp.any(where, axis=-1, keepdims=True)
    total = masked.total(reward, where, axis=-1, keepdims=True)
    return jnp.where(where, _bessel(some, total.dtype) * (total - masked.mean(total, some, axis=1, keepdims=True)), 0)


def prime_process(q: Values, where: Where, scale_by_batch_max: bool) -> Values:
    """aₜ = n/(n-1) · (qₜ - mean over answers of q̄ⱼ) at acted tokens, q first scaled by its largest |sum to go|."""
    q = jnp.where(where, q, 0)
    if scale_by_batch_max:
        largest = jnp.max(jnp.abs(to_go(q, where, 1.0)), initial=0)
        q = q / jnp.where(largest > 0, largest, 1)
    some = jnp.any(where, axis=-1, keepdims=True)
    mean = masked.mean(masked.mean(q, where, axis=-1, keepdims=True), some, axis=1, keepdims=True)
    return jnp.where(where, _bessel(some, q.dtype) * (q - mean), 0)


def _bessel(some, dtype):
    """n/(n-1), 0 for n < 2."""
    n = masked.count(some, axis=1, keepdims=True)
    return jnp.where(n > 1, n.astype(dtype) / jnp.maximum(n - 1, 1).astype(dtype), 0)
