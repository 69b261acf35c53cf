"""Rewards to credit. One public function a file; the folders are rooms: baselines are subtracted, scales multiply."""

from jaxrl_llm.advantages._base import (
    AdvantageTransform,
    Traits,
    apply,
    at_end,
    bare_rollout,
    chain,
    per_token,
    stateless,
)
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.baselines.leave_one_out import leave_one_out
from jaxrl_llm.advantages.baselines.moving_average import moving_average
from jaxrl_llm.advantages.baselines.no_baseline import no_baseline
from jaxrl_llm.advantages.scales.beta_density import beta_density
from jaxrl_llm.advantages.scales.group_std import group_std

__all__ = [
    "AdvantageTransform",
    "Traits",
    "apply",
    "at_end",
    "bare_rollout",
    "beta_density",
    "chain",
    "group_mean",
    "group_std",
    "leave_one_out",
    "moving_average",
    "no_baseline",
    "per_token",
    "stateless",
]
