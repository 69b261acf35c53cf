"""Arrays as decoding on a CPU reads them fastest: what XLA multiplies with one query an answer, it does not move first.

Maps lie with their outputs first [N K], keys with their places last [D T], values with them last but one [T D].
Turned once before the loop, they save a third of a token's time at 16 answers; a GPU gains nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.policies.attention import NEVER, capped
from jaxrl_llm.types import pytree

MAPS = ("query", "key", "value", "out", "gate", "up", "down")


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Turned:
    """Keys and values of a layer: of the answers of all groups [P·G Hk ...], or of prompts [P Hk ...].

    Without axes of length 1: where XLA has to drop one to multiply, it makes the grown cache twice, and copies it.
    """

    key: Float[Array, "B Hk D T"]
    value: Float[Array, "B Hk T D"]

    @property
    def columns(self) -> int:
        """T."""
        return self.key.shape[-1]

    def put(self, key: Float[Array, "P G 1 Hk D"], value: Array, _: Array | int, column: Array | int) -> "Turned":
        """With the key and value of one column; the layer is the only one."""
        key, value = (x.reshape(-1, *x.shape[3:]) for x in (key, value))
        return Turned(
            key=jax.lax.dynamic_update_slice(self.key, key[..., None], (0, 0, 0, column)),
            value=jax.lax.dynamic_update_slice(self.value, value[:, :, None], (0, 0, column, 0)),
        )

    def read(self, _: Array | int, columns: int) -> "Turned":
        """The first columns."""
        return Turned(key=self.key[..., :columns], value=self.value[:, :, :columns])

    def some(self, take: Callable[[Array, int], Array], _: int) -> "Turned":
        """Of some answers, or prompts: `take` chooses them along so many first axes of an array."""
        return Turned(key=take(self.key, 1), value=take(self.value, 1))


def turn(key: Float[Array, "P L Hk D"], value: Float[Array, "P L Hk D"]) -> Turned:
    """Keys and values whose places come first."""
    return Turned(key=jnp.transpose(key, (0, 2, 3, 1)), value=jnp.transpose(value, (0, 2, 1, 3)))


def turn_maps(weights: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a block with its maps as matrices [outputs, inputs]."""
    flat = {name: weights[name].reshape(len(weights[name]), -1) for name in MAPS}
    flat["out"] = weights["out"].reshape(-1, weights["out"].shape[-1])
    return {**weights, **{name: matrix.T for name, matrix in flat.items()}}


def product(h: Float[Array, "*B K"], weight: Float[Array, "N K"]) -> Float[Array, "*B N"]:
    """h times a turned map. Without the barriers XLA would turn the map back, for each product."""
    columns = jax.lax.optimization_barrier(h.reshape(-1, h.shape[-1]).T)
    out = jax.lax.dot_general(weight, columns, (((1,), (0,)), ((), ())))
    return jax.lax.optimization_barrier(out).T.reshape(*h.shape[:-1], len(weight))


def attend_one(
    query: Float[Array, "P G 1 Hq D"],
    own: Turned,
    own_mask: Bool[Array, "#P #G 1 T"],
    prefix: Turned,
    prefix_mask: Bool[Array, "P #G 1 L"],
    *,
    scale: float,
    cap: float = 0.0,
) -> Float[Array, "P G 1 Hq D"]:
    """As `attention.attend`, of one query an answer: own keys [P·G Hk D T] and those of its prompt [P Hk D L]."""
    p, g, _, heads, size = query.shape
    groups = own.key.shape[-3]
    q = query.reshape(p, g, groups, heads // groups, size) * scale
    far = jnp.einsum("pgkrd,pkdl->pgkrl", q, prefix.key, preferred_element_type=jnp.float32)
    near = jnp.einsum("bkrd,bkdt->bkrt", q.reshape(-1, *q.shape[2:]), own.key, preferred_element_type=jnp.float32)
    far, near = capped(far, cap), capped(near.reshape(*far.shape[:-1], -1), cap)
    far = jnp.where(prefix_mask[:, :, None], far, NEVER)
    near = jnp.where(own_mask[:, :, None], near, NEVER)
    weights = jax.nn.softmax(jnp.concatenate([far, near], axis=-1), axis=-1).astype(query.dtype)
    far, near = jnp.split(weights, [far.shape[-1]], axis=-1)
    out = jnp.einsum("bkrt,bktd->bkrd", near.reshape(-1, *near.shape[2:]), own.value)
    out = out.reshape(q.shape) + jnp.einsum("pgkrl,pkld->pgkrd", far, prefix.value)
    return out.reshape(query.shape)
