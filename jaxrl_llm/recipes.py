"""Published methods as sentences over the parts. `jaxrl-llm train --recipe NAME[,key=value...]` names one of these.

Every function returns a `Recipe`; to try another method, build a `Recipe` from other parts and hand it to `Config`.
"""

import dataclasses

from jaxrl_llm.advantages import (
    AdvantageTransform,
    beta_density,
    chain,
    group_mean,
    group_std,
    leave_one_out,
    moving_average,
    no_baseline,
    per_token,
)
from jaxrl_llm.losses import (
    Objective,
    answer_mean,
    answer_sum,
    clipped,
    fixed_divisor,
    k1,
    k3,
    kl,
)
from jaxrl_llm.losses import (
    reinforce as log_prob,
)

__all__ = ["bnpo", "dr_grpo", "grpo", "reinforce", "rloo"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method: how rewards become credit [P G T], and what is maximised with it. `spec` is its spelling."""

    spec: str
    advantage: AdvantageTransform
    objective: Objective


def _spec(name: str, **arguments) -> str:
    return ",".join([name, *(f"{key}={value}" for key, value in arguments.items())])


def reinforce(baseline: bool = False, decay: float = 0.9) -> Recipe:
    """REINFORCE (Williams, 1992): A = r, or r less a moving average of past rewards; A · log π, summed over tokens."""
    credit = moving_average(decay=decay) if baseline else no_baseline()
    return Recipe(
        spec=_spec("reinforce", baseline=baseline, decay=decay),
        advantage=per_token(credit),
        objective=Objective(surrogate=log_prob(), aggregate=answer_sum()),
    )


def rloo(kl_coefficient: float = 0.0) -> Recipe:
    """RLOO (Ahmadian et al., 2024): leave-one-out baseline, A · log π summed over tokens, KL (k1) in the reward."""
    penalties = (kl(k1, kl_coefficient, "reward"),) if kl_coefficient else ()
    return Recipe(
        spec=_spec("rloo", kl_coefficient=kl_coefficient),
        advantage=per_token(leave_one_out()),
        objective=Objective(surrogate=log_prob(), aggregate=answer_sum(), penalties=penalties),
    )


def grpo(low: float = 0.2, high: float = 0.2, kl_coefficient: float = 0.04, ddof: int = 1, eps: float = 1e-4) -> Recipe:
    """GRPO (Shao et al., 2024): (r - mean)/(std + eps), clipped ratio, mean over tokens, then answers, k3 in the loss.

    The paper states neither ddof nor eps; these are TRL's.
    """
    penalties = (kl(k3, kl_coefficient, "loss"),) if kl_coefficient else ()
    return Recipe(
        spec=_spec("grpo", low=low, high=high, kl_coefficient=kl_coefficient, ddof=ddof, eps=eps),
        advantage=per_token(chain(group_mean(), group_std(ddof=ddof, eps=eps))),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=answer_mean(), penalties=penalties),
    )


def dr_grpo(divisor: float = 100.0, low: float = 0.2, high: float = 0.2) -> Recipe:
    """Dr. GRPO (Liu et al., 2025): r - mean, clipped ratio, a fixed divisor in place of each answer's length, no KL."""
    return Recipe(
        spec=_spec("dr_grpo", divisor=divisor, low=low, high=high),
        advantage=per_token(group_mean()),
        objective=Objective(surrogate=clipped(low=low, high=high), aggregate=fixed_divisor(divisor=divisor)),
    )


def bnpo(low: float = 0.2, high: float = 0.28, dual: float = 10.0) -> Recipe:
    """BNPO (Xiao et al., 2025): (r - mean) / Beta(p; α, β) fitted to the batch, dual-clipped ratio, sum over tokens."""
    return Recipe(
        spec=_spec("bnpo", low=low, high=high, dual=dual),
        advantage=per_token(chain(group_mean(), beta_density())),
        objective=Objective(surrogate=clipped(low=low, high=high, dual=dual), aggregate=answer_sum()),
    )
