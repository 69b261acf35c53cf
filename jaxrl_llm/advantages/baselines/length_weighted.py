"""Mean of the group weighted by length (OPO, Hao et al., arXiv 2505.23585)."""

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform
from jaxrl_llm.advantages._stats import weighted_baseline


def length_weighted(*, leave_one_out: bool) -> AdvantageTransform:
    """Aᵢ = rᵢ - Σⱼ Lⱼ rⱼ / Σⱼ Lⱼ over the prompt's valid answers (the others, if leave_one_out), L the acted tokens.

    It is the energy-weighted mean if the squared norm of a score grows in proportion to its length. As published it has
    the own answer in it and is biased unless lengths are equal; leave-one-out is unbiased. Equal lengths, or all 0,
    give the mean. A group of one gets 0 (verl keeps its raw reward), an all-equal group exactly 0.
    """
    return weighted_baseline(lambda rollout: masked.count(rollout.acted, axis=-1), leave_one_out)
