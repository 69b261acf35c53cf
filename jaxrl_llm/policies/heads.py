"""Heads on the hidden states of a trunk: a value for each answer token, a score for each answer.

A head is a plain tree beside the trunk's. Its states are those of `Policy.score`; whoever reads them decides whether
the gradient of the head's loss goes on into the trunk.
"""

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.random import named_key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
    """Hidden states [... E] to one number each, in float32.

    hidden 0  w·h                        w starts at 0, or is normal of that standard deviation times 1/√E
    hidden H  w·act(W h + b) + c         W normal of variance 1/E, b and c 0, w as above with H in the place of E

    With start 0 the head says 0 of everything; in two layers the first one then learns from the second update on.
    """

    hidden: int = 0
    activation: Literal["silu", "gelu", "tanh"] = "silu"  # between two layers; silu as in BaseReward
    start: float = 0.0

    def __post_init__(self):
        if self.hidden < 0:
            raise ValueError(f"hidden must be 0 (one layer) or more, not {self.hidden}")
        if not self.start >= 0:
            raise ValueError(f"start must be 0 or more, not {self.start}")

    def init(self, width: int, key: Key[Array, ""] | None = None) -> Params:
        """Fresh parameters for states of that width, boxed with their logical axes.

        Raises ValueError where something is drawn and there is no key: a linear head that starts at 0 needs none.
        """
        if key is None and (self.hidden or self.start):
            raise ValueError("a head of two layers, or one that does not start at 0, is drawn: give it a key")
        inner, axis = (self.hidden, "mlp") if self.hidden else (width, "embed")
        found = {"out": nn.LogicallyPartitioned(_normal(key, "out", (inner,), self.start / inner**0.5), (axis,))}
        if not self.hidden:
            return found
        first = _normal(key, "in", (width, self.hidden), width**-0.5)
        return found | {
            "in": nn.LogicallyPartitioned(first, ("embed", "mlp")),
            "in_bias": nn.LogicallyPartitioned(jnp.zeros(self.hidden), ("mlp",)),
            "out_bias": nn.LogicallyPartitioned(jnp.zeros(()), ()),
        }

    def __call__(self, params: Params, states: Float[Array, "*B E"]) -> Float[Array, "*B"]:
        """One number a state."""
        wide = states.astype(jnp.float32)
        if not self.hidden:
            return jnp.tensordot(wide, params["out"], 1)
        act = {"silu": jax.nn.silu, "gelu": jax.nn.gelu, "tanh": jnp.tanh}[self.activation]
        bias = params["in_bias"].reshape((1,) * (wide.ndim - 1) + (-1,))
        return jnp.tensordot(act(jnp.tensordot(wide, params["in"], 1) + bias), params["out"], 1) + params["out_bias"]


def _normal(key: Key[Array, ""] | None, name: str, shape: tuple[int, ...], deviation: float) -> Array:
    return deviation * jax.random.normal(named_key(key, name), shape) if deviation else jnp.zeros(shape)


def token_states(
    policy: Policy,
    params: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
) -> Float[Array, "P G T E"]:
    """Hidden states *before* each answer token: what is known when it is chosen, as a value must see it.

    Wrap `params` in `stop_gradient` for a head that leaves the trunk alone.
    """
    return policy.score_behind(params, prompt, prompt_mask, answer)


def answer_states(
    policy: Policy,
    params: Params,
    prompt: Int[Array, "P L"],
    prompt_mask: Bool[Array, "P L"],
    answer: Int[Array, "P G T"],
    acted: Bool[Array, "P G T"],
) -> Float[Array, "P G E"]:
    """Hidden states *at* the last acted token of each answer, which they have seen, as a reward model must.

    An answer without a token has the state at the end of its prompt. A column is appended for the state behind the
    last one; what stands in it is seen by nobody.
    """
    longer = jnp.pad(answer, ((0, 0), (0, 0), (0, 1)))
    states = token_states(policy, params, prompt, prompt_mask, longer)
    length = jnp.sum(acted, axis=-1)
    return jnp.take_along_axis(states, length[..., None, None], axis=2)[:, :, 0]
