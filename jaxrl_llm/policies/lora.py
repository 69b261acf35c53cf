"""Low-rank adapters (Hu et al., 2021, arXiv 2106.09685): a policy whose parameters they are, around a frozen trunk.

A linear map of inputs I and outputs O has A [N I R] and B [N R O], layers first: x W becomes x W + (alpha/R) (x A) B.
Inputs and outputs keep the axes that they have in W, heads included, and their logical names; R stays whole.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxrl_llm.policies.config import LINEARS, Lora
from jaxrl_llm.policies.policy import Adapted, Params, Policy
from jaxrl_llm.random import named_key

# Axes of a parameter, behind that of the layers, that are inputs; those that follow are outputs.
INPUT_AXES = {name: 2 if name == "out" else 1 for name in LINEARS}


@dataclasses.dataclass(frozen=True)
class AdaptedPolicy(Policy):
    """The policy of a trunk as a function of its adapters: they are the parameters that its methods take.

    `trunk` may be traced; without one only `init` works, and counting. A gradient reaches the adapters alone.
    """

    lora: Lora
    trunk: Params = None

    def on(self, trunk: Params) -> "AdaptedPolicy":
        """The same around a trunk."""
        return dataclasses.replace(self, trunk=trunk)

    def _variables(self, params: Params) -> dict[str, Params]:
        return super()._variables(beside(self.lora, jax.lax.stop_gradient(self.trunk), params))

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh adapters, boxed as in `Policy.init`: A normal of variance 1/inputs, B zero, so that nothing changes."""
        boxed = jax.eval_shape(super().init, key)
        found: dict = {}
        for name in self.lora.targets:
            at = named_key(key, f"lora/{name}")
            if name == "head":  # [V E], outputs first, one for all layers
                head = boxed["head"]
                found["head"] = _pair(at, self.lora.rank, head.value.shape[::-1], head.names[::-1], (0, 1))
            else:
                leaf, inputs = boxed["blocks"][name], 1 + INPUT_AXES[name]
                pair = _pair(at, self.lora.rank, leaf.value.shape, leaf.names, (1, inputs))
                found.setdefault("blocks", {})[name] = pair
        return found

    def shapes(self) -> Params:
        """The adapters without numbers."""
        return nn.unbox(jax.eval_shape(self.init, jax.random.key(0)))


def _pair(
    key: Key[Array, ""], rank: int, shape: tuple[int, ...], names: tuple[str, ...], cut: tuple[int, int]
) -> dict[str, nn.LogicallyPartitioned]:
    """A and B of a parameter whose inputs are the axes from cut[0] to cut[1]; those before them are the layers."""
    layers, split = cut
    a = jax.random.normal(key, (*shape[:split], rank)) / math.prod(shape[layers:split]) ** 0.5
    b = jnp.zeros((*shape[:layers], rank, *shape[split:]))
    return {
        "a": nn.LogicallyPartitioned(a, (*names[:split], "rank")),
        "b": nn.LogicallyPartitioned(b, (*names[:layers], "rank", *names[split:])),
    }


def beside(lora: Lora, trunk: Params, adapter: Params) -> Adapted:
    """A trunk with adapters as parameters of a plain `Policy`: nothing is multiplied out."""

    def scaled(path, x):
        return x * jnp.asarray(lora.scale, x.dtype) if path[-1].key == "b" else x

    return Adapted(trunk=trunk, low_rank=jax.tree_util.tree_map_with_path(scaled, adapter))


def merged(lora: Lora, trunk: Params, adapter: Params) -> Params:
    """W + (alpha/rank) A B in the place of each W with an adapter: parameters of a plain `Policy`, of the same shapes.

    Parameters without an adapter are those of the trunk, not copies. It equals `beside` up to rounding in float32;
    with `bfloat16` activations the sum loses of A B what is below the last bit of W.
    """
    return replaced(trunk, sums(lora, targets(trunk, adapter), adapter))


def targets(tree: Params, adapter: Params) -> Params:
    """The part of a tree like the trunk that has adapters."""
    found = {name: tree[name] for name in adapter if name != "blocks"}
    if "blocks" in adapter:
        found["blocks"] = {name: tree["blocks"][name] for name in adapter["blocks"]}
    return found


def replaced(trunk: Params, part: Params) -> Params:
    """The trunk with that part in the place of its own."""
    return {**trunk, **part, "blocks": {**trunk["blocks"], **part.get("blocks", {})}}


def sums(lora: Lora, part: Params, adapter: Params) -> Params:
    """W + (alpha/rank) A B of the part of the trunk that has adapters."""
    blocks = {
        name: part["blocks"][name] + lora.scale * jax.vmap(_product)(pair["a"], pair["b"])
        for name, pair in adapter.get("blocks", {}).items()
    }
    found = {"blocks": blocks} if blocks else {}
    if "head" in adapter:
        found["head"] = part["head"] + lora.scale * _product(adapter["head"]["b"].T, adapter["head"]["a"].T)
    return found


def _product(a: Float[Array, "*I R"], b: Float[Array, "R *O"]) -> Float[Array, "*IO"]:
    return jnp.tensordot(a, b, 1, precision=jax.lax.Precision.HIGHEST)
