"""Median of the group as the baseline (QAE at level 1/2, arXiv 2509.22611)."""

from jaxrl_llm.advantages._base import AdvantageTransform
from jaxrl_llm.advantages.baselines.group_quantile import group_quantile


def group_median() -> AdvantageTransform:
    """Aᵢ = rᵢ - median of r over all valid answers to the prompt, the lower of the two in the middle for an even group.

    Biased, as every quantile. A group of one and an all-equal group get exactly 0.
    """
    return group_quantile(level=0.5)
