"""Discounted reward-to-go (Williams, 1992; REINFORCE++, Hu et al., 2025)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens, to_go


def reward_to_go(*, discount: float | int) -> AdvantageTransform:
    """Aₜ = Σ_{u>=t} discount^(u-t) · xᵤ over the acted tokens u of the answer, x the token rewards that come in.

    Unbiased with discount 1: a token cannot change rewards before it. Below 1 the far future counts for less, which is
    another direction. Distances count acted tokens; a hole is crossed undiscounted, and its own reward is dropped.
    (verl's REINFORCE++ starts the sum anew at every hole.) An answer without an acted token gets 0. arXiv 2501.03262.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        return jnp.where(where, to_go(advantage, where, discount), 0)

    return stateless(fn, Traits(unbiased="yes" if discount == 1 else "no"))
