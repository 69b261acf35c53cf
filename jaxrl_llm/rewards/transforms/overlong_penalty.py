"""The soft penalty on overlong answers (DAPO, Yu et al., arXiv 2503.14476, eq. 13)."""

import jax.numpy as jnp

from jaxrl_llm.rewards._base import RewardTransform, lengths, stateless


def overlong_penalty(limit: int, buffer: int, *, factor: float | int = 1.0) -> RewardTransform:
    """r ← r + factor · clip((limit - buffer - L) / buffer, -1, 0),  L the acted tokens of the answer.

    0 up to limit - buffer tokens, then linear, -factor from `limit` on. A buffer of 0 is the hard form: -factor where
    L > limit. verl 1dda039 and TRL have the same values as long as no answer is longer than the limit; beyond it verl
    goes on below -factor.
    """
    if not 0 <= buffer <= limit:
        raise ValueError(f"overlong_penalty: buffer must be from 0 to limit ({limit}), not {buffer}")

    def fn(rollout):
        length = lengths(rollout)
        penalty = jnp.where(length > limit, -1.0, 0.0)
        if buffer:
            penalty = jnp.clip((limit - buffer - length) / buffer, -1, 0)
        return rollout.reward + factor * penalty

    return stateless(fn)
