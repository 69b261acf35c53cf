"""Ways to draw a group in which the answers depend on each other, written out as all groups and their probabilities.

A design maps (table, G) to `Groups`. It draws from the table's policy. Independent draws need no design.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm.variance.tables import OutcomeTable


class Groups(NamedTuple):
    """M groups of G outcomes.

    outcomes  [M G] rows of the table
    probs     [M]   they sum to 1
    weights   [M G] the design's own weight on the credit of an answer, in (1/G) Σ wᵢ Aᵢ sᵢ; 1 for draws from π
    """

    outcomes: Int[Array, "M G"]
    probs: Float[Array, " M"]
    weights: Float[Array, "M G"]


Design = Callable[[OutcomeTable, int], Groups]


def antithetic(table: OutcomeTable, group_size: int) -> Groups:
    """u and 1 - u through the inverse distribution function, outcomes in the order of the table, u uniform; G = 2.

    Each answer alone follows π, so a baseline that reads no answer of the group leaves the estimate unbiased;
    leave-one-out does not, because the other answer tells of this one.
    """
    if group_size != 2:
        raise ValueError(f"antithetic groups have 2 answers, not {group_size}")
    steps = _steps(table)
    return _along(table, jnp.concatenate([steps, 1 - steps]), lambda u: jnp.stack([u, 1 - u], axis=-1))


def systematic(table: OutcomeTable, group_size: int) -> Groups:
    """(i + u)/G, i < G, through the inverse distribution function, outcomes in the order of the table, u uniform.

    One draw sets the whole group (arithmetic sampling, Vilnis et al., 2022). What `antithetic` says of baselines holds.
    """
    breaks = jnp.mod(_steps(table) * group_size, 1)
    rank = jnp.arange(group_size)[None, :]
    return _along(table, breaks, lambda u: (rank + u[:, None]) / group_size)


def without_replacement(table: OutcomeTable, group_size: int) -> Groups:
    """Sets S of G different outcomes, drawn one after another from what is left of π (Kool et al., 2020).

    p(S) = Σ over orders of Π π(y)/(1 - what was drawn);  wᵢ = G · π(yᵢ) · p(S \\ yᵢ without yᵢ in the pool) / p(S).
    With these weights (1/G) Σ wᵢ rᵢ sᵢ is unbiased, also after a fixed baseline; at G = N it is exact.
    """
    probs = [float(p) for p in table.probs]
    if group_size > sum(p > 0 for p in probs):
        raise ValueError(f"{group_size} different outcomes cannot be drawn from a table of {sum(p > 0 for p in probs)}")
    sets = [s for s in itertools.combinations(range(len(probs)), group_size) if all(probs[i] > 0 for i in s)]
    mass = [set_probability(probs, s) for s in sets]
    weight = [
        [group_size * probs[i] * set_probability(probs, [j for j in s if j != i], [i]) / total for i in s]
        for s, total in zip(sets, mass, strict=True)
    ]
    return Groups(jnp.asarray(sets, int), jnp.asarray(mass, jnp.float64), jnp.asarray(weight, jnp.float64))


def set_probability(probs, chosen, removed=()) -> float:
    """Probability that drawing without replacement, `removed` taken out first, gives the set `chosen`, in any order."""
    total = 0.0
    for order in itertools.permutations(chosen):
        left, product = sum(p for i, p in enumerate(probs) if i not in removed), 1.0
        for i in order:
            product, left = product * probs[i] / left, left - probs[i]
        total += product
    return total


def _steps(table):
    """[N-1], where the distribution function jumps between outcomes."""
    return jnp.cumsum(table.probs)[:-1]


def _along(table, breaks, points):
    """Between two breaks of u all points keep their outcomes: one group a piece, its length the probability."""
    ends = jnp.sort(jnp.concatenate([jnp.zeros(1), jnp.clip(breaks, 0, 1), jnp.ones(1)]))
    middle = (ends[1:] + ends[:-1]) / 2
    outcomes = jnp.searchsorted(_steps(table), points(middle), side="right")
    return Groups(outcomes, jnp.diff(ends), jnp.ones(outcomes.shape))
