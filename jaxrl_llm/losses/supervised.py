"""Supervised fine-tuning as a surrogate: imitation is a policy gradient whose every token has credit 1."""

from jaxtyping import Array, Float

Tokens = Float[Array, "*B T"]


def cross_entropy(logp: Tokens, behaviour_logp: Tokens, advantage: Tokens) -> Tokens:
    """logp per token, to be maximised: with `token_mean` the loss is the usual cross-entropy in nats per token.

    The same kind of function as a policy-gradient surrogate, so a hybrid is a sum or a gate. The other two arguments
    are not read.
    """
    del behaviour_logp, advantage
    return logp
