"""Weight by a power of p(1-p): GRPO, Dr. GRPO and Observe-R1 on one axis (own derivation)."""

import jax
import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import pass_rate, weight_on_pass_rate


def power_weight(*, power: float | int) -> AdvantageTransform:
    """Aᵢ ← Aᵢ · (m (1-m))^power,  m the mean reward of the prompt's valid answers, rewards in [0, 1].

    After the group mean, with 0/1 rewards: -1/2 is GRPO (population deviation), 0 is Dr. GRPO, 1/2 has Observe-R1's
    shape. Where m(1-m) <= 0 the weight is 0 for a positive power, else 1: nothing is divided. Detached.
    """

    def fn(advantage, rollout):
        m = jax.lax.stop_gradient(pass_rate(rollout.reward, rollout.valid))
        mixed = (m > 0) & (m < 1)
        weight = jnp.where(mixed, jnp.where(mixed, m * (1 - m), 1) ** power, 0 if power > 0 else 1)
        return jnp.where(rollout.valid, advantage, 0) * weight.astype(advantage.dtype)

    edge = 0.0 if power > 0 else 1.0
    right = lambda c, g: (c / g * (1 - c / g)) ** power if c < g else edge  # noqa: E731
    f_prime = weight_on_pass_rate(right=right, wrong=lambda c, g: 0.0)
    claim = {"unbiased": "yes" if power == 0 else "no", "uses_self": power != 0, "domain": "unit"}
    return stateless(fn, Traits(f_prime=f_prime, **claim))
