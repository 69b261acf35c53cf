"""Baselines: what is subtracted from a reward."""
