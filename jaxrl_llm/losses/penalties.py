"""Penalties: per-token costs beside the policy gradient, each with a coefficient and a placement.

With r = log π_ref - log π on tokens drawn from π, k1 and k3 estimate KL(π‖π_ref) without bias, and k2 has the gradient
of k1's expectation (Schulman, 2020). Placed "in the loss", k1 has a gradient of expectation 0, k3 follows the gradient
of the reverse divergence KL(π_ref‖π), and k2 is the one whose gradient is that of KL(π‖π_ref).
Placed "in the reward", the sum over the tokens of an answer is subtracted from its reward before any baseline, and
needs no gradient.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

Tokens = Float[Array, "*B T"]


class Penalty(NamedTuple):
    """coefficient · cost(logp, reference_logp, entropy) per token. `uses_reference`: needs a reference policy."""

    cost: Callable[[Tokens, Tokens, Tokens], Tokens]
    coefficient: float
    placement: Literal["loss", "reward"]
    uses_reference: bool


def k1(logp: Tokens, reference_logp: Tokens, entropy: Tokens) -> Tokens:
    """log π - log π_ref: unbiased, any sign, high variance."""
    del entropy
    return logp - reference_logp


def k2(logp: Tokens, reference_logp: Tokens, entropy: Tokens) -> Tokens:
    """(log π - log π_ref)² / 2: biased value, the right gradient in a loss."""
    del entropy
    return jnp.square(logp - reference_logp) / 2


def k3(logp: Tokens, reference_logp: Tokens, entropy: Tokens) -> Tokens:
    """π_ref/π - 1 - log(π_ref/π): unbiased and never negative."""
    del entropy
    r = reference_logp - logp
    return jnp.expm1(r) - r


def _negative_entropy(logp: Tokens, reference_logp: Tokens, entropy: Tokens) -> Tokens:
    del logp, reference_logp
    return -entropy


def kl(
    estimator: Callable[[Tokens, Tokens, Tokens], Tokens], coefficient: float, placement: Literal["loss", "reward"]
) -> Penalty:
    """KL to the reference policy: `kl(k3, 0.04, "loss")` is GRPO's, `kl(k1, 0.05, "reward")` is RLOO's."""
    return Penalty(estimator, coefficient, placement, uses_reference=True)


def entropy_bonus(coefficient: float) -> Penalty:
    """Reward the entropy of every acted token's distribution, in the loss (Mnih et al., 2016)."""
    return Penalty(_negative_entropy, coefficient, "loss", uses_reference=False)
