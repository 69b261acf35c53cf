"""Rotary positions (Su et al., 2021), plain and stretched to longer texts."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxrl_llm.policies.config import Rope


def frequencies(rope: Rope, size: int) -> np.ndarray:
    """Angle of each pair per position [D/2], float32.

    plain   f_i = base^(-2i/D)
    linear  f_i / factor                                          (Chen et al., 2023, arXiv 2306.15595)
    llama3  f_i (s + (1 - s)/factor),  s = (original_length f_i/2π - low) / (high - low) within [0, 1]
                                                                  (Llama 3.1)
    yarn    the same with s = 1 - (i - a)/(b - a) within [0, 1], where pair a turns `high` times within
            original_length and pair b turns `low` times, a and b rounded outwards if `truncate`
                                                                  (Peng et al., 2023, arXiv 2309.00071)
    """
    pair = np.arange(0, size, 2, dtype=np.float32)
    plain = 1 / np.float32(rope.base) ** (pair / np.float32(size))
    if rope.kind == "plain":
        return plain
    if rope.kind == "linear":
        return plain / np.float32(rope.factor)
    share = _llama3(rope, plain) if rope.kind == "llama3" else _yarn(rope, size)
    return (plain * share + plain / np.float32(rope.factor) * (1 - share)).astype(np.float32)


def _llama3(rope: Rope, plain: np.ndarray) -> np.ndarray:
    turns = rope.original_length * plain / np.float32(2 * math.pi)
    return np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)


def _yarn(rope: Rope, size: int) -> np.ndarray:
    def pair_with(turns: float) -> float:
        return size * math.log(rope.original_length / (turns * 2 * math.pi)) / (2 * math.log(rope.base))

    first, last = pair_with(rope.high), pair_with(rope.low)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last = last + 0.001 if first == last else last  # a step instead of a ramp
    return 1 - np.clip((np.arange(size // 2, dtype=np.float32) - first) / (last - first), 0, 1)


def rotate(
    x: Float[Array, "P G S H D"],
    position: Int[Array, "P #G S"],
    frequency: Float[Array, " D2"],
    factor: Float[Array, ""] | float,
) -> Float[Array, "P G S H D"]:
    """Halves of each head rotated as in Llama: pair i is (i, i + D/2) and turns by position · frequency_i."""
    half = x.shape[-1] // 2
    angle = position[..., None, None].astype(jnp.float32) * frequency[None, None, None, None, :]
    cos, sin = ((f(angle) * factor).astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
