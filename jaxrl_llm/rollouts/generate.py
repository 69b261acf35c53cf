"""Decode a group of answers for every prompt, on the device, in one loop."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrl_llm import random
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.rollouts.sampling import SamplingRules, draw
from jaxrl_llm.types import pytree


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """What was sampled; the fields are those of `Rollout`."""

    answer: Int[Array, "P G T"]
    acted: Bool[Array, "P G T"]
    behaviour_logp: Float[Array, "P G T"]
    policy_logp: Float[Array, "P G T"]
    truncated: Bool[Array, "P G"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stopping:
    """When an answer ends: at a token of `eos`, which is kept and trained, or after `length` tokens."""

    eos: tuple[int, ...]  # whichever comes first
    pad: int
    length: int  # T
    early: bool = True  # leave the loop once every answer has ended; False only serves benchmarks
    runs: str | None = None  # the axis of `jax.vmap` along which runs decode together; they leave the loop together


def generate(
    policy: Policy,
    params: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    keys: Key[Array, "P G"],
    rules: SamplingRules,
    stopping: Stopping,
) -> Answers:
    """Sample G answers to each of P prompts, one key an answer.

    The prompt is run once and shared by its group. The token at position t is drawn with the answer's key folded with
    t, so an answer depends on its own key and prompt alone.
    """
    p, g = keys.shape
    prefix = policy.prefill(params, prompt, prompt_mask)
    nothing = jnp.zeros((p, g, stopping.length), jnp.float32)
    answers = Answers(
        answer=jnp.full((p, g, stopping.length), stopping.pad, jnp.int32),
        acted=nothing.astype(bool),
        behaviour_logp=nothing,
        policy_logp=nothing,
        truncated=jnp.ones((p, g), bool),
    )
    token = jnp.broadcast_to(prefix.last[:, None], (p, g))
    cache = policy.empty_cache(p, g, stopping.length)

    def running(carry):
        t, _, _, answers = carry
        more = jnp.any(answers.truncated) if stopping.early else True
        if stopping.runs:  # one condition for all: with one a run, `vmap` would copy the caches to keep ended runs
            more = jax.lax.psum(jnp.asarray(more, jnp.int32), stopping.runs) > 0
        return (t < stopping.length) & more

    def body(carry):
        t, token, cache, answers = carry
        logits, cache = policy.step(params, prefix, cache, token, t)
        token, behaviour_logp, policy_logp = draw(random.position_keys(keys, t), logits, rules)
        live = answers.truncated  # no EOS so far
        token = jnp.where(live, token, stopping.pad)

        def put(column, whole):
            return jax.lax.dynamic_update_index_in_dim(whole, column, t, axis=2)

        answers = Answers(
            answer=put(token, answers.answer),
            acted=put(live, answers.acted),
            behaviour_logp=put(jnp.where(live, behaviour_logp, 0), answers.behaviour_logp),
            policy_logp=put(jnp.where(live, policy_logp, 0), answers.policy_logp),
            truncated=live & ~jnp.isin(token, jnp.asarray(stopping.eos)),
        )
        return t + 1, token, cache, answers

    return jax.lax.while_loop(running, body, (jnp.zeros((), jnp.int32), token, cache, answers))[3]
