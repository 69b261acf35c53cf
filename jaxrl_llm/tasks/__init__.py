"""Prompts and graders. Each public function builds a task, and is what the command line names."""

from jaxrl_llm.tasks.addition import addition
from jaxrl_llm.tasks.countdown import countdown
from jaxrl_llm.tasks.critique import critique
from jaxrl_llm.tasks.digit_sort import digit_sort
from jaxrl_llm.tasks.modular_chain import modular_chain
from jaxrl_llm.tasks.reasoning_gym import reasoning_gym
from jaxrl_llm.tasks.rows import rows

__all__ = ["addition", "countdown", "critique", "digit_sort", "modular_chain", "reasoning_gym", "rows"]
