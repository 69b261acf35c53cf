"""Rewards paid at single tokens."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens


def dense_rewards() -> AdvantageTransform:
    """xₜ ← xₜ + cₜ, c the token rewards of `extras["token_reward"]` [P G T].

    What comes in should be token rewards too, as after `at_end`. With `reward_to_go(discount=1.0)` after it, it is
    unbiased for the sum of all rewards, which is another aim than the reward alone. A reward at a token that the policy
    did not choose is dropped. A baseline that comes before it sees nothing of c.
    """

    def fn(advantage, rollout):
        paid = rollout.extras["token_reward"].astype(advantage.dtype)
        return jnp.where(acted_tokens(rollout), advantage + paid, 0)

    return stateless(fn, Traits(unbiased="no", keeps_zero=False, needs=("token_reward",)))
