"""Bars of bias, variance and rescaled error."""

import dataclasses

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxrl_llm.variance.exact import GradientMoments
from jaxrl_llm.variance.plots import plot_moments

FIGURES = {"bias_norm": 0.1, "mse": 0.51, "cos": 1.0, "scale": 1.0, "snr": 1.0, "mse_rescaled": 0.7, "useful_snr": 1.0}
ONE = GradientMoments(trace_var=0.5, **FIGURES)


def bars(moments):
    with mpl.rc_context():
        axis = Figure().subplots()
        groups = plot_moments(axis, moments)
    return axis, [[bar.get_width() for bar in group] for group in groups]


def test_bars_show_squared_bias_variance_and_rescaled_error():
    exact = dataclasses.replace(ONE, bias_norm=1e-9, mse_rescaled=float("inf"))
    axis, widths = bars({"a": ONE, "b": exact})
    np.testing.assert_allclose(widths, [[0.01, np.nan], [0.5, 0.5], [0.7, np.nan]], rtol=1e-12)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert axis.get_xscale() == "log"


def test_intervals_of_measured_figures_are_drawn():
    measured = dataclasses.replace(ONE, intervals={"trace_var": (0.4, 0.8)})
    with mpl.rc_context():
        groups = plot_moments(Figure().subplots(), {"a": measured})
    assert groups[0].errorbar is None
    (segment,) = groups[1].errorbar.lines[2][0].get_segments()
    np.testing.assert_allclose(segment[:, 0], [0.4, 0.8])


def test_no_estimators_are_refused():
    with pytest.raises(ValueError, match="at least one estimator"):
        bars({})
