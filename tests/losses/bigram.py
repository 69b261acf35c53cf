"""A small autoregressive policy whose 15 answers can all be written down: 3 tokens, the last one ends, at most 3 long.

`LOGITS`, `BEHAVIOUR` and `REFERENCE` [3 3] hold the logits after nothing, after token 0 and after token 1.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.losses import bare_tokens

LOGITS = np.array([[0.4, 0.1, -0.6], [-0.2, 0.5, 0.3], [0.7, -0.4, 0.0]])
REFERENCE = np.array([[0.1, 0.3, -0.2], [0.2, 0.1, 0.0], [0.3, 0.2, -0.3]])
BEHAVIOUR = np.array([[0.2, 0.2, -0.5], [0.0, 0.3, 0.2], [0.4, -0.1, 0.1]])
ANSWERS = ["2", "02", "12", "000", "001", "002", "010", "011", "012", "100", "101", "102", "110", "111", "112"]
REWARD = np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 1, 0, 0, 0.0])

TOKEN = np.array([[int(c) for c in answer.ljust(3, "0")] for answer in ANSWERS])
LENGTH = np.array([len(answer) for answer in ANSWERS])
WHERE = np.arange(3) < LENGTH[:, None]
# Dense rewards: 0.5 for a token 0, -0.25 for a 1, 0.1 for the 2, and 1 more where it ends the answer at length 2.
DENSE = np.where(WHERE, np.array([0.5, -0.25, 0.1])[TOKEN] + (TOKEN == 2) * (LENGTH == 2)[:, None], 0)
CONTEXT = np.concatenate([np.zeros((15, 1), int), np.minimum(TOKEN[:, :-1] + 1, 2)], axis=1)


def logp_of(logits):
    """Log-probability of each token [15 3]; numbers off the answers, too."""
    return jax.nn.log_softmax(jnp.asarray(logits), axis=-1)[CONTEXT, TOKEN]


def exact_kl_of(logits):
    """KL(policy‖reference) of the distribution that each token was drawn from [15 3]."""
    p, q = jax.nn.log_softmax(jnp.asarray(logits), axis=-1), jax.nn.log_softmax(jnp.asarray(REFERENCE), axis=-1)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)[CONTEXT]


def chance(logits):
    """Probability of each answer [15]; they add up to 1."""
    return np.exp(np.sum(np.where(WHERE, logp_of(logits), 0), axis=-1))


def tokens_of(logits, advantage, sampler=BEHAVIOUR):
    """The record [15 1 3] of all answers, drawn from `sampler`, with credit [15] or [15 3]."""
    logp, behaviour = logp_of(logits), logp_of(sampler)
    advantage = jnp.asarray(advantage, logp.dtype)
    advantage = jnp.broadcast_to(advantage[:, None] if advantage.ndim == 1 else advantage, (15, 3))
    fields = {
        "logp": logp,
        "behaviour_logp": behaviour,
        "policy_logp": behaviour,
        "reference_logp": logp_of(REFERENCE),
        "advantage": advantage,
        "exact_kl": exact_kl_of(logits),
    }
    return bare_tokens(jnp.asarray(WHERE)[:, None], **{name: x[:, None] for name, x in fields.items()})


def gradients(per_answer):
    """Gradient of each answer's number [15] in the logits, [15 9]."""
    return np.asarray(jax.jit(jax.jacrev(per_answer))(jnp.asarray(LOGITS))).reshape(15, 9)


def moments(gradient, weight):
    """Mean and trace of the covariance of estimates [N 9] that have these chances [N]."""
    mean = weight @ gradient
    return mean, weight @ np.sum(gradient**2, axis=-1) - mean @ mean


def scores():
    """Gradient of the log-probability of each token in the logits, [15 3 9]; 0 off the answers."""
    slope = np.asarray(jax.jit(jax.jacrev(logp_of))(jnp.asarray(LOGITS))).reshape(15, 3, 9)
    return slope * WHERE[..., None]
