"""Shorter than the batch is on average (dynamic reward weighting, arXiv 2509.11452, released code 238fe65)."""

from jaxrl_llm import masked
from jaxrl_llm.rewards._base import RewardTransform, component, lengths


def conciseness() -> RewardTransform:
    """Append the component cᵢ = 1[Lᵢ < mean L],  L the acted tokens, the mean over all valid answers of the batch.

    0 for all where all are equally long. An answer without tokens counts as short.
    """

    def fn(rollout):
        length = lengths(rollout)
        return (length < masked.mean(length, rollout.valid)).astype(length.dtype)

    return component(fn)
