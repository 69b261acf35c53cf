"""The only place where keys are derived.

A draw depends on (seed, stream, step, prompt, answer, position) and on nothing else, so neither the size of a batch,
nor its order, nor a neighbour ever changes a sample, and a resumed run needs no saved key.
"""

import enum
import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


class Stream(enum.IntEnum):
    """What the randomness is for. Two streams of a seed never share a key."""

    PARAMETERS = 0
    ORDER = 1
    WARMUP = 2
    ROLLOUT = 3
    EVALUATION = 4
    SAMPLE = 5
    SELECTION = 6
    VARIANCE = 7


def stream_key(seed: int | Int[Array, ""], stream: Stream) -> Key[Array, ""]:
    """Key of one stream of a run, whose seed may be traced.

    A seed that was not set is a TypeError, one that JAX would cut a ValueError.
    """
    if seed is None or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer, not {seed!r}: an unset seed would make every run the same draw")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ValueError(f"seed must be from 0 to 2**32 - 1, not {seed}: JAX keeps 32 bits, and two seeds would be one")
    return jax.random.fold_in(jax.random.key(seed), int(stream))


def named_key(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """One key a name, such as the path of a parameter: the same on every machine and under any sharding."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def answer_keys(
    key: Key[Array, ""], step: Int[Array, ""] | int, prompt_id: Int[Array, " P"], answers: int
) -> Key[Array, "P G"]:
    """One key for each answer of a step: fold in the step, then the prompt, then the index of the answer."""
    key = jax.random.fold_in(key, step)
    by_prompt = jax.vmap(jax.random.fold_in, (None, 0))(key, prompt_id)
    by_answer = jax.vmap(jax.random.fold_in, (None, 0))
    return jax.vmap(by_answer, (0, None))(by_prompt, jnp.arange(answers))


def answer_seeds(keys: Key[Array, "P G"]) -> Int[Array, "P G"]:
    """A seed from 0 to 2**31 - 1 for each answer, for an engine that draws by itself."""
    bits = jax.vmap(jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32)))(keys)
    return (bits >> 1).astype(jnp.int32)


def position_keys(keys: Key[Array, "P G"], position: Int[Array, ""] | int) -> Key[Array, "P G"]:
    """The keys of one token position."""
    return jax.vmap(jax.vmap(jax.random.fold_in, (0, None)), (0, None))(keys, position)


def answer_noise(
    key: Key[Array, ""], step: Int[Array, ""] | int, prompt_id: Int[Array, " P"], answers: int
) -> Float[Array, "P G"]:
    """Uniform on [0, 1), one number an answer."""
    return jax.vmap(jax.vmap(jax.random.uniform))(answer_keys(key, step, prompt_id, answers))


def token_noise(
    key: Key[Array, ""], step: Int[Array, ""] | int, prompt_id: Int[Array, " P"], answers: int, length: int
) -> Float[Array, "P G T"]:
    """Uniform on [0, 1), one number a token."""
    keys = answer_keys(key, step, prompt_id, answers)
    at = jax.vmap(lambda t: jax.vmap(jax.vmap(jax.random.uniform))(position_keys(keys, t)))(jnp.arange(length))
    return jnp.moveaxis(at, 0, -1)


def epoch_rows(key: Key[Array, ""], step: Int[Array, ""] | int, batch: int, rows: int) -> Int[Array, " P"]:
    """Which rows step number `step` (from 0) sees: each epoch is a fresh permutation of all rows, cut into batches.

    The rows left over at the end of an epoch (fewer than a batch) wait for the next permutation, so a batch never
    holds the same row twice.
    """
    per_epoch = rows // batch
    order = jax.random.permutation(jax.random.fold_in(key, step // per_epoch), rows)
    return jax.lax.dynamic_slice(order, ((step % per_epoch) * batch,), (batch,))
