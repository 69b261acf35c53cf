"""Selectors: which of the graded answers are trained on. Each is a pure function with fixed output shapes."""
