"""Small policies and ragged rollouts, shared by the tests of several folders."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Policy, Prefix
from jaxrl_llm.policies.readout import Head
from jaxrl_llm.types import Rollout

SMALL = DecoderConfig(layers=2, width=16, heads=4, kv_heads=2, head_size=8, mlp_width=32)
VOCAB = 11


def quick_options():
    """Compiler options for programs that run once: a fifth of the time to compile, the same arithmetic."""
    quick = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    for options in (quick, {"xla_backend_optimization_level": 0}):
        try:
            jax.jit(lambda: 0, compiler_options=options)()
        except jax.errors.JaxRuntimeError:  # an option of other versions
            continue
        return options
    return {}


jit = functools.partial(jax.jit, compiler_options=quick_options())


def decoder(vocab: int = VOCAB, seed: int = 0, **changes):
    """A small decoder and random parameters: peaked distributions, norms that scale, no compiled initialisation."""
    policy = Policy(dataclasses.replace(SMALL, **changes), vocab)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        noise = rng.normal(scale=0.3, size=leaf.shape).astype(np.float32)
        return jnp.asarray(1 + noise if path[-1].key == "scale" else noise)

    return policy, jax.tree_util.tree_map_with_path(fill, nn.unbox(jax.eval_shape(policy.init, jax.random.key(0))))


class Bigram(Policy):
    """The logits of a token are read off a table by the token before it: quick to compile, easy to do by hand."""

    def init(self, key):
        return {"table": jax.random.normal(key, (self.vocab_size, 4)), "head": jnp.eye(self.vocab_size, 4)}

    def prefill(self, params, prompt, mask):
        return Prefix(past=self._empty_prefix(len(prompt), 0), mask=mask[:, :-1], last=prompt[:, -1])

    def score(self, params, prefix, answer):
        first = jnp.broadcast_to(prefix.last[:, None, None], (*answer.shape[:2], 1))
        return params["table"][jnp.concatenate([first, answer[..., :-1]], axis=-1)]

    def score_behind(self, params, prompt, mask, answer):
        return self.score(params, self.prefill(params, prompt, mask), answer)

    def step(self, params, prefix, cache, token, column, read=None):
        return self.logits(params, params["table"][token][:, :, None])[:, :, 0], cache

    def head(self, params, hidden):
        return Head(hidden, params["head"])


def bigram(vocab: int = VOCAB, seed: int = 0):
    """The table policy and its parameters."""
    policy = Bigram(SMALL, vocab)
    return policy, policy.init(jax.random.key(seed))


def prompts(lengths, columns: int, vocab: int = VOCAB, seed: int = 0):
    """Random prompts of the given lengths, padded on the left with ids that look like any other."""
    rng = np.random.default_rng(seed)
    mask = np.arange(columns)[None, :] >= columns - np.asarray(lengths)[:, None]
    return jnp.asarray(rng.integers(0, vocab, mask.shape), jnp.int32), jnp.asarray(mask)


def ragged(
    policy, params, *, prompts_of: int = 4, answers: int = 3, length: int = 5, seed: int = 0, noise: float = 0.0
):
    """Graded answers of all lengths, ever more of them invalid. `noise` moves the recorded log-probabilities apart."""
    rng = np.random.default_rng(seed)
    shape = (prompts_of, answers, length)
    prompt, mask = prompts(rng.integers(1, 5, prompts_of), 4, policy.vocab_size, seed)
    answer = jnp.asarray(rng.integers(0, policy.vocab_size, shape), jnp.int32)
    size = rng.integers(1, length + 1, shape[:2])
    size[0, 0], size[-1, -1] = length, 1
    acted = jnp.asarray(np.arange(length)[None, None, :] < size[..., None])
    valid = np.arange(answers)[None, :] >= np.arange(prompts_of)[:, None]  # prompt p has p invalid answers
    logp, _ = jit(answer_logp, static_argnums=0)(policy, params, prompt, mask, answer, acted)
    moved = logp + noise * jnp.asarray(rng.normal(size=shape), jnp.float32)
    reward = jnp.asarray(np.add.outer(np.arange(prompts_of), np.arange(answers)) % 2, jnp.float32)
    return Rollout(
        prompt=prompt,
        prompt_mask=mask,
        answer=answer,
        acted=acted,
        behaviour_logp=jnp.where(acted, moved, 0),
        policy_logp=logp,
        reward=reward,
        components=jnp.stack([reward, 1 - reward], axis=-1),
        valid=jnp.asarray(valid),
        truncated=jnp.asarray(size == length),
        prompt_id=jnp.arange(prompts_of, dtype=jnp.int32),
        version=jnp.zeros(shape[:2], jnp.int32),
    )
