"""Rewards to credit. One public function a file; the folders are rooms.

baselines   subtracted from a reward           weights   other functions of the pass rate, and factors
scales      a credit is divided or whitened by  tokens    credit of single tokens [P G T]
"""

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
from jaxrl_llm.advantages.baselines.batch_leave_one_out import batch_leave_one_out
from jaxrl_llm.advantages.baselines.batch_mean import batch_mean
from jaxrl_llm.advantages.baselines.beta_tracker import beta_tracker
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.advantages.baselines.empirical_bayes import empirical_bayes
from jaxrl_llm.advantages.baselines.energy_tracker import energy_tracker
from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.advantages.baselines.greedy import greedy
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.baselines.group_median import group_median
from jaxrl_llm.advantages.baselines.group_quantile import group_quantile
from jaxrl_llm.advantages.baselines.james_stein import james_stein
from jaxrl_llm.advantages.baselines.james_stein_deployed import james_stein_deployed
from jaxrl_llm.advantages.baselines.kalman import kalman
from jaxrl_llm.advantages.baselines.leave_one_out import leave_one_out
from jaxrl_llm.advantages.baselines.length_weighted import length_weighted
from jaxrl_llm.advantages.baselines.logit_proxy_weighted import logit_proxy_weighted
from jaxrl_llm.advantages.baselines.moving_average import moving_average
from jaxrl_llm.advantages.baselines.no_baseline import no_baseline
from jaxrl_llm.advantages.baselines.other_prompts_mean import other_prompts_mean
from jaxrl_llm.advantages.baselines.pool_mean import pool_mean
from jaxrl_llm.advantages.baselines.pool_root_rate import pool_root_rate
from jaxrl_llm.advantages.baselines.pool_standard_score import pool_standard_score
from jaxrl_llm.advantages.baselines.role_mean import role_mean
from jaxrl_llm.advantages.baselines.shift import shift
from jaxrl_llm.advantages.baselines.shrunk_leave_one_out import shrunk_leave_one_out
from jaxrl_llm.advantages.scales.batch_std import batch_std
from jaxrl_llm.advantages.scales.batch_whiten import batch_whiten
from jaxrl_llm.advantages.scales.beta_density import beta_density
from jaxrl_llm.advantages.scales.fixed_beta_density import fixed_beta_density
from jaxrl_llm.advantages.scales.gpg_scale import gpg_scale
from jaxrl_llm.advantages.scales.group_std import group_std
from jaxrl_llm.advantages.scales.leave_one_out_std import leave_one_out_std
from jaxrl_llm.advantages.tokens.confident_error_weights import confident_error_weights
from jaxrl_llm.advantages.tokens.dense_rewards import dense_rewards
from jaxrl_llm.advantages.tokens.gae import gae
from jaxrl_llm.advantages.tokens.optimal_token_baseline import optimal_token_baseline
from jaxrl_llm.advantages.tokens.oreal_token_weights import oreal_token_weights
from jaxrl_llm.advantages.tokens.prime import prime
from jaxrl_llm.advantages.tokens.reward_to_go import reward_to_go
from jaxrl_llm.advantages.tokens.span_credit import span_credit
from jaxrl_llm.advantages.tokens.token_whiten import token_whiten
from jaxrl_llm.advantages.tokens.top_entropy_mask import top_entropy_mask
from jaxrl_llm.advantages.weights.beta_density_components import beta_density_components
from jaxrl_llm.advantages.weights.difficulty_weight import difficulty_weight
from jaxrl_llm.advantages.weights.duration_weight import duration_weight
from jaxrl_llm.advantages.weights.exponential_weight import exponential_weight
from jaxrl_llm.advantages.weights.focal import focal
from jaxrl_llm.advantages.weights.gdpo import gdpo
from jaxrl_llm.advantages.weights.grpo_pass_at_k import grpo_pass_at_k
from jaxrl_llm.advantages.weights.log_odds import log_odds
from jaxrl_llm.advantages.weights.maxrl_centred import maxrl_centred
from jaxrl_llm.advantages.weights.maxrl_centred_full import maxrl_centred_full
from jaxrl_llm.advantages.weights.maxrl_raw import maxrl_raw
from jaxrl_llm.advantages.weights.negative_only import negative_only
from jaxrl_llm.advantages.weights.oreal_shaping import oreal_shaping
from jaxrl_llm.advantages.weights.pass_at_k import pass_at_k
from jaxrl_llm.advantages.weights.positive_only import positive_only
from jaxrl_llm.advantages.weights.power_weight import power_weight
from jaxrl_llm.advantages.weights.prompt_weight import prompt_weight
from jaxrl_llm.advantages.weights.red_drop import red_drop
from jaxrl_llm.advantages.weights.selected import selected
from jaxrl_llm.advantages.weights.sigma_filter import sigma_filter
from jaxrl_llm.advantages.weights.sigma_filter_released import sigma_filter_released
from jaxrl_llm.advantages.weights.top_gap import top_gap
from jaxrl_llm.advantages.weights.weighted_signs import weighted_signs

__all__ = [
    "AdvantageTransform",
    "Traits",
    "apply",
    "at_end",
    "bare_rollout",
    "batch_leave_one_out",
    "batch_mean",
    "batch_std",
    "batch_whiten",
    "beta_density",
    "beta_density_components",
    "beta_tracker",
    "chain",
    "confident_error_weights",
    "constant",
    "dense_rewards",
    "difficulty_weight",
    "duration_weight",
    "empirical_bayes",
    "energy_tracker",
    "energy_weighted",
    "exponential_weight",
    "fixed_beta_density",
    "focal",
    "gae",
    "gdpo",
    "gpg_scale",
    "greedy",
    "group_mean",
    "group_median",
    "group_quantile",
    "group_std",
    "grpo_pass_at_k",
    "james_stein",
    "james_stein_deployed",
    "kalman",
    "leave_one_out",
    "leave_one_out_std",
    "length_weighted",
    "log_odds",
    "logit_proxy_weighted",
    "maxrl_centred",
    "maxrl_centred_full",
    "maxrl_raw",
    "moving_average",
    "negative_only",
    "no_baseline",
    "optimal_token_baseline",
    "oreal_shaping",
    "oreal_token_weights",
    "other_prompts_mean",
    "pass_at_k",
    "per_token",
    "pool_mean",
    "pool_root_rate",
    "pool_standard_score",
    "positive_only",
    "power_weight",
    "prime",
    "prompt_weight",
    "red_drop",
    "reward_to_go",
    "role_mean",
    "selected",
    "shift",
    "shrunk_leave_one_out",
    "sigma_filter",
    "sigma_filter_released",
    "span_credit",
    "stateless",
    "token_whiten",
    "top_entropy_mask",
    "top_gap",
    "weighted_signs",
]
