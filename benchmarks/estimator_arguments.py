"""Arguments with which `estimators.py` builds what cannot be built without any."""

import math
from collections.abc import Callable
from typing import Any

from jaxrl_llm import losses
from jaxrl_llm.losses import k1, truncated_token
from jaxrl_llm.losses.ratios import answer_log_ratio
from jaxrl_llm.losses.surrogates import rec_pieces, tapers, unified_pieces

# Arguments of the functions that cannot be called without.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "batch_normalised": {"correction": truncated_token(maximum=2.0)},
    "batch_normalised_answers": {"correction": losses.truncated_answer(maximum=2.0)},
    "batch_std": {"ddof": 1, "eps": 1e-4},
    "batch_whiten": {"ddof": 1, "eps": 1e-4, "guard": "deviation"},
    "beta_tracker": {"minimum_decay": 0.875},
    "cispo": {"low": None, "high": 0.28},
    "confident_error_weights": {"fraction": 0.8, "entropy_factor": 0.8},
    "constant": {"value": 0.3},
    "difficulty_weight": {"sigma": 1.8},
    "dppo": {"low": 0.2, "high": 0.3},
    "empirical_bayes": {"leave_one_out": True},
    "energy_tracker": {"decay": 0.9},
    "energy_weighted": {"leave_one_out": True},
    "exponential_weight": {"temperature": 1.0},
    "fixed_beta_density": {"alpha": 1.5, "beta": 1.5},
    "fixed_divisor": {"divisor": 1024.0},
    "focal": {"gamma": 2.0},
    "gae": {"discount": 1.0, "decay": 0.95},
    "gdpo": {"ddof": 1, "eps": 1e-4},
    "geo_mean": {"low": 0.4, "high": 0.4},
    "group_quantile": {"level": 0.4},
    "group_std": {"ddof": 1, "eps": 1e-4},
    "grpo_pass_at_k": {"ddof": 1, "eps": 1e-6},
    "james_stein_deployed": {"smoothing": 0.9},
    "kalman": {"process_variance": 0.01, "noise_variance": 0.25, "mean": 0.5, "variance": 1.0},
    "leave_one_out_std": {"eps": 1e-6},
    "length_weighted": {"leave_one_out": True},
    "logit_proxy_weighted": {"leave_one_out": True},
    "masked_outside_answer": {"low": 0.0, "high": 3.0},
    "masked_outside_mean": {"low": 0.99, "high": 1.01},
    "masked_outside_token": {"low": 0.5, "high": 5.0},
    "maxrl_centred": {"eps": 1e-6},
    "opmd": {"coefficient": 0.1},
    "asymmetric_reinforce": {"coefficient": 0.1},
    "opmd_early": {"temperature": 1.0},
    "optimal_token_baseline": {"leave_one_out": True, "zero_tail": True},
    "pass_at_k": {"k": 4},
    "pool_root_rate": {"eps": 0.1},
    "pool_standard_score": {"eps": 1e-6},
    "power_weight": {"power": 0.5},
    "prime": {"scale_by_batch_max": True},
    "proximal": {"surrogate": losses.clipped()},
    "rec": {
        "mask": rec_pieces.one_side(),
        "weight": rec_pieces.importance,
        "regulariser": rec_pieces.squared_log_ratio(coefficient=0.1),
    },
    "reward_to_go": {"discount": 0.99},
    "role_mean": {"roles": 2, "leave_one_out": True},
    "shift": {"amount": 0.1},
    "shrunk_leave_one_out": {"factor": 0.5},
    "sigma_filter": {"k": 3.0, "ddof": 0, "eps": 1e-8, "guard": "floor"},
    "span_credit": {"suggested_length": 128, "slope": 3.0},
    "tapered": {
        "positive": tapers.between(0.5, math.inf),
        "negative": tapers.between(0.0, 2.0),
        "ratio": answer_log_ratio,
    },
    "token_whiten": {"ddof": 1, "eps": 1e-8, "guard": "variance"},
    "top_entropy_mask": {"fraction": 0.2},
    "truncated_answer": {"maximum": 2.0},
    "truncated_token": {"maximum": 2.0},
    "unified": {
        "mask": unified_pieces.stable(),
        "denominator": unified_pieces.over_behaviour,
        "advantage": unified_pieces.credit,
    },
    "variance_reduced_length": {"alpha": 0.75},
    "weighted_signs": {"positive": 0.1},
}

# The penalty, or the cost inside a penalty, that a name stands for, where it is not a call with `ARGUMENTS`.
PENALTIES: dict[str, Callable[[], Any]] = {
    "adaptive": lambda: losses.adaptive(losses.kl(k1, 0.05, "loss"), target=0.1, horizon=1e4),
    "entropy_bonus": lambda: losses.entropy_bonus(0.01),
    "k1": lambda: k1,
    "k2": lambda: losses.k2,
    "k3": lambda: losses.k3,
    "k3_unbiased": lambda: losses.k3_unbiased,
    "kl": lambda: losses.kl(losses.k3, 0.05, "loss"),
    "rao_blackwell": lambda: losses.rao_blackwell(0.05, "loss"),
    "with_score": lambda: losses.with_score(k1),
}
