"""Mean of the group weighted by energy: the best constant, sampled (Weaver and Tao, 2001; Greensmith et al., 2004)."""

from jaxrl_llm.advantages._base import AdvantageTransform
from jaxrl_llm.advantages._stats import weighted_baseline


def energy_weighted(*, leave_one_out: bool) -> AdvantageTransform:
    """Aᵢ = rᵢ - Σⱼ eⱼ rⱼ / Σⱼ eⱼ over the prompt's valid answers (the others, if leave_one_out); `energy` e [P G] >= 0
    is the squared norm of the answer's score, or a proxy.

    The population's E[r e]/E[e] is the constant of least variance. The sampled form with the own answer in it is
    biased: an answer that holds all the energy gets 0. Leave-one-out is unbiased. Equal energies, or all 0, give the
    mean. A group of one gets 0, an all-equal group exactly 0.
    """
    return weighted_baseline(lambda rollout: rollout.extras["energy"], leave_one_out, ("energy",))
