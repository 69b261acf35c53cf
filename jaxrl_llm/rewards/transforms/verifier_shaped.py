"""A reward model inside the classes of a verifier (Qwen2.5-Math, Yang et al., arXiv 2409.12122)."""

import jax

from jaxrl_llm.rewards._base import RewardTransform, stateless


def verifier_shaped(alpha: float | int = 0.5, *, model: int, verifier: int) -> RewardTransform:
    """r = σ(α cₘ) + (cᵥ - 1),  cₘ the logit of a reward model, cᵥ in {0, 1} a verifier: two indices of components.

    Right answers lie in (0, 1) and wrong ones in (-1, 0): the model ranks within a class and never across. α = 0 is the
    verifier alone, r = cᵥ - 1/2. Groups of one class keep a signal, which a std normalisation blows up to unit size.
    """

    def fn(rollout):
        return jax.nn.sigmoid(alpha * rollout.components[..., model]) + (rollout.components[..., verifier] - 1)

    return stateless(fn, components=max(model, verifier) + 1)
