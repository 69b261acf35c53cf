"""Credit for the best answer alone: its lead over the second best (own derivation)."""

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import lead_of_the_best


def top_gap() -> AdvantageTransform:
    """Aᵢ = n · (r₁ - r₂) for the best of the n valid answers to the prompt, r₂ the second best reward; 0 for the rest.

    n · (best reward with the answer - best reward without it), hence the exact gradient of E[best of G], which for 0/1
    rewards is pass@G: n for a lone right answer. A shared best place, an all-equal group and a group of one get 0.
    """

    def fn(advantage, rollout):
        n = masked.count(rollout.valid, axis=-1, keepdims=True)
        return lead_of_the_best(advantage, rollout.valid) * n.astype(advantage.dtype)

    f_prime = lambda p, g: float(g * (1 - p) ** (g - 1)) if g > 1 else 0.0  # noqa: E731
    claim = {"uses_self": True, "minimum_group": 2, "centred": True}
    return stateless(fn, Traits(unbiased="no", f_prime=f_prime, **claim))
