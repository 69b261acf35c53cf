"""Optimal token baseline (arXiv 2602.07078)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens, energy_baselined


def optimal_token_baseline(*, leave_one_out: bool, zero_tail: bool) -> AdvantageTransform:
    """Aₖⁱ = xₖⁱ - Bₖⁱ,  Bₖⁱ = Σⱼ Wₖʲ xₖʲ / Σⱼ Wₖʲ over the answers j to the prompt that have an acted token number k.

    x is the reward-to-go that comes in; W the sum of `extras["token_energy"]` over the acted tokens up to number k.
    Tokens are compared by their number among the acted ones, holes left out (verl's "tir" form; without holes the
    same as its plain form). W all 0 counts as all equal. leave_one_out: j ≠ i, unbiased; else biased, as published.
    Where no other answer reaches k (a group of one, the tail of the longest): x if zero_tail, as in verl, else 0.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        energy = rollout.extras["token_energy"].astype(advantage.dtype)
        return energy_baselined(jnp.where(where, advantage, 0), energy, where, leave_one_out, zero_tail)

    grouped = {"minimum_group": 1 if zero_tail else 2, "centred": not zero_tail, "needs_iid": leave_one_out}
    unbiased = "yes" if leave_one_out and zero_tail else "no"
    return stateless(fn, Traits(unbiased=unbiased, uses_self=not leave_one_out, needs=("token_energy",), **grouped))
