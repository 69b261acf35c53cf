"""Baseline shared by the answers of one role (public baseline of AdvEvo-MARL, arXiv 2510.01586)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._stats import is_role, spread_over_roles


def role_mean(*, roles: int, leave_one_out: bool) -> AdvantageTransform:
    """Aᵢ = rᵢ - mean of r over the prompt's n valid answers of the same role, or over the others of them.

    `role` [P G] holds 0 ... roles-1; an answer of another number gets 0. Unverified: over which answers the paper takes
    the mean (here those to one prompt), and whether it divides by a deviation (here not). With the own answer in it the
    scale is 1 - roles/G where every role answers, and a lone answer of a role gets 0. Leave-one-out is unbiased: a lone
    answer keeps its reward, or its role would never learn.
    """

    def fn(advantage, rollout):
        mine = rollout.valid[..., None] & is_role(rollout.extras["role"], roles)
        n = jnp.sum(jnp.where(mine, masked.count(mine, axis=1, keepdims=True), 0), axis=-1)
        mean = masked.mean(spread_over_roles(advantage, roles), mine, axis=1, keepdims=True)
        excess = advantage - jnp.sum(jnp.where(mine, mean, 0), axis=-1)
        grown = excess * (n / jnp.maximum(n - 1, 1)).astype(advantage.dtype) if leave_one_out else excess
        return jnp.where(n > 0, jnp.where(leave_one_out & (n == 1), advantage, grown), 0)

    scaled = {"unbiased": "scaled", "scale": lambda p, g: 1 - roles / g, "uses_self": True, "minimum_group": 2}
    claim = {"unbiased": "yes", "needs_iid": True, "f_prime": lambda p, g: 1.0} if leave_one_out else scaled
    return stateless(fn, Traits(**claim, centred=not leave_one_out, needs=("role",)))
