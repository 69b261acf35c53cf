"""Per-decision importance sampling: credit from dense rewards, each with the ratio of the tokens that led to it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.losses.ratios import exponential, prefix_log_ratio
from jaxrl_llm.losses.tokens import Tokens


def per_decision_returns(tokens: Tokens, token_reward: Float[Array, "B G T"]) -> Float[Array, "B G T"]:
    """R_t = Σ_{u>=t} (Π_{j<=u} ρ_j) r_u, detached: the credit of token t (Precup et al., 2000).

    As the advantage of `reinforce` with `answer_sum` an unbiased off-policy gradient of E Σ r_u: a reward does not wait
    for the ratios of tokens after it. With the whole reward at the last token it is `sequence_ratio`. Its variance is
    not always below that. token_reward and the result are [B G T]; a reward off `where` counts for nothing.
    """
    weighted = exponential(prefix_log_ratio(tokens)) * jnp.where(tokens.where, token_reward, 0)
    to_go = jnp.flip(jnp.cumsum(jnp.flip(weighted, -1), axis=-1), -1)
    return jax.lax.stop_gradient(jnp.where(tokens.where, to_go, 0))
