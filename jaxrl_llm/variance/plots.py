"""Plots of what schemes maximise, and of bias beside variance, on axes that are given."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_llm.report_plots import DASHES, PALETTE
from jaxrl_llm.variance.bernstein import Curves
from jaxrl_llm.variance.exact import GradientMoments

Axes = Any  # matplotlib.axes.Axes
LABELS = {"slope": "weight F'(p) on the gradient of the pass rate", "objective": "objective F(p), with F(0) = 0"}

BARS = {"bias²": "bias_norm", "variance": "trace_var", "MSE, rescaled": "mse_rescaled"}
ZERO = 1e-12


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


def plot_moments(ax: Axes, moments: Mapping[str, GradientMoments]) -> Sequence[Any]:
    """Three bars an estimator: squared bias, variance, and the mean square error after division by the scale.

    On a logarithmic axis, where what is 0 up to rounding (below 1e-12) has no bar; measured figures carry their
    intervals. Returns the three groups of bars. No estimators raise ValueError.
    """
    if not moments:
        raise ValueError("moments must hold at least one estimator")
    names, height, groups = list(moments), 0.26, []
    for number, (label, figure) in enumerate(BARS.items()):
        values, ends = zip(*[_figure_of(m, figure) for m in moments.values()], strict=True)
        places = np.arange(len(names)) + (number - 1) * height
        shown = np.where(np.asarray(values) > ZERO, values, np.nan)
        groups.append(ax.barh(places, shown, height, color=PALETTE[number], label=label, xerr=_ends(ends)))
    ax.set_xscale("log")
    ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.grid(visible=True, axis="x")
    ax.set_xlabel("squared norm of the gradient error")
    ax.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.04), ncols=3, columnspacing=1)
    return groups


def _figure_of(moments, figure):
    """Its value, and how far the interval reaches to both sides: bias enters as its square."""
    value, interval = getattr(moments, figure), moments.intervals.get(figure)
    power = 2 if figure == "bias_norm" else 1
    if not np.isfinite(value) or interval is None:
        return (value**power if np.isfinite(value) else np.nan), (0.0, 0.0)
    low, high = (max(x, 0.0) ** power for x in interval)
    return value**power, (max(value**power - low, 0.0), max(high - value**power, 0.0))


def _ends(ends):
    return np.transpose(ends) if np.any(ends) else None


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
