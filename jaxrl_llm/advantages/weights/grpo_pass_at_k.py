"""Credit of the best answer alone, by the group's deviation (`grpo_passk` of verl)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import lead_of_the_best, weight_on_pass_rate


def grpo_pass_at_k(*, ddof: int, eps: float) -> AdvantageTransform:
    """Aᵢ = (r₁ - r₂) / (σ + eps) for the best valid answer to the prompt, r₂ the second best reward; 0 for the rest.

    σ with `ddof` over the credit that comes in (verl: 1, 1e-6). `top_gap` over n, divided like GRPO: no unbiased
    estimate of pass@k, for which see `pass_at_k`. A shared best place, an all-equal group and a group of one get 0.
    """

    def fn(advantage, rollout):
        sigma = masked.std(advantage, rollout.valid, axis=-1, ddof=ddof, keepdims=True)
        return lead_of_the_best(advantage, rollout.valid) / jnp.where(sigma > 0, sigma + eps, 1)

    alone = lambda c, g: 1 / (((g - 1) / g / (g - ddof)) ** 0.5 + eps) if c == 1 and g > max(ddof, 1) else 0.0  # noqa: E731
    f_prime = weight_on_pass_rate(right=alone, wrong=lambda c, g: 0.0)
    claim = {"uses_self": True, "minimum_group": 2, "centred": True}
    return stateless(fn, Traits(unbiased="no", f_prime=f_prime, **claim))
