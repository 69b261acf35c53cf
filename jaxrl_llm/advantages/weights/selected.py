"""Credit of marked answers alone (OREAL, arXiv 2502.06781, keeps one right and one wrong answer of each prompt)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def selected() -> AdvantageTransform:
    """Aᵢ ← Aᵢ where `selected` [P G] of the rollout's extras is True, else 0.

    After a baseline the credit is that of the whole group while only some of it is trained on. Which answers are
    marked depends on their rewards, so the claim of what comes before does not survive.
    """

    def fn(advantage, rollout):
        return jnp.where(rollout.valid & (rollout.extras["selected"] > 0), advantage, 0)

    return stateless(fn, Traits(unbiased="no", uses_self=True, needs=("selected",)))
