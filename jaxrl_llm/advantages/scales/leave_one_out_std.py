"""Division by the standard deviation of the other answers of the group ("grpo" of NeMo-RL)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import weight_on_pass_rate


def leave_one_out_std(*, eps: float) -> AdvantageTransform:
    """Aᵢ ← Aᵢ / (σ₋ᵢ + eps),  σ₋ᵢ the deviation (ddof 1) of the rewards of the other valid answers to the prompt.

    Where σ₋ᵢ = 0 (fewer than two others, or all of them equal) nothing is divided: the lone right answer of a group
    keeps its credit while the wrong ones are rescaled, so a group no longer sums to 0. NeMo: after `leave_one_out`,
    eps 1e-6. Each deviation is taken from its own answers; a difference of sums would lose it to rounding.
    """

    def fn(advantage, rollout):
        p, g = rollout.reward.shape
        others = rollout.valid[:, None, :] & ~jnp.eye(g, dtype=bool)[None]
        reward = jnp.broadcast_to(rollout.reward[:, None, :], (p, g, g))
        sigma = masked.std(reward, others, axis=-1, ddof=1).astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage, 0) / jnp.where(sigma > 0, sigma + eps, 1)

    spread = lambda j, n: (j * (n - j) / n / (n - 1)) ** 0.5 if 0 < j < n else 0.0  # noqa: E731  j right of n
    factor = lambda j, n: 1 / (spread(j, n) + eps) if spread(j, n) else 1.0  # noqa: E731
    f_prime = weight_on_pass_rate(right=lambda c, g: factor(c - 1, g - 1), wrong=lambda c, g: 0.0)
    return stateless(fn, Traits(unbiased="no", uses_self=True, f_prime=f_prime))
