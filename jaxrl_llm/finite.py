"""Where a value that is not finite can enter an update, and whether one has."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxrl_llm.losses import Tokens
from jaxrl_llm.types import Rollout

# In the order in which values arise: the first that is not finite is the cause of those behind it. Credit: advantages,
# and the state of estimators and penalties. Log-probabilities are made of logits, and new parameters of moments.
SITES = ("reward", "logit", "log-probability", "credit", "loss", "gradient", "moment", "parameter")


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number of the tree is finite; integers and keys are."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves])) if leaves else jnp.bool_(True)


def batch_healthy(rollout: Rollout, tokens: Tokens, credit: Any) -> dict[str, Bool[Array, ""]]:
    """What can be said before an update, by site. Invalid answers and tokens without credit may hold anything."""
    recorded = (rollout.behaviour_logp, rollout.policy_logp)
    return {
        "reward": all_finite(jnp.where(rollout.valid, rollout.reward, 0)),
        "log-probability": all_finite([jnp.where(tokens.where, x, 0) for x in recorded]),
        "credit": all_finite((jnp.where(tokens.where, tokens.advantage, 0), credit)),
    }


def update_healthy(
    before: dict[str, Bool[Array, ""]], sums: dict[str, Array], norm: Array, params: Any, moments: Any
) -> Bool[Array, " S"]:
    """Whether all is finite at each of SITES. `before` is of `batch_healthy`; `sums` of `token_sums` and the loss,
    `norm` of the gradient, `params` and `moments` those that the update would leave."""
    # The gap to the recorded log-probabilities tells something of the logits only where those are finite themselves.
    gap = jnp.isfinite(sums["sampling/logp_difference_mean"]) | ~before["log-probability"]
    sites = before | {
        "logit": jnp.isfinite(sums["entropy"]) & gap,
        "loss": jnp.isfinite(sums["loss"]),
        "gradient": jnp.isfinite(norm),
        "moment": all_finite(moments),
        "parameter": all_finite(params),
    }
    return jnp.stack([sites[site] for site in SITES])
