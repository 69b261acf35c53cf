"""Exact expectations: every assignment of outcomes to the answers of small policies, in float64.

A table has P prompts with K outcomes each: probabilities and rewards [P K], tokens [P K T] and the scores of tokens
[P K T D]. `Table` is a softmax bandit, whose answers are one token; `Sequences` writes answers of one or two tokens.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.advantages import bare_rollout


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Table:
    """The parameters are the logits [P K], so the score of outcome k is e_k - π, in the block of its prompt."""

    logits: np.ndarray
    rewards: np.ndarray

    @property
    def probs(self):
        return softmax(self.logits)

    @property
    def acted(self):
        return np.ones((*self.logits.shape, 1), bool)

    @property
    def scores(self):
        return (np.eye(self.logits.shape[1]) - self.probs[:, None, :])[:, :, None, :]

    @property
    def prefixes(self):
        """Number of the prefix before each token, [K T]."""
        return np.zeros((self.logits.shape[1], 1), int)

    @property
    def gradient(self):
        """Of the mean expected reward of the prompts, [P D]."""
        whole = (self.scores * self.acted[..., None]).sum(axis=2)
        return np.einsum("pk,pk,pkd->pd", self.probs, self.rewards, whole) / len(self.rewards)


@dataclasses.dataclass(frozen=True)
class Sequences(Table):
    """One prompt; tokens a, b, EOS; at most two of them. The logits [3 3] are rows for the prefixes "", "a", "b"."""

    TEXTS = ((2,), (0, 2), (1, 2), (0, 0), (0, 1), (1, 0), (1, 1))

    @property
    def prefixes(self):
        return np.array([[0, 1 + text[0] if len(text) > 1 else 0] for text in self.TEXTS])

    @property
    def acted(self):
        return np.array([[np.arange(2) < len(text) for text in self.TEXTS]])

    @property
    def probs(self):
        policy = softmax(self.logits)
        tokens = np.array([[*text, 0][:2] for text in self.TEXTS])
        each = policy[self.prefixes, tokens]
        return np.where(self.acted, each, 1).prod(axis=-1)

    @property
    def scores(self):
        policy, scores = softmax(self.logits), np.zeros((1, 7, 2, 3, 3))
        for k, text in enumerate(self.TEXTS):
            for t, token in enumerate(text):
                prefix = self.prefixes[k, t]
                scores[0, k, t, prefix] = np.eye(3)[token] - policy[prefix]
        return scores.reshape(1, 7, 2, 9)


def tables(prompts, outcomes, seed=0, count=3):
    """Random policies with rewards in [0, 1]."""
    rng = np.random.default_rng(seed)
    shape = (prompts, outcomes)
    return [Table(rng.normal(size=shape), rng.uniform(size=shape)) for _ in range(count)]


def sequences(seed=0, count=2):
    rng = np.random.default_rng(seed)
    return [Sequences(rng.normal(size=(3, 3)), rng.uniform(size=(1, 7))) for _ in range(count)]


def assignments(table, group):
    """All outcomes [M P G] with their probabilities [M]; M = K^(P·G)."""
    prompts, outcomes = table.rewards.shape
    every = np.array(list(itertools.product(range(outcomes), repeat=prompts * group))).reshape(-1, prompts, group)
    return every, of_outcomes(table.probs, every).prod(axis=(1, 2))


def of_outcomes(x, every):
    """x [P K ...] of the outcomes [M P G]: [M P G ...]."""
    return x[np.arange(len(x))[None, :, None], every]


def extras_of(table, every, seed=7):
    """What a rollout may carry beside rewards. What is known of an answer is a function of its outcome; what is known
    of a prompt, of a prefix or of the place in the group is not."""
    rng = np.random.default_rng(seed)
    (prompts, outcomes), length = table.rewards.shape, table.acted.shape[-1]
    many, group = len(every), every.shape[-1]
    tokens = lambda low, high: of_outcomes(rng.uniform(low, high, (prompts, outcomes, length)), every)  # noqa: E731
    answers = lambda low, high: of_outcomes(rng.uniform(low, high, (prompts, outcomes)), every)  # noqa: E731
    once = lambda *shape: np.broadcast_to(rng.uniform(0.1, 0.9, shape), (many, *shape))  # noqa: E731
    state = rng.uniform(size=(prompts, outcomes + 3))[:, table.prefixes]
    return {
        "energy": answers(0.2, 2),
        "token_energy": tokens(0.2, 2),
        "duration": answers(1, 4),
        "process_score": tokens(-1, 1),
        "token_reward": tokens(0, 1),
        "token_score": tokens(-2, 2),
        "entropy": tokens(0, 1),
        "value": of_outcomes(state, every),
        "role": np.broadcast_to(np.arange(group) % 2, every.shape).astype(np.int32),
        "noise": once(prompts, group),
        "selected": np.argsort(of_outcomes(table.rewards, every), axis=-1) > 0,
        **{name: once(prompts) for name in ("greedy_reward", "difficulty", "pool_mean", "pool_std", "drift")},
    }


@functools.cache
def credit_of_batches(update):
    """Compiled credit of rewards [M P G], acted [M P G T] and extras, from one state."""

    def one(reward, state, acted=None, extras=None):
        return update(reward, state, bare_rollout(reward, None, acted, **(extras or {})))[0]

    return jax.jit(jax.vmap(one, (0, None, 0, 0)))


def credit(transform, table, every, state=None):
    """[M P G T], for any transform: credit of answers is that of each of their tokens."""
    state = transform.init() if state is None else state
    reward = of_outcomes(table.rewards, every)
    acted = of_outcomes(table.acted, every)
    extras = extras_of(table, every)
    extras = {name: jnp.asarray(extras[name]) for name in transform.traits.needs}
    out = np.asarray(credit_of_batches(transform.update)(jnp.asarray(reward), state, jnp.asarray(acted), extras))
    return np.broadcast_to(out.reshape(*every.shape, -1), acted.shape) * acted


def expected_gradient(transform, table, group, state=None):
    """E of (1/PG) Σ A · score over every assignment, [P D]. To be called where x64 is on."""
    assert jax.config.jax_enable_x64, "exact expectations need float64"
    every, probability = assignments(table, group)
    estimate = np.einsum("mpgt,mpgtd->mpd", credit(transform, table, every, state), of_outcomes(table.scores, every))
    return np.einsum("m,mpd->pd", probability, estimate) / (len(table.rewards) * group)


def cosine(a, b):
    return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))
