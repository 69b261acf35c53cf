"""Bias and spread of other estimators on the batches that a run trains on."""

import numpy as np

from jaxrl_llm.config import Config
from jaxrl_llm.estimators import estimators_of, measured, needs_of
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.sharding import fetch
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.empirical_compare import compare
from jaxrl_llm.variance.units import LEAST_UNITS

FIGURES = ("trace_var", "cos", "useful_snr")  # logged of each estimator, beside the ratio of rescaled errors


class Watch:
    """Compares the estimators of a configuration on one rollout: `watch(params, rollout)` -> figures by metric name."""

    def __init__(self, config: Config, policy: Policy):
        self.policy, self.estimators = policy, estimators_of(config.variance_estimators)
        self.settings = {
            "prompts": max(e.advantage.traits.least_batch for e in self.estimators.values()),
            "seed": config.seed,
            "floor": False,
            # At another temperature, or from the head of the distribution alone, answers come from another policy.
            "off_policy": config.temperature != 1 or config.top_k > 0 or config.top_p < 1,
        }

    def __call__(self, params: Params, rollout: Rollout) -> dict[str, float]:
        """NaN where a figure is below resolution; nothing where too few prompts have only valid answers."""
        whole = int(np.sum(np.all(fetch(rollout.valid), axis=1)))
        if whole // self.settings["prompts"] < LEAST_UNITS:
            return {}
        rollout = measured(self.policy, params, rollout, needs_of(self.estimators))
        found = compare(self.estimators, self.policy, params, rollout, **self.settings)
        row = {}
        for name, moments in found.moments.items():
            row |= {f"variance/{name}/{figure}": float(getattr(moments, figure)) for figure in FIGURES}
            row[f"variance/{name}/mse_ratio"] = float(found.ratios[name]["mse_rescaled"][0])
        return row
