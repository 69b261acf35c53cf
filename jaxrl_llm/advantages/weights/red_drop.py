"""Group mean after dropping surplus wrong answers at random (RED-Drop, arXiv 2509.24203)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import weight_on_pass_rate, without_surplus


def red_drop() -> AdvantageTransform:
    """Aᵢ = rᵢ - mean of the kept answers to the prompt, 0 for the dropped; needs `extras["noise"]` [P G] in [0, 1).

    An answer is good where r >= the mean of the valid answers (4 ulp of slack, so rounding moves no class), else bad.
    Of more bad than good ones the surplus with the least noise goes. For 0/1 rewards and m < 1/2 it is, in mean over
    the noise, the group-mean credit over 2(1-m); for m >= 1/2 nothing is dropped. Equal rewards and a group of one: 0.
    """

    def fn(advantage, rollout):
        kept = without_surplus(advantage, rollout.valid, rollout.extras["noise"])
        r = jnp.where(kept, advantage, 0)
        return jnp.where(kept, r - masked.mean(r, kept, axis=-1, keepdims=True), 0)

    u = lambda c, g: 1 / (2 * max(1 - c / g, 0.5))  # noqa: E731
    f_prime = weight_on_pass_rate(right=lambda c, g: u(c, g) * (1 - c / g), wrong=lambda c, g: -u(c, g) * c / g)
    claim = {"uses_self": True, "minimum_group": 2, "centred": True, "needs": ("noise",)}
    return stateless(fn, Traits(unbiased="no", f_prime=f_prime, **claim))
