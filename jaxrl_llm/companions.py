"""Companions: a second network that reads the answers for the method and is trained on them beside the policy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxrl_llm import masked
from jaxrl_llm.finite import all_finite
from jaxrl_llm.policies.heads import Head, token_states
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.types import Rollout

HEAD = Head()  # linear, and 0 of everything at first


class Companion(NamedTuple):
    """A second network.

    init(policy parameters) -> state: parameters and moments
    read(state, reference, rollout) -> entries of `Rollout.extras`, detached
    learn(state, reference, rollout) -> state, after one update on these answers
    gives: the names of those entries
    """

    init: Callable[[Params], Any]
    read: Callable[[Any, Params | None, Rollout], dict[str, Array]]
    learn: Callable[[Any, Params | None, Rollout], Any]
    gives: tuple[str, ...]


Loss = Callable[[Params, Params | None, Rollout], Float[Array, ""]]


def value_network(policy: Policy, *, learning_rate: float, discount: float) -> Companion:
    """V(prefix) for each answer token: a copy of the policy's parameters with a linear head, fitted to the returns.

    Loss: mean over acted tokens of (V - γ^(tokens still to come) r)²/2. The head starts at 0, so the first credit is
    the reward itself. Gives `value` [P G T].
    """

    def loss(params, reference, rollout):
        del reference
        where = rollout.acted & rollout.valid[..., None]
        ahead = jnp.cumsum(rollout.acted[..., ::-1], axis=-1)[..., ::-1] - 1
        reward = jnp.where(rollout.valid, rollout.reward, 0)[..., None]
        error = _read_head(policy, params, rollout) - reward * discount ** ahead.astype(jnp.float32)
        return masked.mean(jnp.square(error) / 2, where)

    return _with_head(policy, loss, "value", learning_rate)


def token_reward_model(policy: Policy, *, learning_rate: float) -> Companion:
    """A logit for each answer token, whose mean over the answer tells right answers from others (OREAL).

    Loss: mean over valid answers of the binary cross-entropy of mean_t logit_t and 1[r > 0]. Gives `token_score`
    [P G T]; the head starts at 0, where neither class has any weight.
    """

    def loss(params, reference, rollout):
        del reference
        logit = masked.mean(_read_head(policy, params, rollout), rollout.acted, axis=-1)
        right = jnp.where(rollout.valid, rollout.reward > 0, False)
        return masked.mean(_binary_cross_entropy(logit, right), rollout.valid)

    return _with_head(policy, loss, "token_score", learning_rate)


def implicit_process_reward(policy: Policy, *, learning_rate: float, beta: float) -> Companion:
    """An implicit process reward q_t = log π_φ - log π_ref, φ trained online on outcomes (PRIME, arXiv 2502.01456).

    Loss: mean over valid answers of the binary cross-entropy of β Σ_t q_t and 1[r > 0]. φ starts as the policy. Gives
    `process_score` [P G T]; answers are read before φ learns from them.
    """

    def score(params, reference, rollout):
        tokens = (rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted)
        theirs = rollout.policy_logp if reference is None else answer_logp(policy, reference, *tokens)[0]
        # Masked before the sum: a NaN of an invalid answer comes back through the gradient of the cross-entropy.
        own = answer_logp(policy, params, *tokens)[0] - jax.lax.stop_gradient(theirs)
        return jnp.where(rollout.acted & rollout.valid[..., None], own, 0)

    def loss(params, reference, rollout):
        logit = beta * jnp.sum(score(params, reference, rollout), axis=-1)
        right = jnp.where(rollout.valid, rollout.reward > 0, False)
        return masked.mean(_binary_cross_entropy(logit, right), rollout.valid)

    def read(params, reference, rollout):
        return {"process_score": score(params, reference, rollout)}

    return _trained(lambda params: jax.tree.map(jnp.copy, params), read, loss, ("process_score",), learning_rate)


def _binary_cross_entropy(logit: Float[Array, "P G"], right: Array) -> Float[Array, "P G"]:
    return jax.nn.softplus(logit) - jnp.where(right, logit, 0)


def _read_head(policy: Policy, params: Params, rollout: Rollout) -> Float[Array, "P G T"]:
    trunk = params["trunk"]
    states = token_states(policy, trunk, rollout.prompt, rollout.prompt_mask, rollout.answer)
    return jnp.where(rollout.acted, HEAD(params["head"], states), 0)


def _with_head(policy: Policy, loss: Loss, name: str, learning_rate: float) -> Companion:
    def init(params):
        one = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        answer = jax.ShapeDtypeStruct((1, 1, 1), jnp.int32)
        states = jax.eval_shape(lambda p, x, a: token_states(policy, p, x, x > 0, a), nn.unbox(params), one, answer)
        return {"trunk": jax.tree.map(jnp.copy, params), "head": nn.unbox(HEAD.init(states.shape[-1]))}

    def read(params, reference, rollout):
        del reference
        return {name: _read_head(policy, params, rollout)}

    return _trained(init, read, loss, (name,), learning_rate)


def _trained(
    init: Callable[[Params], Params], read: Callable, loss: Loss, gives: tuple[str, ...], learning_rate: float
) -> Companion:
    """Adam behind a bound of 10 on the norm of the gradient, one update a rollout, refused if that is not finite."""
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(learning_rate))

    def begin(params):
        own = init(params)
        return own, optimizer.init(own)

    def look(state, reference, rollout):
        return jax.lax.stop_gradient(read(state[0], reference, rollout))

    def learn(state, reference, rollout):
        params, moments = state
        grads = jax.grad(loss)(params, reference, rollout)
        updates, moments = optimizer.update(grads, moments, params)
        taught = optax.apply_updates(params, updates), moments
        ok = jnp.isfinite(optax.tree.norm(grads)) & all_finite(taught)
        return jax.tree.map(lambda new, old: jnp.where(ok, new, old), taught, state)

    return Companion(begin, look, learn, gives)
