"""Penalties: per-token costs beside the policy gradient, each with a coefficient and a placement.

With r = log π_ref - log π on tokens drawn from π, k1 and k3 estimate KL(π‖π_ref) without bias, and k2 has the gradient
of k1's expectation (Schulman, 2020). Placed "in the loss", k1 has a gradient of expectation 0, k3 follows the gradient
of the reverse divergence KL(π_ref‖π), and k2 is the one whose gradient is that of KL(π‖π_ref). These are facts of
single tokens: a cost per token in the loss leaves out what a token does to the divergence of later ones, which the
placement in the reward has.
Placed "in the reward", the sum over the tokens of an answer is subtracted from its reward before any baseline, and
needs no gradient.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.losses.corrections import Correction
from jaxrl_llm.losses.ratios import held, through_own_token
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
    """π_ref/π - 1 - log(π_ref/π): unbiased and never negative. The exponent is held within ±60."""
    r = tokens.reference_logp - tokens.logp
    return jnp.expm1(held(r)) - r


def k3_clamped(*, input_bound: float = 20.0, output_bound: float = 10.0) -> Cost:
    """k3 with log(π_ref/π) within ±input_bound and the result within ±output_bound; no gradient outside.

    The bounds are verl's and SkyRL's; other libraries have others, or none. The clamp takes the hold off a policy that
    has gone far: beyond it the cost pulls nowhere.
    """

    def cost(tokens: Tokens) -> Values:
        r = jnp.clip(tokens.reference_logp - tokens.logp, -input_bound, input_bound)
        return jnp.clip(jnp.expm1(r) - r, -output_bound, output_bound)

    return cost


def with_score(estimator: Cost) -> Cost:
    """estimator · π/sg(π): the same value, and the gradient of its expectation, with the score-function term.

    E[∇k + k ∇log π] = ∇E[k], so any estimator without bias in value has the right gradient in the loss, token by token.
    """

    def cost(tokens: Tokens) -> Values:
        log_one = through_own_token(jnp.zeros_like(tokens.logp), tokens)
        return estimator(tokens) * jnp.exp(log_one)

    return cost


def k3_unbiased(tokens: Tokens) -> Values:
    """k3 · π/sg(π): the value of k3 with the gradient of KL(π‖π_ref) at each token."""
    return with_score(k3)(tokens)


def _exact_kl(tokens: Tokens) -> Values:
    return tokens.exact_kl


def _negative_entropy(tokens: Tokens) -> Values:
    return -tokens.entropy


def kl(estimator: Cost, coefficient: float, placement: Literal["loss", "reward"]) -> Penalty:
    """KL to the reference policy: `kl(k3, 0.04, "loss")` is GRPO's, `kl(k1, 0.05, "reward")` is RLOO's."""
    return Penalty(estimator, coefficient, placement, uses_reference=True)


def rao_blackwell(coefficient: float, placement: Literal["loss", "reward"]) -> Penalty:
    """Σ_v π_v log(π_v/π_ref,v) at every acted token: the divergence itself in the place of an estimate.

    In the loss it has the expected gradient of k2, with less variance: what a token does to its own divergence. In the
    reward it has the rest, what a token does to the divergence of later ones. The gradient of KL(π‖π_ref) is the sum of
    the two, so it takes both placements; k1 in the reward has it alone, with more variance as a rule, not always: the
    noise of a token can cancel the divergence of later ones. Amini et al., 2025 (arXiv 2504.10637). Needs whole
    distributions.
    """
    return Penalty(_exact_kl, coefficient, placement, uses_reference=True, uses_exact_kl=True)


def adaptive(penalty: Penalty, *, target: float, horizon: float) -> Penalty:
    """coefficient ← coefficient · (1 + clip(c̄/target - 1, -0.2, 0.2) · answers/horizon) (Ziegler et al., 2019).

    c̄ is the mean cost of an acted token in the last step. Ziegler's is the sum over an answer: its target is that of a
    token times the length. Without an acted token the coefficient stays as it is.
    """
    if not (target > 0 and horizon > 0):
        raise ValueError(f"target and horizon must be above 0, not {target} and {horizon}")

    def adapt(coefficient: Array, mean: Array, answers: Array) -> Array:
        return coefficient * (1 + jnp.clip(mean / target - 1, -0.2, 0.2) * answers / horizon)

    return penalty._replace(adapt=adapt)


def entropy_bonus(coefficient: float) -> Penalty:
    """Reward the entropy of every acted token's distribution, in the loss (Mnih et al., 2016)."""
    return Penalty(_negative_entropy, coefficient, "loss", uses_reference=False)
