"""What multiplies the scores in a gradient estimate: the coefficients that training would use, read off a batch."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.advantages import AdvantageTransform
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.tokens import Tokens
from jaxrl_llm.types import Rollout

OF_PROMPTS = ("prompt", "prompt_mask", "prompt_id")  # fields of a rollout without an axis of answers


def coefficients(
    transform: AdvantageTransform, objective: Objective | None, rollout: Rollout, tokens: Tokens | None, state: Any
) -> Float[Array, "P G"] | Float[Array, "P G T"]:
    """c in ĝ = Σ c s of one batch, the divisor included.

    Without an objective c = A/(PG), of answers or, where the credit is one of tokens, of tokens. With one c is
    -∂loss/∂logp of each token: ratios, corrections, penalties in loss or reward and the weights of the aggregation are
    those of training; what depends on the parameters other than through `logp` of the tokens is left out.
    `tokens.advantage` is not read.
    """
    if objective is None:
        credit, _ = transform.update(rollout.reward, state, rollout)
        return credit / rollout.reward.size
    rollout = dataclasses.replace(rollout, reward=objective.shaped_reward(rollout.reward, tokens))
    credit, _ = transform.update(rollout.reward, state, rollout)
    credit = credit[..., None] if credit.ndim == 2 else credit
    return -loss_slopes(objective, dataclasses.replace(tokens, advantage=jnp.where(tokens.where, credit, 0))).logp


def loss_slopes(objective: Objective, tokens: Tokens) -> Tokens:
    """∂loss/∂ of everything in the record that depends on the parameters: `logp`, `entropy` and `exact_kl`; else 0."""
    weights = objective.aggregate(tokens.where)

    def loss(moving):
        return objective.loss(weights, dataclasses.replace(tokens, **moving))

    slopes = jax.grad(loss)({name: getattr(tokens, name) for name in ("logp", "entropy", "exact_kl")})
    zeros = {field.name: jnp.zeros_like(tokens.logp) for field in dataclasses.fields(tokens)}
    return Tokens(**(zeros | {"where": tokens.where} | slopes))


class Estimator(NamedTuple):
    """A way to estimate the gradient: credit, the objective that weighs it (None: the plain sum over tokens, divided by
    the answers), and the state of the credit from before the batch (None: a fresh one)."""

    advantage: AdvantageTransform
    objective: Objective | None = None
    state: Any = None

    def coefficients(self, rollout: Rollout, tokens: Tokens | None) -> Float[Array, "P G"] | Float[Array, "P G T"]:
        """c in ĝ = Σ c s of one batch."""
        state = self.advantage.init() if self.state is None else self.state
        return coefficients(self.advantage, self.objective, rollout, tokens, state)


def picked(
    rollout: Rollout, tokens: Tokens | None, prompt: Int[Array, " B"], answer: Int[Array, "B H"]
) -> tuple[Rollout, Tokens | None]:
    """The batch of the given prompts with the given answers of each. Of `extras`, what has the axes [P G ...] goes with
    the answers and the rest, [P] or [P ...], with the prompts."""
    p, g = rollout.reward.shape
    at_answer = lambda x: x[prompt[:, None], answer]  # noqa: E731
    values = {field.name: getattr(rollout, field.name) for field in dataclasses.fields(rollout)}
    extras = values.pop("extras")
    chosen = {name: x[prompt] if name in OF_PROMPTS else at_answer(x) for name, x in values.items()}
    chosen["extras"] = {name: at_answer(x) if x.shape[:2] == (p, g) else x[prompt] for name, x in extras.items()}
    return Rollout(**chosen), jax.tree.map(at_answer, tokens)


def segment_of(acted: Bool[Array, "*B T"], segments: int) -> Int[Array, "*B T"]:
    """Segment of each acted token, ⌊S · j/L⌋ for token j of L; -1 elsewhere. Contiguous, of nearly equal lengths; an
    answer of fewer than S tokens has a token a segment, and empty segments."""
    length = jnp.maximum(jnp.sum(acted, axis=-1, keepdims=True), 1)
    return jnp.where(acted, (jnp.cumsum(acted, axis=-1) - 1) * segments // length, -1)


def segment_means(
    credit: Float[Array, "P G"] | Float[Array, "P G T"], acted: Bool[Array, "P G T"], segments: int
) -> tuple[Float[Array, "P G S"], Float[Array, ""]]:
    """The mean coefficient of the tokens of each segment, and the share of Σc² that the means leave out: 0 where the
    coefficient is the same for the tokens of a segment. The coefficient of a whole answer is that of all its segments,
    of empty ones too; one of tokens gives an empty segment 0."""
    if credit.ndim == 2:
        return jnp.broadcast_to(credit[..., None], (*credit.shape, segments)), jnp.zeros((), credit.dtype)
    credit = jnp.where(acted, credit, 0)
    member = jax.nn.one_hot(segment_of(acted, segments), segments, dtype=credit.dtype)
    sums, counts = jnp.einsum("pgt,pgts->pgs", credit, member), jnp.sum(member, axis=2)
    means = sums / jnp.maximum(counts, 1)
    left = jnp.sum(jnp.square(credit - jnp.einsum("pgs,pgts->pgt", means, member)))
    whole = jnp.sum(jnp.square(credit))
    return means, jnp.where(whole > 0, left / jnp.where(whole > 0, whole, 1), 0)
