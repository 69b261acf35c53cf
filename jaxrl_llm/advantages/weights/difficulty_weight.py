"""Weight by the spread of right and wrong answers (Observe-R1, 2025; their code at f09c1e4)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import pass_rate, weight_on_pass_rate


def difficulty_weight(*, sigma: float | int) -> AdvantageTransform:
    """Aᵢ ← Aᵢ · 4 sigma d (1-d),  d the share of the prompt's valid answers with rᵢ >= 1.

    An answer counts as right by the whole part of its reward, so bonuses below 1 (format, length) do not count; theirs
    is trunc(r), the same for rewards in [0, 2). A group that is all right or all wrong gets 0, and with it its bonuses.
    Observe-R1 is chain(group_mean(), group_std(ddof=1, eps=1e-9), difficulty_weight(sigma=1.8)): with 0/1 rewards
    ~ √(p(1-p)), the opposite of GRPO's 1/√(p(1-p)). `sigma` is a factor of the learning rate and no more.
    """

    def fn(advantage, rollout):
        d = pass_rate((rollout.reward >= 1).astype(advantage.dtype), rollout.valid)
        return jnp.where(rollout.valid, advantage, 0) * (4 * sigma * d * (1 - d))

    right = lambda c, g: 4 * sigma * c / g * (1 - c / g)  # noqa: E731
    claim = {"uses_self": True, "minimum_group": 2, "centred": True, "domain": "binary"}
    f_prime = weight_on_pass_rate(right=right, wrong=lambda c, g: 0.0)
    return stateless(fn, Traits(unbiased="no", f_prime=f_prime, **claim))
