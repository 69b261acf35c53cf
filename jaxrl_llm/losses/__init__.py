"""Objectives: surrogate, aggregation, penalties; arrays in, arrays out."""

from jaxrl_llm.losses.aggregate import Aggregate, answer_mean, answer_sum, fixed_divisor, token_mean
from jaxrl_llm.losses.corrections import Correction
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.penalties import Penalty, entropy_bonus, k1, k2, k3, kl
from jaxrl_llm.losses.supervised import cross_entropy
from jaxrl_llm.losses.surrogates import Surrogate, clipped, reinforce
from jaxrl_llm.losses.tokens import Tokens, bare_tokens

__all__ = [
    "Aggregate",
    "Correction",
    "Objective",
    "Penalty",
    "Surrogate",
    "Tokens",
    "answer_mean",
    "answer_sum",
    "bare_tokens",
    "clipped",
    "cross_entropy",
    "entropy_bonus",
    "fixed_divisor",
    "k1",
    "k2",
    "k3",
    "kl",
    "reinforce",
    "token_mean",
]
