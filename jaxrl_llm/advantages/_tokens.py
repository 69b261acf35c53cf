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
    the discount at acted tokens and 1 elsewhere, is an associative scan, so its depth is log T; without discount it is
    a sum from the back, which is cheaper.
    """
    if discount == 1:
        return jax.lax.cumsum(jnp.where(where, x, 0), axis=x.ndim - 1, reverse=True)
    factor = jnp.where(where, jnp.asarray(discount, x.dtype), 1)

    def join(late, early):
        (a, b), (c, d) = late, early
        return a * c, d + c * b

    return jax.lax.associative_scan(join, (factor, jnp.where(where, x, 0)), reverse=True, axis=x.ndim - 1)[1]


def following(x: Values, where: Where) -> Values:
    """x of the next acted token after t; 0 after the last."""
    length = x.shape[-1]
    here_or_later = jax.lax.cummin(jnp.where(where, jnp.arange(length), length), axis=x.ndim - 1, reverse=True)
    later = jnp.concatenate([here_or_later[..., 1:], jnp.full_like(here_or_later[..., :1], length)], axis=-1)
    return jnp.where(later < length, jnp.take_along_axis(x, jnp.minimum(later, length - 1), axis=-1), 0)


def position(where: Where) -> Int[Array, "P G T"]:
    """Number of acted tokens of the answer before t."""
    return jnp.cumsum(where, axis=-1, dtype=jnp.int32) - where.astype(jnp.int32)


def numbered(where: Where) -> Int[Array, "P G T"]:
    """At k the place of acted token number k of the answer, in 0 ... T-1; T where it has fewer."""
    length = where.shape[-1]
    places, none = jnp.arange(length, dtype=jnp.int32), jnp.full(length, length, jnp.int32)
    # Every hole aims beyond the end, and is dropped.
    row = lambda target: none.at[target].set(places, mode="drop")  # noqa: E731
    return jax.vmap(jax.vmap(row))(jnp.where(where, position(where), length))


def compact(x: Values, place: Int[Array, "P G T"]) -> Values:
    """The tokens of each answer at the places of `numbered`, in their order; the rest 0."""
    length = x.shape[-1]
    return jnp.where(place < length, jnp.take_along_axis(x, jnp.minimum(place, length - 1), axis=-1), 0)


def spread(x: Values, where: Where) -> Values:
    """The way back from `compact`: acted token number k of an answer gets x at k, the rest 0."""
    return jnp.where(where, jnp.take_along_axis(x, position(where) % x.shape[-1], axis=-1), 0)


def top_fraction(score: Values, where: Where, fraction: float | int) -> Where:
    """The k = max(⌊fraction · n⌋, 1) highest scores among the n tokens of the whole batch.

    Tokens that tie with the k-th are all kept, so that no order of the batch decides. ⌊fraction · n⌋ is taken in the
    default float type.
    """
    n = masked.count(where)
    k = jnp.clip(jnp.floor(fraction * n).astype(jnp.int32), 1, jnp.maximum(n, 1))
    return where & (score >= masked.kth_smallest(score, where, n - k + 1))


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

    All x are taken less the largest of the group, so that equal answers get exactly 0; the sums over the others leave
    the own term out, so that no large one is added and taken away again.
    """
    spent = jnp.cumsum(jnp.where(where, energy, 0), axis=-1)
    place = numbered(where)
    x, spent, alive = compact(x, place), compact(spent, place), place < x.shape[-1]
    n = masked.count(alive, axis=1, keepdims=True)
    peak = jnp.max(jnp.where(alive, x, -jnp.inf), axis=1, keepdims=True, initial=-jnp.inf)
    below = jnp.where(alive, x - jax.lax.stop_gradient(jnp.where(n > 0, peak, 0)), 0)
    terms = spent, spent * below, below
    mass, weighted, plain = _of_others(terms) if leave_one_out else jax.tree.map(_of_all, terms)
    count = jnp.maximum(n - alive if leave_one_out else n, 1).astype(x.dtype)
    some = mass > 0
    mean = jnp.where(some, weighted, plain) / jnp.where(some, mass, count)
    return spread(jnp.where(n < 2, x if zero_tail else 0, below - mean), where)


def _of_all(x: Values) -> Float[Array, "P 1 T"]:
    return jnp.sum(x, axis=1, keepdims=True)


def _of_others(terms: tuple[Values, ...]) -> tuple[Values, ...]:
    """Σ_{j≠i} xⱼ over the group, as the sum before i plus the sum after it."""
    add = lambda total, row: (jax.tree.map(jnp.add, total, row), total)  # noqa: E731
    rows = tuple(jnp.moveaxis(x, 1, 0) for x in terms)
    zero = tuple(jnp.zeros_like(x[0]) for x in rows)
    before, after = (jax.lax.scan(add, zero, rows, reverse=back)[1] for back in (False, True))
    return tuple(jnp.moveaxis(a + b, 0, 1) for a, b in zip(before, after, strict=True))


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
