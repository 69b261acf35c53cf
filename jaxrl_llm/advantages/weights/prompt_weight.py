"""Weight given with the prompt (GUI-G1, arXiv 2505.15810)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def prompt_weight() -> AdvantageTransform:
    """Aᵢ ← Aᵢ · difficulty of the prompt,  `extras["difficulty"]` [P].

    GUI-G1 after the group mean: small targets weigh more. How they get the weight from the size of the target is
    unverified (their sample data holds 1 throughout), so it comes with the data. Multiplying the credit is multiplying
    the gradient of the prompt, as long as nothing divides afterwards. Weights of 1 change nothing.
    """

    def fn(advantage, rollout):
        weight = rollout.extras["difficulty"][:, None].astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage, 0) * jnp.where(rollout.valid, weight, 0)

    return stateless(fn, Traits(unbiased="no", uses_self=True, needs=("difficulty",)))
