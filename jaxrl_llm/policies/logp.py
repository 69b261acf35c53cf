"""Log-probability and entropy of answer tokens without a [P G T V] tensor."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.policies.policy import Params, Policy

CHUNK_ELEMENTS = 2**24  # logits alive at a time: 64 MB of float32


def answer_logp(
    policy: Policy,
    params: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
    acted: Bool[Array, "P G T"],
) -> tuple[Float[Array, "P G T"], Float[Array, "P G T"]]:
    """log π(token) at temperature 1 and the entropy of its distribution, both in nats and 0 off `acted`.

    The head runs over slices of the answer axis, recomputed in the backward pass, so that at most CHUNK_ELEMENTS
    logits (or one position of the batch, where that is more) exist at a time.
    """
    hidden = policy.score(params, policy.prefill(params, prompt, prompt_mask), answer)
    p, g, t = answer.shape
    chunk = max(1, min(t, CHUNK_ELEMENTS // (p * g * policy.vocab_size)))
    chunks = -(-t // chunk)

    def slices(x):
        x = jnp.pad(x, ((0, 0), (0, 0), (0, chunks * chunk - t)) + ((0, 0),) * (x.ndim - 3))
        return jnp.moveaxis(x.reshape(p, g, chunks, chunk, *x.shape[3:]), 2, 0)

    def read(pair):
        logits = policy.logits(params, pair[0])
        every = jax.nn.log_softmax(logits, axis=-1)
        chosen = jnp.take_along_axis(every, pair[1][..., None], axis=-1)[..., 0]
        return chosen, -jnp.sum(jnp.exp(every) * every, axis=-1)

    logp, entropy = jax.lax.map(jax.checkpoint(read), (slices(hidden), slices(answer)))

    def whole(x):
        return jnp.where(acted, jnp.moveaxis(x, 0, 2).reshape(p, g, chunks * chunk)[..., :t], 0)

    return whole(logp), whole(entropy)
