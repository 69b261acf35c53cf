"""Supervised fine-tuning as a surrogate: imitation is a policy gradient whose every token has credit 1."""

from jaxtyping import Array, Float

from jaxrl_llm.losses.tokens import Tokens


def cross_entropy(tokens: Tokens) -> Float[Array, "B G T"]:
    """logp per token, to be maximised: with `token_mean` the loss is the usual cross-entropy in nats per token.

    The same kind of function as a policy-gradient surrogate, so a hybrid is a sum or a gate. No other field is read.
    """
    return tokens.logp
