"""Where the scores of a neural policy come from, and what is kept of them: the back ends of `score_gram`.

A score is s = ∇ Σ_t log π(token_t | prefix) over the acted tokens of a segment of one answer. A back end maps a policy,
its parameters and one answer to S rows, whose inner products stand for those of the scores. `batch` answers are taken
at a time: 1 is best on a CPU, on an accelerator as many as their gradients fit the memory.

    exact         the scores themselves
    count_sketch  random projections of them, unbiased in the inner products
    last_layer    the part of the output head, without a backward pass: a proxy
    lora          scores with respect to low-rank adapters: exact for training those, a proxy otherwise
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.random import named_key
from jaxrl_llm.variance.credit import segment_of

Tree = Any  # of arrays, like the parameters or a part of them


class Answer(NamedTuple):
    """One answer with its prompt, padded as in a rollout; `segment` of each token, -1 where it is not acted."""

    prompt: Int[Array, " L"]
    prompt_mask: Bool[Array, " L"]
    answer: Int[Array, " T"]
    acted: Bool[Array, " T"]
    segment: Int[Array, " T"]


def answer_of(prompt, prompt_mask, answer, acted, segments: int) -> Answer:
    """An answer cut in segments."""
    return Answer(prompt, prompt_mask, answer, acted, segment_of(acted, segments))


class Source(NamedTuple):
    """Scores of the S segments of an answer as a tree whose leaves have S rows: `scores(policy, params, scale, key,
    answer, segments)`. `scale` is a tree like the parameters, or None; `size(policy)` the numbers of one row."""

    scores: Callable[[Policy, Params, Tree | None, Key[Array, ""], Answer, int], Tree]
    size: Callable[[Policy], int]


@dataclasses.dataclass(frozen=True)
class Backend:
    """`source` of scores, `sketch` of them to that many numbers (None: as they are), answers at a time, and how many
    bytes the rows may take that are held together."""

    name: str
    source: Source
    sketch: int | None
    batch: int = 1
    max_bytes: int = 2**31

    def gram(
        self, policy: Policy, params: Params, scale: Tree | None, key: Key[Array, ""], answers: Answer, segments: int
    ) -> Float[Array, "R R"]:
        """Inner products of the rows of N answers, R = N S, float32.

        Rows that do not fit `max_bytes` together are made block by block, and again for each other block: slower, the
        same numbers. Raises ValueError where those of two answers do not fit.
        """
        width, count = self.sketch or self.source.size(policy), len(answers.answer)
        each = 4 * width * segments
        make = self._maker(policy, params, scale, key, answers, segments)
        if each * count <= self.max_bytes:
            rows = make(answers)
            return _inner(rows, rows)
        size = self.max_bytes // (2 * each)
        if not size:
            raise ValueError(
                f"the rows of two answers x {segments} segments x {width} numbers take {2 * each} bytes, more than "
                f"max_bytes={self.max_bytes}: take count_sketch(size=...) or fewer segments"
            )
        blocks = -(-count // size)
        cut = jax.tree.map(lambda x: _blocks(x, blocks, size), answers)
        at = lambda i: jax.tree.map(lambda x: x[i], cut)  # noqa: E731

        def strip(i):
            rows = make(at(i))
            later = jnp.zeros((size * segments, size * segments), jnp.float32)
            pair = lambda j: jax.lax.cond(j <= i, lambda: _inner(rows, make(at(j))), lambda: later)  # noqa: E731
            return jnp.moveaxis(jax.lax.map(pair, jnp.arange(blocks)), 0, 1).reshape(size * segments, -1)

        lower = jnp.tril(jax.lax.map(strip, jnp.arange(blocks)).reshape(blocks * size * segments, -1))
        return (lower + jnp.tril(lower, -1).T)[: count * segments, : count * segments]

    def _maker(self, policy, params, scale, key, answers: Answer, segments: int):
        """Answers -> rows [R D] of them."""
        of = lambda answer: self.source.scores(policy, params, scale, key, answer, segments)  # noqa: E731
        first = jax.tree.map(lambda x: x[0], answers)
        bits = None if self.sketch is None else sketch_bits(jax.eval_shape(of, first), key)

        def one(answer):
            return _flat(of(answer), segments) if bits is None else sketched(of(answer), bits, self.sketch)

        def rows(some):
            found = jax.lax.map(one, some, batch_size=self.batch if self.batch > 1 else None)
            return found.reshape(-1, found.shape[-1])

        return rows


def _inner(first: Float[Array, "R D"], second: Float[Array, "Q D"]) -> Float[Array, "R Q"]:
    return jnp.einsum("rd,qd->rq", first, second, precision=jax.lax.Precision.HIGHEST)


def _blocks(x: Array, blocks: int, size: int) -> Array:
    """[N ...] -> [blocks size ...], the last one filled up with the first rows."""
    more = blocks * size - len(x)
    return jnp.concatenate([x, x[:more]]).reshape(blocks, size, *x.shape[1:])


def exact(*, batch: int = 1, max_bytes: int = 2**31) -> Backend:
    """K of the scores themselves: one row of all parameters an answer and segment."""
    return Backend("exact", Source(_gradients, Policy.parameter_count), None, batch, max_bytes)


def count_sketch(*, size: int = 16384, batch: int = 1, max_bytes: int = 2**31) -> Backend:
    """E[K̂] = K, Var(<Sa, Sb>) <= 2|a|²|b|²/size (Charikar, Chen and Farach-Colton, 2002).

    Each parameter has a bucket and a sign of its own, drawn from (seed, path of the leaf, index), so neither the mesh
    nor the number of answers changes them. All estimators share the sketch, so ratios between them are more precise.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1, not {size}")
    return Backend(f"count sketch {size}", Source(_gradients, Policy.parameter_count), size, batch, max_bytes)


