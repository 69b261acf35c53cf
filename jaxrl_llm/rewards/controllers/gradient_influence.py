"""Component weights that follow the gradients (dynamic reward weighting, arXiv 2509.11452, code 238fe65)."""

import math

import jax
import jax.numpy as jnp

from jaxrl_llm.rewards._base import RewardTransform, cleaned, with_reward


def gradient_influence(
    weights: tuple[float | int, ...],
    learning_rate: float = 1e-6,
    mu: float = 1e-5,
    *,
    floor: float = 1e-6,
) -> RewardTransform:
    """r = Σₖ wₖ cₖ,  w ← softmax(log w + learning_rate · I / mu),  Iₖ = Σⱼ <gₖ, gⱼ>, j = k included.

    gₖ is the gradient with component k as the only reward; extras "component_influence" [K K] holds the inner products,
    of more components than weights the first, and the new w weighs this batch. `weights` are the w of the start; they
    are scaled to sum to one.

    w is unchanged where all Iₖ are equal (no gradients; orthogonal gradients of one size) or one is not finite. Adding
    a constant to I changes nothing, and since j = k counts, a component with a larger gradient gains. log w is held at
    or above log floor (unverified: the release has none, and a weight that underflows to 0 there never comes back).
    State: log w [K], float32.
    """
    if not weights or min(weights) <= 0:
        raise ValueError(f"gradient_influence needs positive weights, not {weights}")
    if not 0 < floor * len(weights) < 1:
        raise ValueError(f"floor must lie between 0 and 1/{len(weights)}, not {floor}")

    def init():
        return jnp.log(jnp.asarray([w / sum(weights) for w in weights], jnp.float32))

    def update(rollout, log_w):
        n = len(weights)
        influence = jnp.sum(rollout.extras["component_influence"][:n, :n], axis=-1).astype(jnp.float32)
        usable = jnp.all(jnp.isfinite(influence)) & jnp.any(influence != influence[:1])
        influence = jnp.where(usable, influence, 0)
        moved = jax.nn.log_softmax(log_w + learning_rate / mu * (influence - jnp.max(influence)))
        moved = jax.nn.log_softmax(jnp.maximum(moved, math.log(floor)))
        log_w = jnp.where(usable, moved, log_w)
        parts = cleaned(rollout, n).components[..., :n]
        scale = jnp.exp(log_w).astype(parts.dtype)[None, None]
        return with_reward(rollout, jnp.sum(parts * scale, axis=-1)), log_w

    return RewardTransform(init, update, ("component_influence",), len(weights))
