"""Weights: credit by label and pass rate, that is, other objectives than the mean reward."""
