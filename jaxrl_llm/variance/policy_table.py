"""A neural policy written out as a finite table: every answer to one prompt, with the scores of all parameters."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.variance.tables import OutcomeTable, answers, need_float64

LIMIT = 2**28  # numbers in the table of the gradients of all logits


def policy_table(
    policy: Policy,
    params: Params,
    prompt: Int[Array, " L"],
    reward: Callable[[tuple[int, ...]], float],
    *,
    eos: int,
    length: int,
    **fields,
) -> OutcomeTable:
    """All answers to `prompt` of at most `length` tokens, as `tables.answers` has them, and π's probabilities of them.

    π is at temperature 1. The parameters are flattened leaf by leaf. Logits and their gradients have the precision of
    the policy, float32; what follows from them, log π and ∇ log π(y_t) = ∇z_y - Σ_v π_v ∇z_v, is computed in float64,
    so that the table is one of a policy to the last digit, whose scores have mean 0, near to the policy given. Raises
    ValueError where the gradients of all logits are more than 2^28 numbers.
    """
    need_float64()
    paths = answers(policy.vocab_size, eos, length)
    prefixes = {path[:t]: (n, t) for n, path in enumerate(paths) for t in range(len(path))}
    size = len(prefixes) * policy.vocab_size * policy.parameter_count()
    if size > LIMIT:
        raise ValueError(f"{len(prefixes)} prefixes need {size} numbers, the most are {LIMIT}: take shorter answers")
    logits, slopes = _logits(policy, nn.unbox(params), prompt, paths, prefixes, length)
    # The distribution of each prefix is one row, whatever answers go on from it.
    row = {prefix: number for number, prefix in enumerate(prefixes)}
    at = jnp.asarray([[row[path[:t]] if t < len(path) else 0 for t in range(length)] for path in paths])
    token = jnp.asarray([[*path, *(0 for _ in range(length - len(path)))] for path in paths])
    acted = jnp.asarray([[t < len(path) for t in range(length)] for path in paths])
    every = jax.nn.log_softmax(logits, axis=-1)
    centred = slopes - jnp.sum(jnp.exp(every)[..., None] * slopes, axis=1, keepdims=True)
    logp = jnp.where(acted, every[at, token], 0)
    token_scores = jnp.where(acted[..., None], centred[at, token], 0)
    return OutcomeTable(
        jnp.exp(jnp.sum(logp, axis=-1)),
        jnp.sum(token_scores, axis=1),
        [reward(path) for path in paths],
        [len(path) for path in paths],
        token_scores=token_scores,
        logp=logp,
        **fields,
    )


def _logits(policy, params, prompt, paths, prefixes, length) -> tuple[Float[Array, "C V"], Float[Array, "C V D"]]:
    """Logits after each prefix and their gradients, float64."""
    answer = jnp.asarray([[[*path, *(0 for _ in range(length - len(path)))] for path in paths]], jnp.int32)
    n, t = jnp.asarray(list(prefixes.values())).T

    def of(params):
        prefix = policy.prefill(params, prompt[None].astype(jnp.int32), jnp.ones((1, len(prompt)), bool))
        hidden = policy.score(params, prefix, answer)[0, n, t]
        return policy.logits(params, hidden[None, None])[0, 0]

    values, slopes = jax.jit(lambda x: (of(x), jax.jacrev(of)(x)))(params)
    flat = [x.reshape(*values.shape, -1) for x in jax.tree.leaves(slopes)]
    return values.astype(jnp.float64), jnp.concatenate(flat, axis=-1).astype(jnp.float64)
