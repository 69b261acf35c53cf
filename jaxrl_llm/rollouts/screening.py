"""What the policy before RL makes of the training problems: which of them a run keeps, and in which order it sees them.

The pass rates are measured once, so a problem that is left out never comes back, however good the policy gets.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.random import epoch_rows
from jaxrl_llm.rollouts.curriculum import Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Screening:
    """`attempts` answers of the policy before RL to each training problem, sampled as in training.

    keep   which of them are right [N S] -> the problems that stay [N]; None: all
    order  pass rates of the problems that stay [M] -> what gives the rows of a step; None: uniform, `random.epoch_rows`
    """

    attempts: int
    keep: Callable[[Bool[np.ndarray, "N S"]], Bool[np.ndarray, " N"]] | None = None
    order: Callable[[Float[Array, " M"]], Rows] | None = None

    def __post_init__(self):
        if self.attempts < 1:
            raise ValueError(f"attempts must be 1 or more, not {self.attempts}")


class Agenda(NamedTuple):
    """The problems of a run, as rows of the split [M], and what gives the places among them of a step."""

    rows: Int[Array, " M"]
    places: Rows


def everything(problems: int) -> Agenda:
    """All problems in uniform order."""
    return Agenda(jnp.arange(problems, dtype=jnp.int32), epoch_rows)


def screened(screening: Screening, correct: Bool[np.ndarray, "N S"]) -> Agenda:
    """The problems that stay and their order. Raises ValueError where none stays."""
    stay = np.ones(len(correct), bool) if screening.keep is None else np.asarray(screening.keep(correct))
    rows = np.flatnonzero(stay)
    if not len(rows):
        raise ValueError(
            f"the filter leaves none of {len(correct)} problems: of {screening.attempts} attempts at each, "
            f"{correct.mean():.1%} were right"
        )
    rate = jnp.asarray(correct[rows].mean(axis=1), jnp.float32)
    return Agenda(jnp.asarray(rows, jnp.int32), screening.order(rate) if screening.order else epoch_rows)
