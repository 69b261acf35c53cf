"""Log-sigmoid-centred rewards (Wang et al., "Transforming and Combining Rewards", arXiv 2402.00742)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm import masked
from jaxrl_llm.rewards._base import RewardTransform, stateless

Reference = float | int | None


def log_sigmoid_centred(reference: Reference = None) -> RewardTransform:
    """u = log σ(r - r_ref),  r_ref one constant, or by prompt in extras "reference_reward" [P] where it is None.

    u is the log-probability that the answer beats the reference under Bradley-Terry: u <= 0, u(r_ref) = -log 2,
    du/dr = σ(r_ref - r), so it is r - r_ref far below the reference and flat far above it.
    """

    def fn(rollout):
        value = rollout.extras["reference_reward"][:, None] if reference is None else reference
        return jax.nn.log_sigmoid(rollout.reward - value)

    return stateless(fn, needs=("reference_reward",) if reference is None else ())


def log_sigmoid_conjunction(reference: tuple[float | int, ...] | None = None) -> RewardTransform:
    """u = Σₖ log σ(cₖ - refₖ): the log-probability that the answer is good in all K properties at once.

    refₖ are K constants for the first K components, or extras "reference_reward" [P K] for all of them where
    `reference` is None. A high component does not make up for a low one, as it does in Σₖ cₖ.
    """

    def fn(rollout):
        if reference is None:
            return jnp.sum(
                jax.nn.log_sigmoid(rollout.components - rollout.extras["reference_reward"][:, None]), axis=-1
            )
        value = jnp.asarray(reference, rollout.components.dtype)[None, None]
        return jnp.sum(jax.nn.log_sigmoid(rollout.components[..., : len(reference)] - value), axis=-1)

    return stateless(
        fn,
        needs=("reference_reward",) if reference is None else (),
        components=1 if reference is None else len(reference),
    )


def quantile_reference(
    reward: Float[Array, "P N"], where: Bool[Array, "P N"], *, quantile: float = 0.85
) -> Float[Array, " P"]:
    """r_ref(x): a quantile of the rewards of N reference answers to each prompt, linear between order statistics.

    Entries off the mask may hold anything; a prompt without a reference answer has r_ref = 0.
    """
    n = masked.count(where, axis=-1, keepdims=True)
    ordered = jnp.sort(jnp.where(where, reward, jnp.inf), axis=-1)
    place = quantile * jnp.maximum(n - 1, 0).astype(jnp.promote_types(reward.dtype, jnp.float32))
    below = jnp.floor(place).astype(jnp.int32)
    low, high = (jnp.take_along_axis(ordered, jnp.minimum(i, jnp.maximum(n - 1, 0)), -1) for i in (below, below + 1))
    some = n > 0
    low, high = jnp.where(some, low, 0), jnp.where(some, high, 0)
    return (low + (high - low) * (place - below).astype(reward.dtype))[:, 0]


def gaussian_reference(
    reward: Float[Array, "P N"], where: Bool[Array, "P N"], *, ddof: int, deviations: float = 1.0364
) -> Float[Array, " P"]:
    """r_ref(x) = mean + deviations · std of the rewards of N reference answers; Φ(1.0364) = 0.85.

    A prompt with one reference answer has its reward as r_ref, one without any has 0.
    """
    return masked.mean(reward, where, axis=-1) + deviations * masked.std(reward, where, axis=-1, ddof=ddof)
