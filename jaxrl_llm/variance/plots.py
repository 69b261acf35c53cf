"""Plots of what schemes maximise. They draw on axes that are given, and compute nothing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.report_plots import DASHES, PALETTE
from jaxrl_llm.variance.bernstein import Curves

Axes = Any  # matplotlib.axes.Axes
LABELS = {"slope": "weight F'(p) on the gradient of the pass rate", "objective": "objective F(p), with F(0) = 0"}


def plot_f_prime(
    ax: Axes, curves: Curves, limits: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None
) -> Sequence[Any]:
    """F'(p) over the pass rate, a line a scheme, and its limit as G grows where given: thin, in the same colour.

    Colours stay apart for the colour-blind; past the seventh scheme the dashes change too. Returns the lines. A name in
    `limits` that is no curve raises ValueError.
    """
    return _plot(ax, curves, "slope", limits or {})


def plot_objective(ax: Axes, curves: Curves) -> Sequence[Any]:
    """F(p) over the pass rate, a line a scheme."""
    return _plot(ax, curves, "objective", {})


def _plot(ax, curves, kind, limits):
    drawn = getattr(curves, kind)
    for name in limits:
        if name not in drawn:
            raise ValueError(f"limits: {name!r} is none of the curves {', '.join(drawn)}")
    p, lines = np.asarray(curves.p), []
    for i, (name, values) in enumerate(drawn.items()):
        style = {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i // len(PALETTE) % len(DASHES)]}
        lines += ax.plot(p, np.asarray(values), label=name, **style)
        if name in limits:
            ax.plot(p, limits[name](p), color=style["color"], linestyle=":", linewidth=0.8)
    ax.set_xlabel("pass rate p")
    ax.set_ylabel(LABELS[kind])
    ax.set_title(f"0/1 rewards, groups of {curves.group_size}")
    ax.legend(frameon=False)
    return lines
