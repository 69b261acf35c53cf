"""Pools of graded answers that know their own places, for the tests of selectors."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Rollout

T = 3


def pool_of(reward, valid=None, **extras):
    """Rewards [P N]; `version` is the place of an answer in its group, and every other field is made of it.

    Built on the host, so that a test compiles nothing but the selector.
    """
    reward = np.asarray(reward)
    p, n = reward.shape
    place = np.broadcast_to(np.arange(n, dtype=np.int32), (p, n))
    name = 1000 * np.arange(p, dtype=np.int32)[:, None] + place
    token = name[..., None] * 10 + np.arange(T, dtype=np.int32)
    real = token.astype(np.float32)
    fields = {
        "prompt": 1000 * np.arange(p, dtype=np.int32)[:, None],
        "prompt_mask": np.ones((p, 1), bool),
        "answer": token,
        "acted": token % 2 == 0,
        "behaviour_logp": -real,
        "policy_logp": -2 * real,
        "reward": reward,
        "components": np.stack([name, -name], axis=-1).astype(np.float32),
        "valid": np.ones((p, n), bool) if valid is None else np.asarray(valid),
        "truncated": name % 3 == 0,
        "prompt_id": 7 * np.arange(p, dtype=np.int32),
        "version": place,
    }
    named = {"of_prompt": np.arange(p, dtype=np.float32), "of_answer": name.astype(np.float32), "of_token": real}
    fields["extras"] = {**named, **extras}
    return Rollout(**jax.tree.map(jnp.asarray, fields))


def labels(n):
    """Every sequence of n labels, [2^n n]."""
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(np.float32)


def chance(label, p):
    """Probability of each sequence [... n] of labels with pass rate p, in float64."""
    return np.prod(np.where(label > 0, p, 1 - p), axis=-1)


def weight(credit, reward, p):
    """Expected mean of credit · score in units of ∇p, given the labels: E[score | right] = ∇p / p, and so on."""
    return np.mean(np.asarray(credit, np.float64) * np.where(np.asarray(reward) > 0, 1 / p, -1 / (1 - p)), axis=-1)


def kept(rollout):
    """Places kept for each prompt, in the order of the rows."""
    places, valid = np.asarray(rollout.version), np.asarray(rollout.valid)
    return [row[ok].tolist() for row, ok in zip(places, valid, strict=True)]


def assert_fields_of_the_pool(pool, rollout):
    """Every field of a row that is kept is that of one answer of the pool, extras included."""
    pool, rollout = (jax.tree.map(np.asarray, x) for x in (pool, rollout))
    p, rows = np.nonzero(rollout.valid)
    source, place = rollout.prompt[p, 0] // 1000, rollout.version[p, rows]
    for name in ("answer", "acted", "behaviour_logp", "policy_logp", "reward", "components", "truncated"):
        np.testing.assert_array_equal(getattr(rollout, name)[p, rows], getattr(pool, name)[source, place], name)
    for name in ("of_answer", "of_token"):
        np.testing.assert_array_equal(rollout.extras[name][p, rows], pool.extras[name][source, place], name)
    np.testing.assert_array_equal(rollout.prompt_id, pool.prompt_id[rollout.prompt[:, 0] // 1000])
    np.testing.assert_array_equal(rollout.extras["of_prompt"], rollout.prompt[:, 0] // 1000)
