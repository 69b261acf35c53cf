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

from jaxrl_llm.losses.corrections import Correction
from jaxrl_llm.losses.tokens import Tokens

Values = Float[Array, "B G T"]
Cost = Callable[[Tokens], Values]


class Penalty(NamedTuple):
    """coefficient · cost(tokens) per token.

    uses_reference  needs a reference policy
    uses_exact_kl   reads `exact_kl`, so the head is run for both policies
    weight          coefficient per token from the whole batch, on top
    adapt           (coefficient, mean cost of a token, answers) -> coefficient of the next step
    """

    cost: Cost
    coefficient: float
    placement: Literal["loss", "reward"]
    uses_reference: bool
    uses_exact_kl: bool = False
    weight: Correction | None = None
    adapt: Callable[[Array, Array, Array], Array] | None = None


def k1(tokens: Tokens) -> Values:
    """log π - log π_ref: unbiased, any sign, high variance."""
    return tokens.logp - tokens.reference_logp


def k2(tokens: Tokens) -> Values:
    """(log π - log π_ref)² / 2: biased value, the right gradient in a loss."""
    return jnp.square(tokens.logp - tokens.reference_logp) / 2


def k3(tokens: Tokens) -> Values:
    """π_ref/π - 1 - log(π_ref/π): unbiased and never negative."""
    r = tokens.reference_logp - tokens.logp
    return jnp.expm1(r) - r


def _negative_entropy(tokens: Tokens) -> Values:
    return -tokens.entropy


def kl(estimator: Cost, coefficient: float, placement: Literal["loss", "reward"]) -> Penalty:
    """KL to the reference policy: `kl(k3, 0.04, "loss")` is GRPO's, `kl(k1, 0.05, "reward")` is RLOO's."""
    return Penalty(estimator, coefficient, placement, uses_reference=True)


def entropy_bonus(coefficient: float) -> Penalty:
    """Reward the entropy of every acted token's distribution, in the loss (Mnih et al., 2016)."""
    return Penalty(_negative_entropy, coefficient, "loss", uses_reference=False)
