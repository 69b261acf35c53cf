"""Weights of the entropy bonus by how credit and probability move together (TEA of Light-IF, 2025)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import masked


def tea_coefficients(
    advantage: Float[Array, "P G T"],
    logp: Float[Array, "P G T"],
    where: Bool[Array, "P G T"],
    *,
    factor: float | int = 10.0,
    ceiling: float | int = 5.0,
) -> Float[Array, "P G T"]:
    """coefₜ = clip(factor · softmaxₜ(covₜ), 0, ceiling),  covₜ = (Aₜ - mean A) · (log πₜ - mean log π).

    The means are over the tokens of `where`, the softmax over those of one answer. The mean of log π is detached, the
    rest is not, as in the code. Where all A agree (also: one token in all) it is min(factor / tokens of the answer,
    ceiling); an answer without a token gets 0. It weighs the entropy bonus, not the credit. In the released code the
    branch that uses it cannot be reached. factor and ceiling: those of the code; unverified, the paper is said to
    state others, with a threshold. arXiv 2508.03178.
    """
    advantage, logp = jnp.where(where, advantage, 0), jnp.where(where, logp, 0)
    mean = jax.lax.stop_gradient(masked.mean(logp, where))
    cov = jnp.where(where, (advantage - masked.mean(advantage, where)) * (logp - mean), 0)
    share = jax.nn.softmax(cov, axis=-1, where=where)  # of an answer without a token: 0, with a derivative of 0
    return jnp.where(where, jnp.clip(factor * share, 0, ceiling), 0)
