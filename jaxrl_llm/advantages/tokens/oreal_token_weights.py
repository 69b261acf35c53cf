"""Token weights from a token reward model (OREAL, Lyu et al., 2025)."""

import jax
import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens


def oreal_token_weights() -> AdvantageTransform:
    """Aₜ ← wₜ·Aₜ,  wₜ = clip(2qₜ - 1, 0, 1) where Aₜ > 0, clip(1 - 2qₜ, 0, 1) where Aₜ < 0,  qₜ = σ(c̄ₜ).

    c̄ₜ is the mean of `extras["token_score"]` [P G T], the logits of the model, over the acted tokens up to t. The
    weights are detached. A logit of 0 gives weight 0 to both signs: nothing is learned until the model tells right
    from wrong. With rewards ±1 leave-one-out credit is twice that of 0/1. arXiv 2502.06781.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        score = jax.lax.stop_gradient(rollout.extras["token_score"]).astype(advantage.dtype)
        seen = jnp.maximum(jnp.cumsum(where, axis=-1, dtype=jnp.int32), 1).astype(advantage.dtype)
        lean = 2 * jax.nn.sigmoid(jnp.cumsum(jnp.where(where, score, 0), axis=-1) / seen) - 1
        credit = jnp.where(where, advantage, 0)
        return credit * jnp.clip(jnp.where(credit > 0, lean, -lean), 0, 1)

    return stateless(fn, Traits(unbiased="no", uses_self=True, needs=("token_score",)))
