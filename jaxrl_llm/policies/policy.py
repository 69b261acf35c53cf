"""A policy: pure functions of (parameters, tokens) around the decoder.

An answer is scored and sampled behind a *prefix*, the prompt without its last token: that token opens each of the G
answers, so every answer token, the first one too, is predicted by the same step, and the prompt is computed once.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.decoder import Block, Decoder, Past, Places, places_of
from jaxrl_llm.policies.readout import Head, logits_of
from jaxrl_llm.policies.turned import Turned
from jaxrl_llm.types import pytree

Params = Any


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prefix:
    """A prompt up to its last token: keys and values [N P L-1 Hk D], which columns are real, and that last token.

    Of a policy that is unrolled for decoding, `past` has an entry a layer: a `Past` of N = 1, or `Turned`.
    """

    past: Past | tuple[Past, ...] | tuple[Turned, ...]
    mask: Bool[Array, "P L1"]
    last: Int[Array, " P"]


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Adapted:
    """Parameters with adapters beside them, to be given to a policy as its parameters.

    low_rank  {"blocks": {linear map: {"a": A, "b": B}}}, layers stacked, B times alpha/rank; likewise "head"
    """

    trunk: Params
    low_rank: Params


@dataclasses.dataclass(frozen=True)
class Policy:
    """The decoder of a configuration over a vocabulary. Holds no parameters."""

    config: DecoderConfig
    vocab_size: int

    @property
    def _module(self) -> Decoder:
        return Decoder(self.config, self.vocab_size)

    def _variables(self, params: Params) -> dict[str, Params]:
        if isinstance(params, Adapted):
            return {"params": params.trunk, "lora": params.low_rank}
        return {"params": params}

    def init(self, key: Key[Array, ""]) -> Params:
        """Fresh parameters, each boxed with its logical axis names; `flax.linen.unbox` gives the plain pytree."""
        token = jnp.zeros((1, 1, 1), jnp.int32)
        own = (token, jnp.ones((1, 1, 1, 1), bool))
        places = places_of(self.config, token, own, jnp.zeros((1, 0), bool))
        return self._module.init(key, token, places, self._empty_prefix(1, 0))["params"]

    def _empty_prefix(self, prompts: int, length: int) -> Past:
        c = self.config
        zeros = jnp.zeros((c.layers, prompts, length, c.kv_heads, c.head_size), c.dtype)
        return Past(key=zeros, value=zeros)

    def empty_cache(self, prompts: int, answers: int, length: int) -> Past:
        """Room for the keys and values of answers [P G T]."""
        c = self.config
        zeros = jnp.zeros((c.layers, prompts, answers, length, c.kv_heads, c.head_size), c.dtype)
        return Past(key=zeros, value=zeros)

    def _prompt_places(self, mask: Bool[Array, "P L"]) -> Places:
        """Of prompts without their last tokens."""
        real = mask[:, :-1]
        length = real.shape[-1]
        position = jnp.maximum(jnp.cumsum(real, axis=-1) - 1, 0)[:, None, :]
        causal = jnp.tril(jnp.ones((length, length), bool))[None, None, :, :]
        own = (position, causal & real[:, None, None, :])
        return places_of(self.config, position, own, jnp.zeros((len(mask), 0), bool))

    def _answer_places(self, real: Bool[Array, "P L1"], answer: Int[Array, "P G T"]) -> Places:
        """Of answers behind prompts of which these columns are real."""
        t = answer.shape[-1]
        causal = jnp.tril(jnp.ones((t, t), bool))[None, None, :, :]
        position = jnp.sum(real, axis=-1)[:, None, None] + jnp.arange(t)[None, None, :]
        return places_of(self.config, position, (position, causal), real)

    def prefill(self, params: Params, prompt: Int[Array, "P L"], mask: Bool[Array, "P L"]) -> Prefix:
        """Run every prompt once, up to its last token."""
        token, places = prompt[:, None, :-1], self._prompt_places(mask)
        _, past = self._module.apply(self._variables(params), token, places, self._empty_prefix(len(prompt), 0))
        past = jax.tree.map(lambda x: x[:, :, 0], past)
        return Prefix(past=past, mask=mask[:, :-1], last=prompt[:, -1])

    def score(self, params: Params, prefix: Prefix, answer: Int[Array, "P G T"]) -> Float[Array, "P G T E"]:
        """Hidden states that predict each answer token, all positions at once."""
        token, places = _inputs(prefix.last, answer), self._answer_places(prefix.mask, answer)
        hidden, _ = self._module.apply(self._variables(params), token, places, prefix.past)
        return hidden

    def score_behind(
        self, params: Params, prompt: Int[Array, "P L"], mask: Bool[Array, "P L"], answer: Int[Array, "P G T"]
    ) -> Float[Array, "P G T E"]:
        """`score` behind `prefill`, both layer by layer: the backward pass then holds one gradient, not one of each."""
        c, variables = self.config, self._variables(params)
        before, behind = self._prompt_places(mask), self._answer_places(mask[:, :-1], answer)
        nothing = self._empty_prefix(len(prompt), 0)
        block = Block(c)

        def layer(x, each):
            weights, local, nothing = each
            (prompts, _), past = block.apply(weights, (x[0], None), (0, local, nothing), before)
            past = jax.tree.map(lambda x: x[:, 0], Past(key=past[0], value=past[1]))
            (answers, _), _ = block.apply(weights, (x[1], None), (0, local, past), behind)
            return (prompts, answers), None

        token = jnp.concatenate([prompt[:, :-1], _inputs(prompt[:, -1], answer).reshape(len(prompt), -1)], axis=-1)
        x = self._module.apply(variables, token[:, None], method=Decoder.embed)
        start = x[:, :, : prompt.shape[1] - 1], x[:, 0, prompt.shape[1] - 1 :].reshape(*answer.shape, -1)
        weights = {kind: tree["blocks"] for kind, tree in variables.items() if "blocks" in tree}
        layers = (weights, jnp.asarray(c.windowed or (False,) * c.layers), nothing)
        layer = jax.checkpoint(layer, prevent_cse=False) if c.recompute else layer
        (_, x), _ = jax.lax.scan(layer, start, layers)
        return self._module.apply(variables, x, method=Decoder.finish)

    def score_rows(
        self,
        params: Params,
        token: Int[Array, "R C"],
        segment: Int[Array, "R C"],
        position: Int[Array, "R C"],
    ) -> Float[Array, "R C E"]:
        """Hidden states of rows that hold several sequences: each token sees those before it in its own segment."""
        columns = token.shape[1]
        seen = (segment[:, :, None] == segment[:, None, :]) & jnp.tril(jnp.ones((columns, columns), bool))[None]
        own = (position[:, None, :], seen[:, None, :, :])
        places = places_of(self.config, position[:, None, :], own, jnp.zeros((len(token), 0), bool))
        hidden, _ = self._module.apply(
            self._variables(params), token[:, None, :], places, self._empty_prefix(len(token), 0)
        )
        return hidden[:, 0]

    def step(
        self,
        params: Params,
        prefix: Prefix,
        cache: Past,
        token: Int[Array, "P G"],
        column: Int[Array, ""],
        read: int | None = None,
    ) -> tuple[Float[Array, "P G V"], Past]:
        """Logits of the token after `token`, which stands in `column` of the answers; and the grown cache.

        read  how many columns are looked at, more than `column`; None: all
        """
        places = self.places(prefix, column, cache.columns if read is None else read)
        hidden, cache = self._module.apply(self._variables(params), token[..., None], places, prefix.past, cache)
        return self.logits(params, hidden)[:, :, 0], cache

    def head(self, params: Params, hidden: Float[Array, "*B E"]) -> Head:
        """Hidden states and the table whose rows give their logits, one a token of the vocabulary.

        An adapter widens both: h W + (h A) B is [h, h A] on [W; B].
        """
        variables = self._variables(params)
        table = self._module.apply(variables, method=Decoder.output_table)
        pair = variables.get("lora", {}).get("head")
        if pair is None:
            return Head(hidden, table)
        a, b = (pair[name].astype(hidden.dtype) for name in ("a", "b"))
        return Head(
            jnp.concatenate([hidden, hidden @ a], axis=-1), jnp.concatenate([table.astype(hidden.dtype), b.T], axis=-1)
        )

    def places(self, prefix: Prefix, column: Int[Array, ""], read: int) -> Places:
        """Of one token in `column` of the answers, where `read` columns are looked at."""
        seen = (jnp.arange(read) <= column)[None, None, None, :]
        before = _length(prefix)[:, None, None]
        own = (before + jnp.arange(read)[None, None, :], seen)
        return places_of(self.config, before + column, own, prefix.mask, column)

    def logits(self, params: Params, hidden: Float[Array, "P G S E"]) -> Float[Array, "P G S V"]:
        """Logits of hidden states, float32."""
        return logits_of(self.head(params, hidden), self.config.logit_cap)

    def parameter_count(self) -> int:
        """Number of parameters."""
        shapes = nn.unbox(jax.eval_shape(self.init, jax.random.key(0)))
        return sum(x.size for x in jax.tree.leaves(shapes))


def in_bfloat16(policy: Policy, params: Params) -> tuple[Policy, Params]:
    """The same policy with parameters, keys, values and activations of half the bytes; logits stay float32."""
    config = dataclasses.replace(policy.config, bfloat16=True)

    def half(x):  # where it widens them again at once, XLA may leave out a cast but not this
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7).astype(jnp.bfloat16)

    return dataclasses.replace(policy, config=config), jax.tree.map(half, params)


def _inputs(last: Int[Array, " P"], answer: Int[Array, "P G T"]) -> Int[Array, "P G T"]:
    """What predicts each token of the answers: the prompt's last token, then those before."""
    first = jnp.broadcast_to(last[:, None, None], (*answer.shape[:2], 1))
    return jnp.concatenate([first, answer[..., :-1]], axis=-1)


def _length(prefix: Prefix) -> Int[Array, " P"]:
    return jnp.sum(prefix.mask, axis=-1)
