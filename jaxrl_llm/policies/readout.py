"""What the distribution over tokens says of a hidden state, block by block of the vocabulary.

With logits z = cap tanh(h·tableᵀ / cap) (plain where cap is 0), p = softmax(z), y the chosen token and z', q those of a
reference:

    log p_y      z_y - lse                       entropy      -Σ_v p_v log p_v
    squares      Σ_v p_v²                        divergence   Σ_v p_v (log p_v - log q_v)

Neither pass holds all logits. The forward pass walks over blocks of the vocabulary with running sums, as flash
attention does over keys, and keeps what it read, a few numbers a token. The backward pass makes the logits of each
block again:

    ∂/∂z_v = g_y (δ_vy - p_v) - g_H p_v (log p_v + H) + 2 g_S p_v (p_v - S) + g_D p_v (log p_v - log q_v - D)

Blocks are of the vocabulary and not of the tokens, so that each row of the table's gradient is written once, by one
product over all tokens, and tokens that are spread over devices stay where they are. Where a mesh cuts the vocabulary,
every block has its share of every device: block b holds the tokens b, b + B, b + 2B, ...
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm.policies.attention import NEVER, capped

LOGITS = 2**24  # of a policy that exist at a time: 64 MB of float32
LEAST = 512  # tokens of a block, where that is more: narrower products waste the machine


class Head(NamedTuple):
    """Final hidden states, and the table that they are multiplied with."""

    hidden: Float[Array, "*B E"]
    table: Float[Array, "V E"]


class Reading(NamedTuple):
    """Numbers of each position, in nats; `divergence` from the reference, 0 without one."""

    logp: Float[Array, "*B"]
    entropy: Float[Array, "*B"]
    squares: Float[Array, "*B"]
    divergence: Float[Array, "*B"]


def logits_of(head: Head, cap: float) -> Float[Array, "*B V"]:
    """capped(hidden · tableᵀ), contracted without a transposed copy of the table, in float32 or wider."""
    return capped(_product(head.hidden, head.table.astype(head.hidden.dtype), -1, 1), cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def read(cap: float, head: Head, token: Int[Array, "*B"], reference: Head | None) -> Reading:
    """The numbers of the chosen tokens. The reference gets no gradient, and forward differentiation is not defined.

    At most LOGITS logits of a policy exist at a time, or LEAST for each position where that is more.
    """
    return _forward(cap, head, token, reference)[0]


class _Sums(NamedTuple):
    """Of the blocks so far, exponentials relative to the largest logit."""

    largest: Array
    total: Array  # Σ e
    surplus: Array  # Σ e (z - largest)
    squares: Array  # Σ e²
    chosen: Array  # z_y
    difference: Array  # Σ e (z - z')
    their_largest: Array
    their_total: Array


class _Kept(NamedTuple):
    """What the backward pass needs of each position beside the reading."""

    normaliser: Array  # log Σ exp z
    their_normaliser: Array


def _forward(cap, head, token, reference):
    blocks = _Blocks(head.table.shape[0], token.size)
    tables = [blocks.cut(x.table) for x in (head, reference) if x is not None]
    zero = jnp.zeros(token.shape, _wide(head.hidden))
    start = _Sums(zero + NEVER, *[zero] * 5, zero + NEVER, zero)

    def one(sums, b):
        z = blocks.logits(head.hidden, tables[0], b, cap)
        mine = _sums_of(z, blocks.is_token(b, token))
        if reference is not None:
            theirs = blocks.logits(reference.hidden, tables[1], b, cap)
            mine = _with_reference(mine, z, theirs)
        return _joined(sums, mine), None

    sums = blocks.scan(one, start)
    normaliser = sums.largest + jnp.log(sums.total)
    their_normaliser = sums.their_largest + jnp.log(jnp.maximum(sums.their_total, jnp.finfo(zero.dtype).tiny))
    # Relative to the largest logit, so that the entropy of peaked distributions is no difference of large numbers.
    entropy = jnp.log(sums.total) - sums.surplus / sums.total
    divergence = zero
    if reference is not None:
        gap = sums.largest - sums.their_largest + jnp.log(sums.total) - jnp.log(sums.their_total)
        divergence = sums.difference / sums.total - gap
    out = Reading(sums.chosen - normaliser, entropy, sums.squares / jnp.square(sums.total), divergence)
    return out, (head, token, reference, out, _Kept(normaliser, their_normaliser))


def _sums_of(z, is_token):
    zero = jnp.zeros(z.shape[:-1], z.dtype)
    largest = jnp.max(z, axis=-1)
    above = z - largest[..., None]
    e = jnp.exp(above)
    chosen = jnp.sum(jnp.where(is_token, z, 0), axis=-1)
    total, surplus, squares = (jnp.sum(x, axis=-1) for x in (e, e * above, jnp.square(e)))
    return _Sums(largest, total, surplus, squares, chosen, zero, zero + NEVER, zero)


def _with_reference(mine, z, theirs):
    difference = jnp.sum(jnp.exp(z - mine.largest[..., None]) * (z - theirs), axis=-1)
    their_largest = jnp.max(theirs, axis=-1)
    their_total = jnp.sum(jnp.exp(theirs - their_largest[..., None]), axis=-1)
    return mine._replace(difference=difference, their_largest=their_largest, their_total=their_total)


def _joined(a, b):
    """Sums over two sets of tokens from those over each."""
    largest, their_largest = jnp.maximum(a.largest, b.largest), jnp.maximum(a.their_largest, b.their_largest)
    shifts = [x.largest - largest for x in (a, b)]
    by = [jnp.exp(x) for x in shifts]
    return _Sums(
        largest,
        a.total * by[0] + b.total * by[1],
        sum((x.surplus + x.total * shift) * f for x, shift, f in zip((a, b), shifts, by, strict=True)),
        a.squares * jnp.square(by[0]) + b.squares * jnp.square(by[1]),
        a.chosen + b.chosen,
        a.difference * by[0] + b.difference * by[1],
        their_largest,
        sum(x.their_total * jnp.exp(x.their_largest - their_largest) for x in (a, b)),
    )


def _backward(cap, kept, slope):
    head, token, reference, out, kept = kept
    blocks = _Blocks(head.table.shape[0], token.size)
    tables = [blocks.cut(x.table) for x in (head, reference) if x is not None]
    kind, wide = head.hidden.dtype, _wide(head.hidden)

    def slope_of(b):
        """Of the products of hidden states and table, before the cap."""
        z = blocks.logits(head.hidden, tables[0], b, cap)
        logp = z - kept.normaliser[..., None]
        p = jnp.exp(logp)
        factor = -slope.logp[..., None] - slope.entropy[..., None] * (logp + out.entropy[..., None])
        factor = factor + 2 * slope.squares[..., None] * (p - out.squares[..., None])
        if reference is not None:
            theirs = blocks.logits(reference.hidden, tables[1], b, cap) - kept.their_normaliser[..., None]
            factor = factor + slope.divergence[..., None] * (logp - theirs - out.divergence[..., None])
        dz = p * factor + jnp.where(blocks.is_token(b, token), slope.logp[..., None], 0)
        dz = dz * (1 - jnp.square(z / cap)) if cap else dz
        return jnp.where(blocks.real(b, dz.ndim), dz, 0).astype(kind)

    def one(carry, b):
        of_hidden, of_table = carry
        dz, rows = slope_of(b), blocks.rows(tables[0], b, kind)
        of_hidden = of_hidden + _product(dz, rows, -1, 0)
        leading = tuple(range(dz.ndim - 1))
        of_rows = _product(dz, head.hidden, leading, leading)
        return (of_hidden, jax.lax.dynamic_update_index_in_dim(of_table, of_rows, b, 1)), None

    start = jnp.zeros(head.hidden.shape, wide), jnp.zeros(tables[0].shape, wide)
    of_hidden, of_table = blocks.scan(one, start)
    of_table = blocks.joined(of_table).astype(head.table.dtype)
    return Head(of_hidden.astype(kind), of_table), None, None


read.defvjp(_forward, _backward)


def _wide(x: Array) -> jnp.dtype:
    return jnp.promote_types(x.dtype, jnp.float32)


def _product(x: Array, y: Array, over_x, over_y) -> Array:
    """Contraction over the named axes, summed in float32 or wider."""
    axes = tuple(
        tuple(a % z.ndim for a in (over if isinstance(over, tuple) else (over,)))
        for z, over in ((x, over_x), (y, over_y))
    )
    return jax.lax.dot_general(x, y, (axes, ((), ())), preferred_element_type=_wide(x))


class _Blocks:
    """A vocabulary of V in B blocks for N positions; block b holds the tokens b, b + B, ... below V."""

    def __init__(self, vocabulary: int, positions: int):
        self.vocabulary = vocabulary
        least = -(-vocabulary // max(LOGITS // max(positions, 1), LEAST))
        # A number that divides the vocabulary, if one is near: else the table is padded, which copies it.
        self.count = next((b for b in range(least, 2 * least) if vocabulary % b == 0), least)
        self.size = -(-vocabulary // self.count)

    def cut(self, table: Float[Array, "V E"]) -> Float[Array, "R B E"]:
        """Row r of block b is token r B + b."""
        table = jnp.pad(table, ((0, self.size * self.count - self.vocabulary), (0, 0)))
        return table.reshape(self.size, self.count, -1)

    def joined(self, table: Float[Array, "R B E"]) -> Float[Array, "V E"]:
        """The inverse of `cut`."""
        return table.reshape(self.size * self.count, -1)[: self.vocabulary]

    def scan(self, one, carry):
        """The carry after all blocks."""
        if self.count == 1:
            return one(carry, 0)[0]
        return jax.lax.scan(one, carry, jnp.arange(self.count))[0]

    def rows(self, table: Float[Array, "R B E"], b, kind) -> Float[Array, "R E"]:
        return jax.lax.dynamic_index_in_dim(table, b, 1, keepdims=False).astype(kind)

    def logits(self, hidden: Float[Array, "*B E"], table: Float[Array, "R B E"], b, cap: float) -> Float[Array, "*B R"]:
        z = logits_of(Head(hidden, self.rows(table, b, hidden.dtype)), cap)
        return jnp.where(self.real(b, z.ndim), z, NEVER)

    def _tokens(self, b, ndim: int) -> Int[Array, "*B R"]:
        return (jnp.arange(self.size, dtype=jnp.int32) * self.count + b).reshape((1,) * (ndim - 1) + (-1,))

    def real(self, b, ndim: int):
        return self._tokens(b, ndim) < self.vocabulary

    def is_token(self, b, token: Int[Array, "*B"]):
        return self._tokens(b, token.ndim + 1) == token[..., None]
