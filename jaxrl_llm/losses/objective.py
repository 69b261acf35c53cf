"""The four independent choices of a policy-gradient objective in one value."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.losses.aggregate import Aggregate
from jaxrl_llm.losses.penalties import Penalty
from jaxrl_llm.losses.surrogates import Surrogate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """L = -Σ w · (surrogate - Σ penalties in the loss),  w = aggregate(where)."""

    surrogate: Surrogate
    aggregate: Aggregate
    penalties: tuple[Penalty, ...] = ()

    @property
    def uses_reference(self) -> bool:
        """Whether a reference policy must be kept."""
        return any(p.uses_reference for p in self.penalties)

    def loss(
        self,
        weights: Float[Array, "B G T"],
        logp: Float[Array, "B G T"],
        behaviour_logp: Float[Array, "B G T"],
        advantage: Float[Array, "B G T"],
        reference_logp: Float[Array, "B G T"],
        entropy: Float[Array, "B G T"],
    ) -> Float[Array, ""]:
        """The part of the loss that these rows of the batch contribute; the parts of all rows add up to the loss.

        Where the weight is 0 the arrays may hold anything, NaN included: the inputs are masked, not the sum, because
        a NaN that only the sum leaves out still comes back through the gradient.
        """
        tokens = (logp, behaviour_logp, advantage, reference_logp, entropy)
        logp, behaviour_logp, advantage, reference_logp, entropy = (jnp.where(weights > 0, x, 0) for x in tokens)
        value = self.surrogate(logp, behaviour_logp, advantage)
        for penalty in self.penalties:
            if penalty.placement == "loss":
                value = value - penalty.coefficient * penalty.cost(logp, reference_logp, entropy)
        return -jnp.sum(weights * value)

    def shaped_reward(
        self,
        reward: Float[Array, "P G"],
        where: Bool[Array, "P G T"],
        policy_logp: Float[Array, "P G T"],
        reference_logp: Float[Array, "P G T"],
    ) -> Float[Array, "P G"]:
        """The reward less the penalties that are placed in it, summed over the tokens of each answer."""
        for penalty in self.penalties:
            if penalty.placement == "reward":
                cost = penalty.cost(policy_logp, reference_logp, jnp.zeros_like(policy_logp))
                reward = reward - penalty.coefficient * jnp.sum(jnp.where(where, cost, 0), axis=-1)
        return reward
