"""What the policy says of the tokens of answers, without a [P G T V] tensor."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.policies.policy import Params, Policy

CHUNK_ELEMENTS = 2**24  # logits alive at a time: 64 MB of float32

Table = Float[Array, "P G S V"]
Chosen = Int[Array, "P G S"]


def answer_logp(
    policy: Policy,
    params: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
    acted: Bool[Array, "P G T"],
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """log π(token) at temperature 1 and the entropy of its distribution, both in nats and 0 off `acted`."""

    def read(chosen: Chosen, every: Table):
        return _at(chosen, every), -jnp.sum(jnp.exp(every) * every, axis=-1)

    return _read_all(policy, (params,), prompt, prompt_mask, answer, acted, read)


def answer_logp_and_kl(
    policy: Policy,
    params: Params,
    reference: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
    acted: Bool[Array, "P G T"],
) -> tuple[Float[Array, "P G T"], ...]:
    """As `answer_logp`, and KL(π‖π_ref) of the whole distribution at each position, in nats; 0 off `acted`."""

    def read(chosen: Chosen, every: Table, theirs: Table):
        p = jnp.exp(every)
        return _at(chosen, every), -jnp.sum(p * every, axis=-1), jnp.sum(p * (every - theirs), axis=-1)

    both = (params, jax.lax.stop_gradient(reference))
    return _read_all(policy, both, prompt, prompt_mask, answer, acted, read)


def answer_energy(
    policy: Policy,
    params: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
    acted: Bool[Array, "P G T"],
) -> Float[Array, "P G T"]:
    """1 - 2π(token) + Σ π²: the squared norm of the token's score in the logits, 0 off `acted`.

    It stands in for the norm in the parameters, which would need a backward pass for each answer.
    """

    def read(chosen: Chosen, every: Table):
        return (1 - 2 * jnp.exp(_at(chosen, every)) + jnp.sum(jnp.exp(2 * every), axis=-1),)

    return _read_all(policy, (params,), prompt, prompt_mask, answer, acted, read)[0]


def _at(chosen: Chosen, every: Table) -> Float[Array, "P G S"]:
    return jnp.take_along_axis(every, chosen[..., None], axis=-1)[..., 0]


def _read_all(
    policy: Policy,
    params: tuple[Params, ...],
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
    acted: Bool[Array, "P G T"],
    read: Callable[..., tuple[Float[Array, "P G S"], ...]],
) -> tuple[Float[Array, "P G T"], ...]:
    """`read(tokens, log-probabilities...)` of every position, 0 off `acted`; one table of them for each of `params`.

    It goes over slices of the answer axis, recomputed in the backward pass: at most CHUNK_ELEMENTS logits of a policy
    (or one position of the batch, where that is more) exist at a time.
    """
    hidden = tuple(policy.score(each, policy.prefill(each, prompt, prompt_mask), answer) for each in params)
    p, g, t = answer.shape
    chunk = max(1, min(t, CHUNK_ELEMENTS // (p * g * policy.vocab_size)))
    chunks = -(-t // chunk)

    def slices(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, chunks * chunk - t)) + ((0, 0),) * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(p, g, chunks, chunk, *x.shape[3:]), 2, 0)

    def one(parts):
        chosen, *states = parts
        each = [jax.nn.log_softmax(policy.logits(ps, state), axis=-1) for ps, state in zip(params, states, strict=True)]
        return read(chosen, *each)

    def whole(x):
        return jnp.where(acted, jnp.moveaxis(x, 0, 2).reshape(p, g, chunks * chunk)[..., :t], 0)

    out = jax.lax.map(jax.checkpoint(one), tuple(slices(x) for x in (answer, *hidden)))
    return tuple(whole(x) for x in out)
