"""The record that surrogates, penalties and corrections read."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.types import pytree


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Tokens:
    """What is known of each answer token. B is P of the whole batch, or the prompts of a micro-batch.

    where           True at the acted tokens of valid answers; the other fields are 0 elsewhere
    logp            nats, current policy; gradient flows through it
    behaviour_logp  nats, under the distribution that was sampled
    policy_logp     nats, under the policy that sampled, at temperature 1 and not truncated
    reference_logp  nats, under the reference policy
    advantage       credit
    entropy         nats, of the current policy's distribution; gradient flows through it
    exact_kl        nats, KL(current‖reference) of the whole distribution at this position; 0 unless a penalty uses it
    noise           uniform on [0, 1), a function of (seed, step, prompt, answer, position) alone
    """

    where: Bool[Array, "B G T"]
    logp: Float[Array, "B G T"]
    behaviour_logp: Float[Array, "B G T"]
    policy_logp: Float[Array, "B G T"]
    reference_logp: Float[Array, "B G T"]
    advantage: Float[Array, "B G T"]
    entropy: Float[Array, "B G T"]
    exact_kl: Float[Array, "B G T"]
    noise: Float[Array, "B G T"]


def bare_tokens(where: Bool[Array, "B G T"], **fields: Float[Array, "B G T"]) -> Tokens:
    """A record of the given fields, masked, the others 0: for notebooks and tests."""
    names = [field.name for field in dataclasses.fields(Tokens) if field.name != "where"]
    unknown = sorted(set(fields) - set(names))
    if unknown:
        raise TypeError(f"Tokens has no field {unknown[0]!r} (fields: {', '.join(names)})")
    dtype = jnp.result_type(*fields.values()) if fields else jnp.float32
    zero = jnp.zeros(where.shape, dtype)
    return masked(Tokens(where=where, **{name: jnp.asarray(fields.get(name, zero)) for name in names}))


def masked(tokens: Tokens) -> Tokens:
    """0 off `where`, whatever stood there: masked inputs, because a NaN that only a sum leaves out still comes back
    through the gradient."""
    values = {field.name: getattr(tokens, field.name) for field in dataclasses.fields(tokens)}
    return Tokens(**{name: x if name == "where" else jnp.where(tokens.where, x, 0) for name, x in values.items()})
