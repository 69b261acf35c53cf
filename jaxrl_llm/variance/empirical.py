"""Inner products of the scores of a neural policy on a frozen batch."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.losses.tokens import Tokens
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.random import Stream, named_key, stream_key, token_noise
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.credit import segment_of
from jaxrl_llm.variance.empirical_backends import Answer, Backend, Tree, count_sketch
from jaxrl_llm.variance.gram import ScoreGram


def score_gram(
    policy: Policy,
    params: Params,
    rollout: Rollout,
    *,
    backend: Backend | None = None,
    segments: int = 1,
    preconditioner: Tree | None = None,
    seed: int = 0,
) -> ScoreGram:
    """K of the scores ∇ Σ_t log π(token_t | prefix), S segments of acted tokens an answer, at `params`.

    backend         where scores come from and what is kept of them; `count_sketch()` where not given
    segments        S: with 1 a row is a whole answer; with S >= T each token has a row
    preconditioner  tree like `params`, positive: scores are multiplied by it, so that norms are those of an adaptive
                    optimizer, as with 1/(√v + eps) of Adam
    seed            of the sketch or the adapters

    Answers that are not valid have scores of 0. Raises ValueError where the rows of two answers do not fit the
    back end's bound.
    """
    if segments < 1:
        raise ValueError(f"segments must be at least 1, not {segments}")
    key = stream_key(seed, Stream.VARIANCE)
    return _score_gram(backend or count_sketch(), policy, segments, params, preconditioner, key, rollout)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _score_gram(backend: Backend, policy, segments: int, params, preconditioner, key, rollout: Rollout) -> ScoreGram:
    inner = backend.gram(policy, params, preconditioner, key, answers_of(rollout, segments), segments)
    return ScoreGram(inner=inner.reshape(*(*rollout.reward.shape, segments) * 2))


def answers_of(rollout: Rollout, segments: int) -> Answer:
    """All answers along one axis, prompt by prompt, each with its prompt."""
    p, g, _ = rollout.answer.shape
    acted = rollout.acted & rollout.valid[..., None]
    along = lambda x: jnp.broadcast_to(x[:, None], (p, g, *x.shape[1:])).reshape(p * g, *x.shape[1:])  # noqa: E731
    flat = lambda x: x.reshape(p * g, *x.shape[2:])  # noqa: E731
    of_prompts, of_answers = (rollout.prompt, rollout.prompt_mask), (rollout.answer, acted, segment_of(acted, segments))
    return Answer(*map(along, of_prompts), *map(flat, of_answers))


@functools.partial(jax.jit, static_argnums=0)
def tokens_at(policy: Policy, params: Params, rollout: Rollout) -> Tokens:
    """The record of the batch at `params`: log-probabilities and entropies are computed, a prompt at a time; those of
    the reference are `extras["reference_logp"]`, 0 where it is not there."""

    def one(row):
        prompt, mask, answer, acted = row
        logp, entropy = answer_logp(policy, params, prompt[None], mask[None], answer[None], acted[None])
        return logp[0], entropy[0]

    where = rollout.acted & rollout.valid[..., None]
    logp, entropy = jax.lax.map(one, (rollout.prompt, rollout.prompt_mask, rollout.answer, where))
    zero = jnp.zeros_like(logp)
    key = named_key(stream_key(0, Stream.VARIANCE), "noise")
    return Tokens(
        where=where,
        logp=logp,
        behaviour_logp=rollout.behaviour_logp,
        policy_logp=rollout.policy_logp,
        reference_logp=rollout.extras.get("reference_logp", zero),
        advantage=zero,
        entropy=entropy,
        exact_kl=zero,
        noise=token_noise(key, 0, rollout.prompt_id, *rollout.answer.shape[1:]),
    )


class Floor(NamedTuple):
    """|difference|² of K estimates, by what changes nothing but rounding."""

    order: Float[Array, " K"]  # all answers at once, and in two halves, the last one first
    precision: Float[Array, " K"]  # float32, and activations in bfloat16


@functools.partial(jax.jit, static_argnums=0)
def numeric_floor(
    policy: Policy,
    params: Params,
    rollout: Rollout,
    credit: Float[Array, "K P G T"],
    preconditioner: Tree | None = None,
) -> Floor:
    """|∇ - ∇'|² of Σ c log π for K sets of coefficients, in another order of summation and in another precision.

    A spread that is not well above the first is rounding; the second says what bfloat16 adds to an estimate.
    """
    answers = answers_of(rollout, 1)
    rows = (answers.prompt, answers.prompt_mask, answers.answer[:, None], answers.acted[:, None])
    other = dataclasses.replace(policy, config=dataclasses.replace(policy.config, bfloat16=not policy.config.bfloat16))

    def pull(policy, rows):
        return jax.vjp(lambda p: answer_logp(policy, p, *rows)[0], params)[1]

    def apart(one, two):
        gap = jax.tree.map(jnp.subtract, one, two)
        if preconditioner is not None:
            gap = jax.tree.map(jnp.multiply, gap, preconditioner)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(gap))

    middle = len(answers.answer) // 2
    first, last = jax.tree.map(lambda x: x[:middle], rows), jax.tree.map(lambda x: x[middle:], rows)
    whole, rough, early, late = pull(policy, rows), pull(other, rows), pull(policy, first), pull(policy, last)

    def one(credit):
        credit = credit.reshape(len(credit) * credit.shape[1], 1, -1)
        (at_once,), (halved,) = whole(credit), jax.tree.map(jnp.add, late(credit[middle:]), early(credit[:middle]))
        return Floor(apart(at_once, halved), apart(at_once, rough(credit)[0]))

    return jax.lax.map(one, credit)
