"""Rollouts: sampling rules and the decode loop."""

from jaxrl_llm.rollouts.generate import Answers, Stopping, generate
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules, draw, restrict

__all__ = ["GREEDY", "Answers", "SamplingRules", "Stopping", "draw", "generate", "restrict"]
