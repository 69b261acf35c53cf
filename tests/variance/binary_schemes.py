"""Schemes on 0/1 rewards as tables of A+(c) and A-(c), c the successes of a group, and what these predict (T9, T10)."""

import math

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import apply


def credits(transform, group):
    """[(A+, A-)] of groups with 0 to G successes; None where there is no such answer."""
    reward = jnp.asarray([[1.0] * c + [0.0] * (group - c) for c in range(group + 1)])
    credit = np.asarray(apply(transform, reward))
    assert all(np.ptp(row[:c]) < 1e-12 for c, row in enumerate(credit) if c)
    return [(row[0] if c else None, row[-1] if c < group else None) for c, row in enumerate(credit)]


def bernstein(transform, group):
    """d(j) = A+(j+1) - A-(j)."""
    pairs = credits(transform, group)
    return [pairs[j + 1][0] - pairs[j][1] for j in range(group)]


def binary_moments(table):
    pi, r, s = np.asarray(table.probs), np.asarray(table.rewards), np.asarray(table.scores)
    tau = []
    for share in (pi * r, pi * (1 - r)):
        among = share / share.sum()
        tau.append(among @ np.sum(s**2, axis=1) - np.sum((among @ s) ** 2))
    g = (pi * r) @ s
    return {"p": float(pi @ r), "tau_pos": tau[0], "tau_neg": tau[1], "grad_p_sq": g @ g}


def binary_variance(transform, g, m):
    """tr Var and F' from p, tau+, tau-, |∇p|²."""
    p, pairs = m["p"], credits(transform, g)
    share = np.array([math.comb(g, c) * p**c * (1 - p) ** (g - c) for c in range(g + 1)])
    right, wrong = (np.array([pair[i] or 0.0 for pair in pairs]) for i in (0, 1))
    c = np.arange(g + 1)
    within = share @ (c * right**2 * m["tau_pos"] + (g - c) * wrong**2 * m["tau_neg"]) / g**2
    slope = (c * right / p - (g - c) * wrong / (1 - p)) / g
    mean = share @ slope
    return within + share @ (slope - mean) ** 2 * m["grad_p_sq"], mean
