"""What multiplies the scores in a gradient estimate: the coefficients that training would use, read off a batch."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.advantages import AdvantageTransform
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.tokens import Tokens
from jaxrl_llm.types import Rollout


def coefficients(
    transform: AdvantageTransform, objective: Objective | None, rollout: Rollout, tokens: Tokens | None, state: Any
) -> Float[Array, "P G"] | Float[Array, "P G T"]:
    """c in ĝ = Σ c s of one batch, the divisor included.

    Without an objective c = A/(PG), of answers or, where the credit is one of tokens, of tokens. With one c is
    -∂loss/∂logp of each token: ratios, corrections, penalties in loss or reward and the weights of the aggregation are
    those of training; what depends on the parameters other than through `logp` of the tokens is left out.
    `tokens.advantage` is not read.
    """
    if objective is None:
        credit, _ = transform.update(rollout.reward, state, rollout)
        return credit / rollout.reward.size
    rollout = dataclasses.replace(rollout, reward=objective.shaped_reward(rollout.reward, tokens))
    credit, _ = transform.update(rollout.reward, state, rollout)
    credit = credit[..., None] if credit.ndim == 2 else credit
    return -loss_slopes(objective, dataclasses.replace(tokens, advantage=jnp.where(tokens.where, credit, 0))).logp


def loss_slopes(objective: Objective, tokens: Tokens) -> Tokens:
    """∂loss/∂ of everything in the record that depends on the parameters: `logp`, `entropy` and `exact_kl`; else 0."""
    weights = objective.aggregate(tokens.where)

    def loss(moving):
        return objective.loss(weights, dataclasses.replace(tokens, **moving))

    slopes = jax.grad(loss)({name: getattr(tokens, name) for name in ("logp", "entropy", "exact_kl")})
    zeros = {field.name: jnp.zeros_like(tokens.logp) for field in dataclasses.fields(tokens)}
    return Tokens(**(zeros | {"where": tokens.where} | slopes))
