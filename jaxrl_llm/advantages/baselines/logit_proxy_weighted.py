"""Mean of the group weighted by energy in logit space, which a forward pass gives (after arXiv 2602.07078)."""

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform
from jaxrl_llm.advantages._stats import weighted_baseline


def logit_proxy_weighted(*, leave_one_out: bool) -> AdvantageTransform:
    """Aᵢ = rᵢ - Σⱼ wⱼ rⱼ / Σⱼ wⱼ over the prompt's valid answers (the others, if leave_one_out),  w = Σₜ token_energy.

    `token_energy` [P G T] is 1 - 2 π(yₜ) + Σᵥ π(v)², the squared norm of a token's score when logits are the
    parameters, summed over acted tokens. In other parameters it is a proxy that can be worse than no baseline: first
    measure how it goes with the true energy. Bias, equal weights and edge cases as in `energy_weighted`.
    """

    def weight(rollout):
        return masked.total(rollout.extras["token_energy"], rollout.acted & rollout.valid[..., None], axis=-1)

    return weighted_baseline(weight, leave_one_out, ("token_energy",))
