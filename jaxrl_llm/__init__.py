"""Policy-gradient reinforcement learning of language models, as pure functions."""
