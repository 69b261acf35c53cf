"""Scores of text spans as token rewards (Text2Grad, 2025)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens, length_damping, position


def span_credit(*, suggested_length: float | int, slope: float | int) -> AdvantageTransform:
    """xₜ ← xₜ + dₜ·sₜ,  dₜ = 1 / (1 + exp(clip(slope · (kₜ - suggested_length) - 6, -10, 6))).

    s is `extras["token_reward"]` [P G T], each token holding the score of its span; kₜ the acted tokens before t. An
    answer whose critique could not be read is invalid, or its s is 0. `gae` or `reward_to_go` comes after it. It adds
    another aim to the reward. suggested_length, slope and whether k starts at 0: unverified, no values were found.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        damping = length_damping(position(where), suggested_length, slope).astype(advantage.dtype)
        return jnp.where(where, advantage + damping * rollout.extras["token_reward"].astype(advantage.dtype), 0)

    return stateless(fn, Traits(unbiased="no", keeps_zero=False, needs=("token_reward",)))
