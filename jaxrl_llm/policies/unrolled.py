"""Decoding with the layers written out, each with arrays of its own.

A scan cuts the weights of a layer out of the stacked ones, which is a copy, for every token: with few answers that is
as dear as the multiplication. Here they are cut out once, before the loop. It takes longer to compile and holds the
weights twice, so models stay scanned that are so small that it saves nothing, or so large that the memory counts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm.policies.decoder import Block, Decoder
from jaxrl_llm.policies.policy import Adapted, Params, Policy, Prefix
from jaxrl_llm.policies.turned import turn, turn_maps

LEAST, MOST = 2**25, 2**31  # bytes of the layers: what stays in a cache anyway, and what is too much to hold twice

Layers = tuple[Any, ...]  # something of each layer


@dataclasses.dataclass(frozen=True)
class Unrolled:
    """A policy that decodes with parameters, prefix and cache of `for_decoding`."""

    policy: Policy
    turned: bool  # they lie as in `turned`

    def empty_cache(self, prompts: int, answers: int, length: int) -> Layers:
        """Room for the keys and values of answers [P G T], a layer each."""
        layers = _layers(self.policy.empty_cache(prompts, answers, length))
        if not self.turned:
            return layers
        flat = lambda x: x.reshape(prompts * answers, *x.shape[3:])  # noqa: E731
        return tuple(turn(flat(each.key), flat(each.value)) for each in layers)

    def step(
        self,
        params: Params,
        prefix: Prefix,
        cache: Layers,
        token: Int[Array, "P G"],
        column: Int[Array, ""],
        read: int | None = None,
    ) -> tuple[Float[Array, "P G V"], Layers]:
        """As `Policy.step`."""
        policy, grown = self.policy, []
        c, module = policy.config, Decoder(policy.config, policy.vocab_size)
        places = policy.places(prefix, column, cache[0].columns if read is None else read)
        layers, rest = params["layers"], {"params": params["rest"]}
        x = module.apply(rest, token[..., None], method=Decoder.embed)
        for i, weights in enumerate(layers):
            past = prefix.past[i] if self.turned else jax.tree.map(lambda x: x[0], prefix.past[i])
            local = bool(c.windowed and c.windowed[i])
            per_layer = (0, jnp.asarray(local), past)
            (x, each), _ = Block(c, self.turned).apply({"params": weights}, (x, cache[i]), per_layer, places)
            grown.append(each)
        hidden = module.apply(rest, x, method=Decoder.finish)
        return policy.logits(params["rest"], hidden)[:, :, 0], tuple(grown)


def for_decoding(policy: Policy, params: Params, prefix: Prefix) -> tuple[Policy | Unrolled, Params, Prefix]:
    """What to call `empty_cache` and `step` of, with which parameters and prefix."""
    if isinstance(params, Adapted):
        return policy, params, prefix
    blocks = params.get("blocks")
    if not LEAST <= sum(x.nbytes for x in jax.tree.leaves(blocks)) <= MOST:
        return policy, params, prefix
    rest = {name: x for name, x in params.items() if name != "blocks"}
    weights = tuple(jax.tree.map(lambda x: x[0], each) for each in _layers(blocks))
    past, turned = _layers(prefix.past), jax.default_backend() == "cpu"
    if turned:
        weights = tuple(turn_maps(each) for each in weights)
        past = tuple(turn(each.key[0], each.value[0]) for each in past)
    return Unrolled(policy, turned), {"layers": weights, "rest": rest}, dataclasses.replace(prefix, past=past)


def _layers(stacked: Any) -> Layers:
    """A tree for each layer, with leaves [1 ...] of their own."""
    count = len(jax.tree.leaves(stacked)[0])
    return tuple(jax.tree.map(lambda x: x[i : i + 1], stacked) for i in range(count))  # noqa: B023
