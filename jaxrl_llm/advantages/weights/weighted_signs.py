"""Right and wrong answers push with different strength (W-REINFORCE, Zhu et al., arXiv 2506.01347)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def weighted_signs(*, positive: float | int) -> AdvantageTransform:
    """Aᵢ = positive · rᵢ - (1 - rᵢ): `positive` for a right answer, -1 for a wrong one. Rewards of 0 and 1.

    0 is `negative_only`, 1 is REINFORCE on rewards of +1 and -1. They advise 0.1, where the default of their code is 1,
    hence none here. On fresh answers the mean is 1 + positive times the gradient; a reward between 0 and 1 counts in
    part. No answer leaves the batch.
    """

    def fn(advantage, rollout):
        return jnp.where(rollout.valid, positive * advantage - (1 - advantage), 0)

    factor = lambda p, g: float(1 + positive)  # noqa: E731
    claim = {"uses_self": positive != 0, "keeps_zero": False, "domain": "unit", "f_prime": factor}
    return stateless(fn, Traits(unbiased="scaled", scale=factor, **claim))
