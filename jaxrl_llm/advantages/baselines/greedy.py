"""Reward of the greedy answer as the baseline (ReMax, Li et al., arXiv 2310.10505)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def greedy() -> AdvantageTransform:
    """Aᵢ = rᵢ - r of the answer decoded greedily,  which comes as `greedy_reward` [P] of the rollout's extras.

    Unbiased: given the prompt the greedy answer is fixed. Its error is that of the one reward as a value: for 0/1
    rewards of a prompt half solved it is as bad as no baseline. A group of one is like any other.
    """

    def fn(advantage, rollout):
        baseline = rollout.extras["greedy_reward"][:, None].astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage - baseline, 0)

    traits = Traits(unbiased="yes", keeps_zero=False, needs=("greedy_reward",), f_prime=lambda p, g: 1.0)
    return stateless(fn, traits)
