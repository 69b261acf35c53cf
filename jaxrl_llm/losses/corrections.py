"""Corrections: detached coefficients on the surrogate that are computed from the whole batch before it is cut.

A correction is a function of `Tokens` [P G T] of *all* prompts, so it may compare answers and still be the same number
on any mesh and for any accumulation. A `moving` one is computed anew with the current policy before every update, at
the price of one more forward pass; the others see the policy that sampled (`logp` is `policy_logp` and `entropy` 0) and
are computed once a rollout.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Array, Float

from jaxrl_llm.losses.tokens import Tokens


class Correction(NamedTuple):
    """weight(tokens) [P G T] multiplies the surrogate of each token; 0 leaves a token out."""

    weight: Callable[[Tokens], Float[Array, "P G T"]]
    moving: bool = False
