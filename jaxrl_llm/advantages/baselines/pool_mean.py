"""Mean of every answer drawn for the prompt, kept or not, as the baseline (Reinforce-Ada, arXiv 2510.04996)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def pool_mean() -> AdvantageTransform:
    """Aᵢ = rᵢ - `pool_mean` [P] of the rollout's extras: the mean over all answers drawn, those not trained on as well.

    Unbiased for a mean that knows nothing of the answers trained on; 1 - 1/N of the gradient where those are all of N
    independent ones. The sampler it is made for is neither: keeping as many right as wrong answers weighs the gradient
    of p by ((1-p)² + p²) / (2p(1-p)), and drawing until they are balanced pulls the mean towards 1/2. Credits of a
    group need not add up to 0. A pool of none or one has mean 0 in the released code.
    """

    def fn(advantage, rollout):
        mean = rollout.extras["pool_mean"][:, None].astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage - mean, 0)

    claim = {"unbiased": "yes", "needs_iid": True, "f_prime": lambda p, g: 1.0}
    return stateless(fn, Traits(**claim, keeps_zero=False, needs=("pool_mean",)))
