"""Policies: the flax decoder and what is read off it."""

from jaxrl_llm.policies.decoder import DecoderConfig, Past
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Params, Policy, Prefix

__all__ = ["DecoderConfig", "Params", "Past", "Policy", "Prefix", "answer_logp"]
