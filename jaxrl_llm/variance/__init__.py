"""Bias and variance of gradient estimators: exactly on finite policies, measured on others."""
