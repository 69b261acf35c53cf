"""Reward transforms with a state: weights and scales that are set while training runs."""
