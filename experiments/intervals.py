"""Figures of several runs, with bootstrap intervals. Scores are arrays [runs, tasks], or [runs] for one task.

The interquartile mean, the stratified bootstrap and the probability of improvement are those of Agarwal et al. (2021,
arXiv 2108.13264). An interval says what another draw of as many seeds might give; it knows nothing of other tasks.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

REPEATS = 2000  # resamples of a bootstrap; the ends of a 95% interval are then known to about 0.5 points of level


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its percentile interval. Both ends are NaN where there is none, and `reason` says why."""

    point: float
    low: float
    high: float
    runs: int  # of the smallest sample that it rests on
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.point:.3f}" + ("" if self.reason else f" [{self.low:.3f}, {self.high:.3f}]")


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of what is left of [..., M] when the floor(M/4) lowest and the floor(M/4) highest are cut off: [...].

    Fewer than four scores are all kept: the figure is then their mean.
    """
    return np.asarray(stats.trim_mean(scores, 0.25, axis=-1))


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return np.mean(scores, axis=-1)


def interval(
    scores: Sequence[float] | np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray] = interquartile_mean,
    *,
    level: float = 0.95,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Estimate:
    """A statistic of all scores, [..., runs · tasks] -> [...], with its stratified bootstrap percentile interval.

    Each task is a stratum: its runs are drawn anew, with replacement, independently of the other tasks. One run a task
    has no spread to draw from, so it has no interval. Raises ValueError for scores that are not finite or empty.
    """
    table = _table(scores)
    point = float(statistic(table.reshape(-1)))
    if len(table) < 2:
        return _alone(point)
    draw, columns = np.random.RandomState(seed), np.arange(table.shape[1])
    again = [table[draw.choice(len(table), table.shape), columns].reshape(-1) for _ in range(repeats)]
    return _percentile(point, statistic(np.stack(again)), level, len(table))


def improvement(
    better: Sequence[float] | np.ndarray,
    than: Sequence[float] | np.ndarray,
    *,
    level: float = 0.95,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Estimate:
    """Mean over tasks of P(X > Y) + P(X = Y)/2 for a random run X of `better` and Y of `than`, with its interval.

    The runs of both are drawn anew, independently of each other; their numbers may differ. Raises ValueError for
    different numbers of tasks, and as `interval`.
    """
    x, y = _table(better), _table(than)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"both samples must have the same tasks, not {x.shape[1]} and {y.shape[1]}")
    point = float(_above(x, y))
    if min(len(x), len(y)) < 2:
        return _alone(point)
    draw, columns = np.random.RandomState(seed), np.arange(x.shape[1])
    again = [
        _above(x[draw.choice(len(x), x.shape), columns], y[draw.choice(len(y), y.shape), columns])
        for _ in range(repeats)
    ]
    return _percentile(point, np.asarray(again), level, min(len(x), len(y)))


def paired_difference(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    *,
    level: float = 0.95,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Estimate:
    """Mean of first - second over runs that share a seed, in the same order [runs], with a bootstrap interval by seed.

    What a seed does to both cancels, so the interval is narrower than that of two separate samples. Raises ValueError
    where the samples are of different shape.
    """
    x, y = _table(first), _table(second)
    if x.shape != y.shape:
        raise ValueError(f"paired samples must have the same runs and tasks, not {x.shape} and {y.shape}")
    return interval(np.mean(x - y, axis=1), mean, level=level, repeats=repeats, seed=seed)


def _above(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.mean((x[:, None] > y[None]) + 0.5 * (x[:, None] == y[None]))


def _table(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    table = np.asarray(scores, np.float64)
    table = table[:, None] if table.ndim == 1 else table
    if table.ndim != 2 or not table.size:
        raise ValueError(f"scores must be [runs, tasks] with at least one run and task, not of shape {table.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"scores must be finite: those of run {np.flatnonzero(~np.isfinite(table).all(1))[0]} are not")
    return table


def _alone(point: float) -> Estimate:
    reason = "one run: an interval needs two seeds or more"
    return Estimate(point=point, low=math.nan, high=math.nan, runs=1, reason=reason)


def _percentile(point: float, again: np.ndarray, level: float, runs: int) -> Estimate:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    low, high = np.percentile(again, [50 * (1 - level), 50 * (1 + level)])
    return Estimate(point=point, low=float(low), high=float(high), runs=runs)
