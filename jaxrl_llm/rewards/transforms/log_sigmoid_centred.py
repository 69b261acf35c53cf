"""Log-sigmoid-centred rewards (Wang et al., "Transforming and Combining Rewards", arXiv 2402.00742)."""

import jax
import jax.numpy as jnp

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