def last_layer(*, size: int | None = None, batch: int = 1, max_bytes: int = 2**31) -> Backend:
    """s = Σ_t (e_y - π_t) h_tᵀ, [V E], from hidden states h and residuals alone, sketched to `size` where given.

    With a head of its own these are the scores of that leaf. With a tied one they are the part of the embedding's score
    that comes through the output; what comes through the input is left out, as are all other layers. A
    `preconditioner` scales the head (the embedding, where it is tied).
    """
    head = lambda policy: policy.vocab_size * policy.config.width  # noqa: E731
    return Backend("last layer", Source(_head_scores, head), size, batch, max_bytes)


def lora(*, rank: int = 8, size: int | None = None, batch: int = 1, max_bytes: int = 2**31) -> Backend:
    """s_B = Aᵀ ∇_W log π of W + AB at B = 0, for the matrices of all layers, sketched to `size` where given.

    A is [inputs, rank], normal of variance 1/rank, drawn from (seed, path of the leaf, layer), so that the inner
    products are those of the matrices' full scores on average over A (Hu et al., 2021, for the adapters). A
    `preconditioner` scales ∇_W before it is projected.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    return Backend(f"lora {rank}", Source(_Adapters(rank), _Adapters(rank).size), size, batch, max_bytes)


def sketch_bits(tree: Tree, key: Key[Array, ""]) -> Tree:
    """32 random bits for each number of a row; leaves of `tree` have S rows, of which only the shapes are read."""
    bits = lambda path, x: jax.random.bits(named_key(key, jax.tree_util.keystr(path)), x.shape[1:], "uint32")  # noqa: E731
    return jax.tree_util.tree_map_with_path(bits, tree)


def sketched(tree: Tree, bits: Tree, size: int) -> Float[Array, "S D"]:
    """Σ of ±value by bucket: the sign is the first of the 32 bits, the bucket the rest modulo `size`."""
    total = 0
    for leaf, drawn in zip(jax.tree.leaves(tree), jax.tree.leaves(bits), strict=True):
        bucket = ((drawn & 0x7FFFFFFF) % size).astype(jnp.int32).reshape(-1)
        values = jnp.where(drawn[None] >> 31 > 0, -leaf, leaf).reshape(len(leaf), -1).astype(jnp.float32)
        total = total + jax.vmap(lambda row, at=bucket: jnp.zeros(size).at[at].add(row))(values)
    return total


def _flat(tree: Tree, segments: int) -> Float[Array, "S D"]:
    return jnp.concatenate([x.reshape(segments, -1).astype(jnp.float32) for x in jax.tree.leaves(tree)], axis=1)


def _scaled(tree: Tree, scale: Tree | None) -> Tree:
    return tree if scale is None else jax.tree.map(lambda x, s: x * s[None], tree, scale)


def _gradients(policy: Policy, params: Params, scale: Tree | None, key, answer: Answer, segments: int) -> Tree:
    """One forward pass, and one backward pass a segment."""

    def by_segment(params):
        inputs = (answer.prompt[None], answer.prompt_mask[None], answer.answer[None, None], answer.acted[None, None])
        logp = answer_logp(policy, params, *inputs)[0][0, 0]
        return jax.nn.one_hot(answer.segment, segments, dtype=logp.dtype, axis=0) @ logp

    _, back = jax.vjp(by_segment, params)
    return _scaled(jax.lax.map(lambda e: back(e)[0], jnp.eye(segments)), scale)


def _head_scores(policy: Policy, params: Params, scale: Tree | None, key, answer: Answer, segments: int) -> Tree:
    prefix = policy.prefill(params, answer.prompt[None], answer.prompt_mask[None])
    hidden = policy.score(params, prefix, answer.answer[None, None])
    logits = policy.logits(params, hidden)[0, 0]
    residual = jax.nn.one_hot(answer.answer, policy.vocab_size) - jax.nn.softmax(logits)
    if cap := policy.config.logit_cap:  # logits are cap tanh(x/cap) of what the head gives
        residual = residual * (1 - jnp.square(logits / cap))
    member = jax.nn.one_hot(answer.segment, segments)
    wide = hidden[0, 0].astype(jnp.float32)
    name = "embedding" if policy.config.tied else "head"
    scores = {name: jnp.einsum("ts,tv,te->sve", member, residual, wide)}
    return _scaled(scores, None if scale is None else {name: scale[name]})


@dataclasses.dataclass(frozen=True)
class _Adapters:
    """Scores of B, one [layers, rank, outputs] a matrix."""

    rank: int

    def __call__(self, policy: Policy, params: Params, scale: Tree | None, key, answer: Answer, segments: int) -> Tree:
        scores = matrices(_gradients(policy, params, scale, key, answer, segments)["blocks"], lead=2)
        at = lambda path, x: jnp.einsum("lir,slio->slro", adapter(key, path, x.shape[1:3], self.rank), x)  # noqa: E731
        return {name: at(name, x) for name, x in scores.items()}

    def size(self, policy: Policy) -> int:
        """Numbers in the adapters B of all layers."""
        shapes = nn.unbox(jax.eval_shape(policy.init, jax.random.key(0)))["blocks"]
        return sum(self.rank * x.shape[0] * x.shape[2] for x in jax.eval_shape(matrices, shapes).values())


def matrices(blocks: Tree, lead: int = 1) -> dict[str, Float[Array, "*B I O"]]:
    """The matrices of all layers, inputs x outputs, behind `lead` axes of which the last is that of the layers."""
    inputs = {"query": 1, "key": 1, "value": 1, "out": 2, "gate": 1, "up": 1, "down": 1}  # axes of a parameter
    fan_in = lambda x, axes: math.prod(x.shape[lead : lead + axes])  # noqa: E731
    return {
        name: blocks[name].reshape(*blocks[name].shape[:lead], fan_in(blocks[name], axes), -1)
        for name, axes in inputs.items()
    }


def adapter(key: Key[Array, ""], name: str, sizes: tuple[int, ...], rank: int) -> Float[Array, "N I R"]:
    """A of the N layers of one matrix of I inputs, `sizes` = (N, I)."""
    return jax.random.normal(named_key(key, name), (*sizes, rank)) / rank**0.5
