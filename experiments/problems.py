"""Small policies that are written out in full: two bandits, a bigram policy, a pool of prompts, and a transformer.

A has real rewards and A2 rewards of 0 and 1; B has rewards of 0 and 1, 3 tokens and at most 3 steps; C is the pool; D
has the answers and rewards of B and is a decoder of one layer.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.random import named_key
from jaxrl_llm.variance.moments import RlooMoments
from jaxrl_llm.variance.policy_table import policy_table
from jaxrl_llm.variance.tables import OutcomeTable, answers, last_token, path_logp, softmax_bandit, tabular_policy

BANDIT = {"logits": [0.5, -0.3, 0.1, -1.0], "lengths": [3, 1, 2, 5]}
REWARDS = {"A": [1.0, 0.0, 0.5, -0.2], "A2": [1.0, 0.0, 0.0, 1.0]}
BIGRAM = {
    "logits": [[0.4, 0.1, -0.6], [-0.2, 0.5, 0.3], [0.7, -0.4, 0.0]],
    "behaviour": [[0.2, 0.2, -0.5], [0.0, 0.3, 0.2], [0.4, -0.1, 0.1]],
    "reference": [[0.1, 0.3, -0.2], [0.2, 0.1, 0.0], [0.3, 0.2, -0.3]],
}
EOS, LENGTH = 2, 3
PATHS = answers(3, EOS, LENGTH)
RIGHT = {"02", "001", "012", "101", "102"}
TRANSFORMER = DecoderConfig(layers=1, width=4, heads=1, kv_heads=1, head_size=4, mlp_width=8)


def named(name: str) -> OutcomeTable:
    """A, A2, B or D."""
    return transformer() if name == "D" else bigram() if name == "B" else bandit(name)


def bandit(name: str) -> OutcomeTable:
    """A or A2; `greedy_reward` is the reward of the most probable answer."""
    rewards = REWARDS[name]
    greedy = rewards[int(np.argmax(BANDIT["logits"]))]
    return softmax_bandit(BANDIT["logits"], rewards, BANDIT["lengths"], prompt_extras={"greedy_reward": greedy})


def bigram(staleness: float | None = None) -> OutcomeTable:
    """B. With a staleness k its answers come from the logits π + k (behaviour - π): 0 is π itself, 1 the behaviour."""
    new = np.array(BIGRAM["logits"])
    old = None if staleness is None else new + staleness * (np.array(BIGRAM["behaviour"]) - new)
    reference = path_logp(jnp.asarray(BIGRAM["reference"]), PATHS, last_token, LENGTH)
    return tabular_policy(
        new,
        right,
        eos=EOS,
        length=LENGTH,
        behaviour=old,
        extras={"reference_logp": reference},
        prompt_extras={"greedy_reward": 0.0},
    )


def right(path: tuple[int, ...]) -> float:
    """The reward of an answer of B and D."""
    return float("".join(map(str, path)) in RIGHT)


@functools.cache
def transformer(seed: int = 0) -> OutcomeTable:
    """D: standard normal parameters, drawn by the names of their leaves, so that its answers are far from uniform."""
    policy = Policy(TRANSFORMER, 3)
    shapes = nn.unbox(jax.eval_shape(policy.init, jax.random.key(0)))
    draw = lambda path, x: jax.random.normal(  # noqa: E731
        named_key(jax.random.key(seed), jax.tree_util.keystr(path)), x.shape, jnp.float32
    )
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    return policy_table(
        policy, params, jnp.asarray([0]), right, eos=EOS, length=LENGTH, prompt_extras={"greedy_reward": 0.0}
    )


@functools.cache
def pool(prompts: int = 3, outcomes: int = 3, dim: int = 4, seed: int = 0) -> tuple[OutcomeTable, ...]:
    """Prompts with shared parameters: random features of each answer, random logits, rewards uniform in [0, 1).

    `greedy_reward` is the value of the prompt: a baseline that is known without error.
    """
    rng = np.random.default_rng(seed)
    tables = []
    for _ in range(prompts):
        features, rewards = rng.normal(size=(outcomes, dim)), rng.uniform(size=outcomes)
        probs = np.asarray(jax.nn.softmax(jnp.asarray(rng.normal(size=outcomes))))
        extras = {"greedy_reward": probs @ rewards}
        tables.append(OutcomeTable(probs, features - probs @ features, rewards, prompt_extras=extras))
    return tuple(tables)


def facts(table: OutcomeTable) -> RlooMoments:
    """V, Var r, F and the rest of a prompt."""
    return RlooMoments.of(table)
