"""Rollouts with every field that a reward transform reads, ragged, and what can be done to them."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.types import Rollout

P, G, T, K = 4, 5, 150, 3

# Axes of the extras: which of them follow the prompts and the answers.
EXTRAS = {
    "reference_reward": "P",
    "noise": "PG",
    "answer_key": "PG",
    "component_influence": "",
    "objective_point": "",
}


def sample(seed=0, dtype=np.float32, optional=()):
    """A ragged rollout: mixed, all-right, all-wrong and one-answer groups; lengths from 0 to T, with ties."""
    rng = np.random.default_rng(seed)
    valid = np.ones((P, G), bool)
    valid[0, 1] = valid[3] = False
    valid[3, 2] = True
    right = np.array([[1, 0, 1, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 0, 1, 0, 0]])
    form = rng.integers(0, 2, (P, G))
    components = np.stack([right, form, rng.normal(size=(P, G))], -1).astype(dtype)
    length = rng.choice([0, 1, 90, 101, 120, 120, 149, T], (P, G))
    acted = np.arange(T) < length[..., None]
    logp = np.where(acted, -rng.exponential(size=acted.shape), 0)
    gradients = rng.normal(size=(K, 7))
    extras = {
        "reference_reward": rng.normal(size=P).astype(dtype),
        "noise": rng.uniform(size=(P, G)).astype(np.float32),
        "answer_key": np.array([[3, 5, 3, 5, 9], [1, 1, 1, -1, -1], [-1] * 5, [2, 2, 7, 2, 2]], np.int32),
        "component_influence": (gradients @ gradients.T).astype(np.float32),
    }
    if "objective_point" in optional:
        extras["objective_point"] = rng.uniform(size=2).astype(np.float32)
    fields = {
        "prompt": np.zeros((P, 1), np.int32),
        "prompt_mask": np.ones((P, 1), bool),
        "answer": np.zeros((P, G, T), np.int32),
        "acted": acted,
        "behaviour_logp": logp.astype(dtype),
        "policy_logp": logp.astype(dtype),
        "reward": (right + 0.5 * form).astype(dtype),
        "components": components,
        "valid": valid,
        "truncated": length == T,
        "prompt_id": np.arange(P),
        "version": np.zeros((P, G), np.int32),
    }
    return on_device(Rollout, fields, extras)


def on_device(kind, fields, extras):
    return kind(**{k: jnp.asarray(v) for k, v in fields.items()}, extras={k: jnp.asarray(v) for k, v in extras.items()})


def by_answer(rollout, fn, prompts=None):
    """`fn` on every array of a [P G ...] field, by name; `prompts` likewise on every [P ...] field."""

    def change(name, array, axes):
        if axes.startswith("PG"):
            return jnp.asarray(fn(name, np.array(array)))
        return jnp.asarray(prompts(name, np.array(array))) if prompts and axes == "P" else array

    per_prompt = ("prompt", "prompt_mask", "prompt_id")
    fields = {
        f.name: change(f.name, getattr(rollout, f.name), "P" if f.name in per_prompt else "PG")
        for f in dataclasses.fields(rollout)
        if f.name != "extras"
    }
    return Rollout(**fields, extras={k: change(k, v, EXTRAS[k]) for k, v in rollout.extras.items()})


def with_junk(rollout, float_junk):
    """The rollout with junk in every field of its invalid answers."""
    off = ~np.array(rollout.valid)

    def fill(name, array):
        if name != "valid":
            if array.dtype == bool:
                array[off] = ~array[off]
            else:
                array[off] = float_junk if np.issubdtype(array.dtype, np.floating) else 3
        return array

    return by_answer(rollout, fill)


def padded(rollout):
    """The rollout with two invalid answers more a prompt, in front and behind, and one prompt more without any."""

    def more(name, array):
        rows = np.concatenate([array[:, :1], array, array[:, -1:]], axis=1)
        rows = np.concatenate([rows, rows[:1]], axis=0)
        if name == "valid":
            rows[:, 0] = rows[:, -1] = rows[-1] = False
        return rows

    return by_answer(rollout, more, lambda _, array: np.concatenate([array, array[:1]], axis=0))
