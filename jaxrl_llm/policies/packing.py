"""Answers of unequal length scored in rows of a fixed one: several sequences, prompt and answer, one behind another.

A token sees the earlier tokens of its own sequence, at the positions that it has alone, so values and gradients are
those of `answer_logp`. The host lays the rows out, because how many there are depends on the lengths. Each answer
brings its own copy of its prompt: that pays where padding costs more than the prompts do.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.policies.readout import read
from jaxrl_llm.types import pytree


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """R rows of C tokens, and where the predictions of answers [P G T] stand in them."""

    token: Int[Array, "R C"]
    segment: Int[Array, "R C"]  # number of the sequence in its row, from 1; 0: nothing stands here
    position: Int[Array, "R C"]  # in the sequence
    target: Int[Array, "R C"]  # the token that is predicted here
    row: Int[Array, "P G T"]
    column: Int[Array, "P G T"]


def first_fit_decreasing(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Indices by row: the longest first, each into the first row with room; at most 11/9 of the fewest rows + 6/9
    (Dósa, 2007). Raises ValueError where one alone is longer than `capacity`."""
    if len(lengths) and max(lengths) > capacity:
        raise ValueError(f"a sequence of {max(lengths)} tokens does not fit rows of {capacity}")
    rows, room = [], np.zeros(len(lengths), int)
    for i in np.argsort(-np.asarray(lengths), kind="stable"):
        at = int(np.argmax(room[: len(rows)] >= lengths[i])) if np.any(room[: len(rows)] >= lengths[i]) else len(rows)
        if at == len(rows):
            rows.append([])
            room[at] = capacity
        rows[at].append(int(i))
        room[at] -= lengths[i]
    return rows


def pack(
    prompt: np.ndarray, prompt_mask: np.ndarray, answer: np.ndarray, acted: np.ndarray, *, capacity: int, rows: int = 0
) -> Packed:
    """Prompts [P L], padded on the left, and answers [P G T] up to their last acted token, in rows of `capacity`.

    `rows` is how many there shall be, so that programs of one shape serve many batches; 0: as many as needed. Answers
    without an acted token are left out. Raises ValueError where a sequence or their number does not fit.
    """
    p, g, t = answer.shape
    ends = np.where(acted.any(-1), t - np.argmax(acted[..., ::-1], axis=-1), 0).reshape(-1)
    before = np.repeat(prompt_mask.sum(-1), g)
    used = np.flatnonzero(ends)
    lengths = (before + ends - 1)[used]  # the last token of an answer predicts nothing
    found = first_fit_decreasing(lengths, capacity)
    if rows and len(found) > rows:
        raise ValueError(f"{len(found)} rows of {capacity} tokens are needed, more than {rows}")
    token, segment, position, target = (np.zeros((rows or len(found), capacity), np.int32) for _ in range(4))
    row, column = (np.zeros((p * g, t), np.int32) for _ in range(2))
    for r, members in enumerate(found):
        start = 0
        for number, member in enumerate(members, start=1):
            i, size = used[member], lengths[member]
            whole = np.concatenate([prompt[i // g][prompt_mask[i // g]], answer.reshape(p * g, t)[i, : ends[i]]])
            at = slice(start, start + size)
            token[r, at], target[r, at] = whole[:-1], whole[1:]
            segment[r, at], position[r, at] = number, np.arange(size)
            row[i, : ends[i]] = r
            column[i, : ends[i]] = start + before[i] - 1 + np.arange(ends[i])
            start += size
    row, column = row.reshape(p, g, t), column.reshape(p, g, t)
    arrays = {"token": token, "segment": segment, "position": position, "target": target, "row": row, "column": column}
    return Packed(**{name: jnp.asarray(x) for name, x in arrays.items()})


def packed_logp(
    policy: Policy, params: Params, packed: Packed, acted: Bool[Array, "P G T"]
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """As `answer_logp`: log π(token) and entropy, in nats and 0 off `acted`."""
    hidden = policy.score_rows(params, packed.token, packed.segment, packed.position)
    out = read(policy.config.logit_cap, policy.head(params, hidden), packed.target, None)
    logp, entropy = (jnp.where(acted, x[packed.row, packed.column], 0) for x in (out.logp, out.entropy))
    return logp, entropy
