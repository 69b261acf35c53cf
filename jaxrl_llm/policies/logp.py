"""What the policy says of the tokens of answers, without a [P G T V] tensor."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.policies.readout import Head, Reading, read


def answer_logp(
    policy: Policy,
    params: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
    acted: Bool[Array, "P G T"],
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """log π(token) at temperature 1 and the entropy of its distribution, both in nats and 0 off `acted`."""
    out = _read(policy, (params,), prompt, prompt_mask, answer)
    return jnp.where(acted, out.logp, 0), jnp.where(acted, out.entropy, 0)


def answer_logp_and_kl(
    policy: Policy,
    params: Params,
    reference: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
    acted: Bool[Array, "P G T"],
) -> tuple[Float[Array, "P G T"], ...]:
    """As `answer_logp`, and KL(π‖π_ref) of the whole distribution at each position, in nats; 0 off `acted`.

    The reference has no gradient.
    """
    out = _read(policy, (params, reference), prompt, prompt_mask, answer)
    return tuple(jnp.where(acted, x, 0) for x in (out.logp, out.entropy, out.divergence))


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
    out = _read(policy, (params,), prompt, prompt_mask, answer)
    return jnp.where(acted, 1 - 2 * jnp.exp(out.logp) + out.squares, 0)


def _read(
    policy: Policy,
    params: tuple[Params, ...],
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
) -> Reading:
    """Of every position; the second of `params` are those of the reference."""

    def head(params: Params) -> Head:
        return policy.head(params, policy.score_behind(params, prompt, prompt_mask, answer))

    own, *reference = map(head, params)
    return read(policy.config.logit_cap, own, answer, jax.lax.stop_gradient(reference[0]) if reference else None)
