"""What several recipes are made of."""

from jaxrl_llm.advantages import AdvantageTransform, chain, group_mean, group_std
from jaxrl_llm.losses import Penalty, kl


def standardised(*, ddof: int, eps: float) -> AdvantageTransform:
    """(r - mean) / (std + eps) of each group, GRPO's credit: [P G] -> [P G]. Libraries differ in ddof and eps."""
    return chain(group_mean(), group_std(ddof=ddof, eps=eps))


def kl_if_any(estimator, coefficient: float, place: str) -> tuple[Penalty, ...]:
    """The penalty `kl`, or none for a coefficient of 0: a recipe without it asks for no reference policy."""
    return (kl(estimator, coefficient, place),) if coefficient else ()
