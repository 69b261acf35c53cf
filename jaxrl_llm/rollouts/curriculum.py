"""Which problems a step sees, ordered by how hard they are.

Each function here takes the pass rates [N] of a table of problems, measured beforehand, and gives a function with the
arguments of `random.epoch_rows`, which may stand in its place. An epoch is

    place  a uniform permutation of the problems, the one of `random.epoch_rows`
    tier   floor(tiers · r / N), r the number of problems that come strictly before in the order of difficulty
    order  by tier / tiers + width · place / N, then by place

and is cut into batches. So the order inside a tier is uniform, problems of equal difficulty are in one tier, and one
tier is `random.epoch_rows` itself. Each epoch holds every problem once; where batches do not divide N, the problems
left out are the last by *place*, hence random ones, and never always the last by difficulty.

Nothing is removed: leave problems out of the table that no answer ever solved, as SARI does.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxrl_llm.random import epoch_rows

Rows = Callable[[Key[Array, ""], Int[Array, ""] | int, int, int], Int[Array, " P"]]
STEPS = 2**20  # two distances from 1/2 that differ by less are one: 0.3 and 0.7 are not equally far off in float32


def easy_to_hard(rate: Float[Array, " N"], tiers: int | None = None, width: float | int = 0.0) -> Rows:
    """High pass rates first (SARI, arXiv 2504.15900; Observe-R1, arXiv 2505.12432).

    tiers  how finely the table is ordered, 1 ... N; None: as finely as the rates. Unverified, no paper states it.
    width  the noise in the order, as a share of the table: 0 is none, and towards infinity the order is uniform.
           Below 1 / tiers it moves no problem out of its tier. Unverified: Observe-R1's smoothing is known second-hand.
    """
    return _ordered(-rate, tiers, width)


def hard_to_easy(rate: Float[Array, " N"], tiers: int | None = None, width: float | int = 0.0) -> Rows:
    """Low pass rates first. `tiers` and `width`: see `easy_to_hard`; unverified."""
    return _ordered(rate, tiers, width)


def near_half(rate: Float[Array, " N"], tiers: int | None = None, width: float | int = 0.0) -> Rows:
    """Pass rates nearest to 1/2 first, where a 0/1 reward says most. `tiers` and `width`: see `easy_to_hard`."""
    return _ordered(jnp.round(jnp.abs(rate - 0.5) * STEPS), tiers, width)


def _ordered(key_of_order: Float[Array, " N"], tiers: int | None, width: float | int) -> Rows:
    """Problems by ascending key; see the head of this file."""
    count = key_of_order.shape[0]
    tiers = count if tiers is None else tiers
    if not 1 <= tiers <= count:
        raise ValueError(f"tiers must be from 1 to the number of problems ({count}), not {tiers}")
    if not width >= 0:
        raise ValueError(f"width must not be negative, not {width}")
    before = jnp.searchsorted(jnp.sort(key_of_order), key_of_order, side="left")
    # Looked up, as the product before · tiers would overflow for a long table.
    tier = jnp.asarray(np.arange(count) * tiers // count)[before].astype(jnp.float32) / tiers

    def rows_of(key: Key[Array, ""], step: Int[Array, ""] | int, batch: int, rows: int) -> Int[Array, " P"]:
        if rows != count:
            raise ValueError(f"the order is one of {count} problems, not of {rows}")
        if not 1 <= batch <= rows:
            raise ValueError(f"batch must be from 1 to the number of problems ({rows}), not {batch}")
        per_epoch = rows // batch
        place = jnp.arange(per_epoch * batch)
        row = epoch_rows(key, step // per_epoch, rows, rows)[: per_epoch * batch]
        order = jnp.argsort(tier[row] + width / rows * place, stable=True)
        return jax.lax.dynamic_slice(row[order], ((step % per_epoch) * batch,), (batch,))

    return rows_of
