"""Instances of the scales and weights that have arguments without a default, for the tests over every transform."""

from jaxrl_llm.advantages.scales.batch_std import batch_std
from jaxrl_llm.advantages.scales.batch_whiten import batch_whiten
from jaxrl_llm.advantages.scales.fixed_beta_density import fixed_beta_density
from jaxrl_llm.advantages.scales.leave_one_out_std import leave_one_out_std
from jaxrl_llm.advantages.weights.difficulty_weight import difficulty_weight
from jaxrl_llm.advantages.weights.exponential_weight import exponential_weight
from jaxrl_llm.advantages.weights.focal import focal
from jaxrl_llm.advantages.weights.gdpo import gdpo
from jaxrl_llm.advantages.weights.grpo_pass_at_k import grpo_pass_at_k
from jaxrl_llm.advantages.weights.maxrl_centred import maxrl_centred
from jaxrl_llm.advantages.weights.pass_at_k import pass_at_k
from jaxrl_llm.advantages.weights.power_weight import power_weight
from jaxrl_llm.advantages.weights.sigma_filter import sigma_filter
from jaxrl_llm.advantages.weights.weighted_signs import weighted_signs

INSTANCES = {
    "batch_std(ddof=1, eps=1e-4)": lambda: batch_std(ddof=1, eps=1e-4),
    'batch_whiten(ddof=1, eps=1e-4, guard="deviation")': lambda: batch_whiten(ddof=1, eps=1e-4, guard="deviation"),
    'batch_whiten(ddof=1, eps=1e-8, guard="variance")': lambda: batch_whiten(ddof=1, eps=1e-8, guard="variance"),
    'batch_whiten(ddof=0, eps=1e-8, guard="floor")': lambda: batch_whiten(ddof=0, eps=1e-8, guard="floor"),
    "fixed_beta_density(alpha=1, beta=1)": lambda: fixed_beta_density(alpha=1, beta=1),
    "fixed_beta_density(alpha=1.5, beta=1.5)": lambda: fixed_beta_density(alpha=1.5, beta=1.5),
    "fixed_beta_density(alpha=2, beta=3)": lambda: fixed_beta_density(alpha=2, beta=3),
    "leave_one_out_std(eps=1e-6)": lambda: leave_one_out_std(eps=1e-6),
    "difficulty_weight(sigma=1.8)": lambda: difficulty_weight(sigma=1.8),
    "exponential_weight(temperature=1)": lambda: exponential_weight(temperature=1),
    "focal(gamma=0)": lambda: focal(gamma=0),
    "focal(gamma=2)": lambda: focal(gamma=2),
    "focal(gamma=0.5)": lambda: focal(gamma=0.5),
    "gdpo(ddof=1, eps=1e-4)": lambda: gdpo(ddof=1, eps=1e-4),
    "grpo_pass_at_k(ddof=1, eps=1e-6)": lambda: grpo_pass_at_k(ddof=1, eps=1e-6),
    "maxrl_centred(eps=0.0)": lambda: maxrl_centred(eps=0.0),
    "maxrl_centred(eps=1e-6)": lambda: maxrl_centred(eps=1e-6),
    "pass_at_k(k=1)": lambda: pass_at_k(k=1),
    "pass_at_k(k=2)": lambda: pass_at_k(k=2),
    "pass_at_k(k=3)": lambda: pass_at_k(k=3),
    "power_weight(power=-0.5)": lambda: power_weight(power=-0.5),
    "power_weight(power=0)": lambda: power_weight(power=0),
    "power_weight(power=0.5)": lambda: power_weight(power=0.5),
    'sigma_filter(k=1.5, ddof=0, eps=1e-8, guard="floor")': lambda: sigma_filter(
        k=1.5, ddof=0, eps=1e-8, guard="floor"
    ),
    "weighted_signs(positive=0)": lambda: weighted_signs(positive=0),
    "weighted_signs(positive=0.1)": lambda: weighted_signs(positive=0.1),
}
