"""One table of all surrogates; what is added here is held to every law."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.losses import Tokens, bare_tokens, cross_entropy
from jaxrl_llm.losses import surrogates as s
from jaxrl_llm.losses.ratios import answer_log_ratio
from jaxrl_llm.losses.surrogates import rec_pieces as rec
from jaxrl_llm.losses.surrogates import unified_pieces as unified
from jaxrl_llm.losses.surrogates.tapers import between


class Entry(NamedTuple):
    """A surrogate and what is known of it.

    on_policy  A -> derivative in logp where every ratio is 1; None where it depends on the probability
    of_nothing derivative in logp where A = 0
    local      the derivative at a token depends on no other token of the answer
    """

    surrogate: Callable[[Tokens], jax.Array]
    on_policy: Callable | None = lambda advantage: advantage
    of_nothing: float = 0.0
    local: bool = True


EVERY = {
    "reinforce": Entry(s.reinforce()),
    "token_ratio": Entry(s.token_ratio()),
    "clipped": Entry(s.clipped()),
    "clipped, dual": Entry(s.clipped(low=0.2, high=0.28, dual=3.0)),
    "log_ratio_clamped": Entry(s.log_ratio_clamped()),
    "cispo": Entry(s.cispo(low=0.2, high=0.28)),
    "cispo, no lower bound": Entry(s.cispo(low=None, high=0.28)),
    "sapo": Entry(s.sapo()),
    "dppo": Entry(s.dppo(low=0.2, high=0.3)),
    "shaped_probability": Entry(s.shaped_probability(), None),
    "probability": Entry(s.probability(), None),
    "proximal": Entry(s.proximal(s.clipped())),
    "sequence_ratio": Entry(s.sequence_ratio(), local=False),
    "prefix_ratio": Entry(s.prefix_ratio(), local=False),
    "gspo": Entry(s.gspo(), local=False),
    "clipped_answer": Entry(s.clipped_answer(), local=False),
    "geo_mean": Entry(s.geo_mean(low=0.4, high=0.3), local=False),
    "tapered": Entry(
        s.tapered(positive=between(0.5, math.inf), negative=between(0.0, 2.0), ratio=answer_log_ratio), local=False
    ),
    "topr": Entry(s.topr(), local=False),
    "topr_token": Entry(s.topr_token()),
    "vespo": Entry(s.vespo(), local=False),
    "rec": Entry(
        s.rec(
            mask=rec.two_side(low=0.3, high=0.5),
            weight=rec.importance,
            regulariser=rec.squared_log_ratio(coefficient=0.1),
        )
    ),
    "rec, one side": Entry(s.rec(mask=rec.one_side(), weight=rec.no_weight, regulariser=rec.no_regulariser)),
    "rec, ring": Entry(s.rec(mask=rec.ring(), weight=rec.no_weight, regulariser=rec.no_regulariser)),
    "rec, gspo": Entry(
        s.rec(mask=rec.gspo_one_side(low=0.1, high=0.1), weight=rec.no_weight, regulariser=rec.no_regulariser),
        local=False,
    ),
    "rec, exponential": Entry(
        s.rec(mask=rec.no_mask, weight=rec.exponential(temperature=2.0), regulariser=rec.no_regulariser),
        lambda advantage: advantage * np.exp(advantage / 2),
    ),
    "opmd": Entry(s.opmd(coefficient=0.2)),
    "opmd_early": Entry(s.opmd_early(temperature=1.0), lambda advantage: advantage / 2),
    "asymmetric_reinforce": Entry(s.asymmetric_reinforce(coefficient=0.1), lambda advantage: advantage + 0.1, 0.1),
    "unified": Entry(
        s.unified(mask=unified.stable(), denominator=unified.over_behaviour, advantage=unified.credit),
    ),
    "unified, offline": Entry(
        s.unified(mask=rec.no_mask, denominator=unified.over_one, advantage=unified.credit), None
    ),
    "cross_entropy": Entry(cross_entropy, np.ones_like, 1.0),
}
every_surrogate = pytest.mark.parametrize("name", EVERY)

FIELDS = ("logp", "behaviour_logp", "policy_logp", "reference_logp", "advantage", "entropy", "exact_kl", "noise")


def batch(seed=0, shape=(4, 3, 5), spread=0.5):
    """Tokens of ragged answers, some of none, whose ratios are spread around 1; the credit differs between tokens."""
    rng = np.random.default_rng(seed)
    where = np.arange(shape[2]) < rng.integers(0, shape[2] + 1, size=(*shape[:2], 1))
    behaviour = -rng.exponential(size=shape)
    fields = {
        "logp": np.minimum(behaviour + spread * rng.normal(size=shape), -1e-3),
        "behaviour_logp": behaviour,
        "policy_logp": np.minimum(behaviour + spread * rng.normal(size=shape) / 2, -1e-3),
        "reference_logp": -rng.exponential(size=shape),
        "advantage": rng.normal(size=shape),
        "entropy": rng.exponential(size=shape),
        "exact_kl": rng.exponential(size=shape),
        "noise": rng.random(size=shape),
    }
    return bare_tokens(jnp.asarray(where), **{name: jnp.asarray(x, jnp.float32) for name, x in fields.items()})


def every_row(**fields):
    """Tokens [B 1 T] of fields [B T] or [B 1], all acted."""
    shape = jnp.broadcast_shapes(*(x.shape for x in fields.values()))
    arrays = {name: jnp.broadcast_to(jnp.asarray(x, jnp.float32), shape)[:, None] for name, x in fields.items()}
    return bare_tokens(jnp.ones((shape[0], 1, shape[1]), bool), **arrays)


def row(**fields):
    """Tokens [1 1 T] of the given vectors or numbers, all acted; `policy_logp` is `behaviour_logp` unless given."""
    fields.setdefault("policy_logp", fields.get("behaviour_logp", 0.0))
    length = max(np.size(x) for x in fields.values())
    arrays = {name: jnp.broadcast_to(jnp.asarray(x, jnp.float32), (1, 1, length)) for name, x in fields.items()}
    return bare_tokens(jnp.ones((1, 1, length), bool), **arrays)


def of_ratios(ratio, advantage, behaviour=-3.0):
    """Tokens [1 1 T] of one answer with these ratios and this credit."""
    logp = behaviour + np.log(np.asarray(ratio, np.float64))
    return row(logp=logp, behaviour_logp=behaviour, advantage=advantage)


@functools.cache
def compiled(surrogate):
    """(tokens, logp) -> values and derivatives of their sum in logp."""

    def total(tokens, logp):
        values = surrogate(dataclasses.replace(tokens, logp=logp))
        return jnp.sum(values), values

    return jax.jit(jax.value_and_grad(total, argnums=1, has_aux=True))


def pulls(surrogate, tokens):
    """Values and derivatives of their sum in logp, [B G T] each."""
    (_, values), slope = compiled(surrogate)(tokens, tokens.logp)
    return np.asarray(values), np.asarray(slope)


def slope_of(surrogate, tokens):
    """Derivatives alone."""
    return pulls(surrogate, tokens)[1]
