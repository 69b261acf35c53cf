"""Exact expectations: every assignment of outcomes to the answers of a small softmax bandit, in float64.

A table has P prompts with K outcomes each: logits [P K] and rewards [P K]. The policy's parameters are the logits, so
the score of outcome k is e_k - π, in the block of its prompt.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import bare_rollout


@dataclasses.dataclass(frozen=True)
class Table:
    logits: np.ndarray
    rewards: np.ndarray

    @property
    def probs(self):
        weights = np.exp(self.logits - self.logits.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    @property
    def gradient(self):
        """Of the mean expected reward of the prompts, [P K]."""
        mean = (self.probs * self.rewards).sum(axis=-1, keepdims=True)
        return self.probs * (self.rewards - mean) / len(self.logits)


def tables(prompts, outcomes, seed=0, count=3):
    """Random policies with rewards in [0, 1]."""
    rng = np.random.default_rng(seed)
    shape = (prompts, outcomes)
    return [Table(rng.normal(size=shape), rng.uniform(size=shape)) for _ in range(count)]


def assignments(table, group):
    """All outcomes [M P G] with their probabilities [M]; M = K^(P·G)."""
    prompts, outcomes = table.logits.shape
    every = np.array(list(itertools.product(range(outcomes), repeat=prompts * group))).reshape(-1, prompts, group)
    each = np.take_along_axis(table.probs[None, :, None, :], every[..., None], axis=-1)[..., 0]
    return every, each.prod(axis=(1, 2))


@functools.cache
def credit_of_batches(update):
    """Compiled credit [M P G] of rewards [M P G], from one state."""
    return jax.jit(jax.vmap(lambda reward, state: update(reward, state, bare_rollout(reward))[0], (0, None)))


def expected_gradient(transform, table, group, state=None):
    """E of (1/PG) Σ A · score over every assignment, [P K]. To be called where x64 is on."""
    assert jax.config.jax_enable_x64, "exact expectations need float64"
    state = transform.init() if state is None else state
    prompts, outcomes = table.logits.shape
    every, probability = assignments(table, group)
    reward = np.take_along_axis(table.rewards[None, :, None, :], every[..., None], axis=-1)[..., 0]

    advantage = np.asarray(credit_of_batches(transform.update)(jnp.asarray(reward), state)).reshape(reward.shape)
    score = np.eye(outcomes)[every] - table.probs[None, :, None, :]
    estimate = np.einsum("mpg,mpgk->mpk", advantage, score) / (prompts * group)
    return np.einsum("m,mpk->pk", probability, estimate)


def cosine(a, b):
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))
