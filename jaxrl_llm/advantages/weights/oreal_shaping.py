"""Leave-one-out on rewards of +1 and -1, with one factor a class (OREAL, arXiv 2502.06781; code at 2859cc0)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import weight_on_pass_rate


def oreal_shaping(*, positive: float | int = 1.0, negative: float | int = 0.5) -> AdvantageTransform:
    """Aᵢ = factor · n/(n-1) · (sᵢ - s̄),  s = +1 where r > 1/2, else -1; factor `positive` or `negative` by the class.

    n valid answers to the prompt: positive · 2(1-m) n/(n-1) and -negative · 2m n/(n-1), twice what 0/1 labels give. The
    code multiplies both classes by the credit, the paper derives plain imitation of right answers. Means over each
    class by itself are no matter of credit. All right, all wrong, a group of one: 0.
    """

    def fn(advantage, rollout):
        right = rollout.valid & (advantage > 0.5)
        n = masked.count(rollout.valid, axis=-1, keepdims=True).astype(advantage.dtype)
        hits = masked.count(right, axis=-1, keepdims=True).astype(advantage.dtype)
        credit = jnp.where(right, positive * (n - hits), -negative * hits) * 2 / jnp.maximum(n - 1, 1)
        return jnp.where(rollout.valid, credit, 0)

    good = lambda c, g: positive * 2 * (g - c) / max(g - 1, 1)  # noqa: E731
    f_prime = weight_on_pass_rate(right=good, wrong=lambda c, g: -negative * 2 * c / max(g - 1, 1))
    claim = {"uses_self": True, "minimum_group": 2, "centred": True, "domain": "binary"}
    return stateless(fn, Traits(unbiased="no", f_prime=f_prime, **claim))
