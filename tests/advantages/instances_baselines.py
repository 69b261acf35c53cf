"""Instances of the baselines that have arguments without a default. The name starts with the function's."""

from jaxrl_llm.advantages.baselines.beta_tracker import beta_tracker
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.advantages.baselines.empirical_bayes import empirical_bayes
from jaxrl_llm.advantages.baselines.energy_tracker import energy_tracker
from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.advantages.baselines.group_quantile import group_quantile
from jaxrl_llm.advantages.baselines.james_stein_deployed import james_stein_deployed
from jaxrl_llm.advantages.baselines.kalman import kalman
from jaxrl_llm.advantages.baselines.length_weighted import length_weighted
from jaxrl_llm.advantages.baselines.logit_proxy_weighted import logit_proxy_weighted
from jaxrl_llm.advantages.baselines.pool_root_rate import pool_root_rate
from jaxrl_llm.advantages.baselines.pool_standard_score import pool_standard_score
from jaxrl_llm.advantages.baselines.role_mean import role_mean
from jaxrl_llm.advantages.baselines.shift import shift
from jaxrl_llm.advantages.baselines.shrunk_leave_one_out import shrunk_leave_one_out

FILTER = {"process_variance": 0.01, "noise_variance": 0.25, "mean": 0.5, "variance": 1.0}

INSTANCES = {
    "beta_tracker(minimum_decay=0.875, slots=16)": lambda: beta_tracker(minimum_decay=0.875, slots=16),
    "beta_tracker(minimum_decay=0.5, slots=3)": lambda: beta_tracker(minimum_decay=0.5, slots=3, rate=0.25),
    "constant(value=0.3)": lambda: constant(value=0.3),
    "constant(value=0)": lambda: constant(value=0.0),
    "empirical_bayes(leave_one_out=True)": lambda: empirical_bayes(leave_one_out=True),
    "empirical_bayes(leave_one_out=False)": lambda: empirical_bayes(leave_one_out=False),
    "energy_tracker(decay=0.9)": lambda: energy_tracker(decay=0.9),
    "energy_weighted(leave_one_out=True)": lambda: energy_weighted(leave_one_out=True),
    "energy_weighted(leave_one_out=False)": lambda: energy_weighted(leave_one_out=False),
    "group_quantile(level=0.4)": lambda: group_quantile(level=0.4),
    "group_quantile(level=0.6)": lambda: group_quantile(level=0.6),
    "james_stein_deployed(smoothing=0.9)": lambda: james_stein_deployed(smoothing=0.9),
    "kalman(slots=1)": lambda: kalman(**FILTER),
    "kalman(slots=16)": lambda: kalman(**FILTER, slots=16),
    "length_weighted(leave_one_out=True)": lambda: length_weighted(leave_one_out=True),
    "length_weighted(leave_one_out=False)": lambda: length_weighted(leave_one_out=False),
    "logit_proxy_weighted(leave_one_out=True)": lambda: logit_proxy_weighted(leave_one_out=True),
    "logit_proxy_weighted(leave_one_out=False)": lambda: logit_proxy_weighted(leave_one_out=False),
    "pool_root_rate(eps=0.1)": lambda: pool_root_rate(eps=0.1),
    "pool_standard_score(eps=1e-6)": lambda: pool_standard_score(eps=1e-6),
    "role_mean(roles=2, leave_one_out=True)": lambda: role_mean(roles=2, leave_one_out=True),
    "role_mean(roles=2, leave_one_out=False)": lambda: role_mean(roles=2, leave_one_out=False),
    "shift(amount=0.1)": lambda: shift(amount=0.1),
    "shrunk_leave_one_out(factor=0.5)": lambda: shrunk_leave_one_out(factor=0.5),
}
