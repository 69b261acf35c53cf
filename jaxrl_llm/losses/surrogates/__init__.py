"""Surrogates: the per-token objective, to be maximised, whose gradient in `logp` is the policy gradient.

All take `Tokens` [B G T] and return that shape. A surrogate may combine the tokens of one answer, never those of
several: what needs the whole batch is a correction. Padding is the business of the aggregation. Gradient flows through
`logp` alone. Ratios are safe: see `jaxrl_llm.losses.ratios`.

    ppo             reinforce, token_ratio, clipped, log_ratio_clamped, cispo, sapo, dppo, shaped_probability,
                    probability, proximal
    sequence        sequence_ratio, prefix_ratio, gspo, geo_mean
    tapers          tapered, topr, topr_token, vespo
    rec_pieces      rec and its masks, weights and regularisers; opmd, opmd_early, asymmetric_reinforce
    unified_pieces  unified and its denominators and credits
"""

from jaxrl_llm.losses.surrogates._base import Surrogate
from jaxrl_llm.losses.surrogates.ppo import (
    cispo,
    clipped,
    dppo,
    log_ratio_clamped,
    probability,
    proximal,
    reinforce,
    sapo,
    shaped_probability,
    token_ratio,
)
from jaxrl_llm.losses.surrogates.rec_pieces import asymmetric_reinforce, opmd, opmd_early, rec
from jaxrl_llm.losses.surrogates.sequence import clipped_answer, geo_mean, gspo, prefix_ratio, sequence_ratio
from jaxrl_llm.losses.surrogates.tapers import effective_positives, tapered, topr, topr_token, vespo
from jaxrl_llm.losses.surrogates.unified_pieces import unified

__all__ = [
    "Surrogate",
    "asymmetric_reinforce",
    "cispo",
    "clipped",
    "clipped_answer",
    "dppo",
    "effective_positives",
    "geo_mean",
    "gspo",
    "log_ratio_clamped",
    "opmd",
    "opmd_early",
    "prefix_ratio",
    "probability",
    "proximal",
    "rec",
    "reinforce",
    "sapo",
    "sequence_ratio",
    "shaped_probability",
    "tapered",
    "token_ratio",
    "topr",
    "topr_token",
    "unified",
    "vespo",
]
