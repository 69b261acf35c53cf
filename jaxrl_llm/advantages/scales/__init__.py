"""Scales: what a centred reward is multiplied by."""
