"""Plots of F' and F show the curves that they are given, named, with labelled axes."""

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxrl_llm.advantages import group_mean, leave_one_out
from jaxrl_llm.variance.bernstein import Curves, curves
from jaxrl_llm.variance.plots import plot_f_prime, plot_objective

mpl.use("agg")
P = jnp.linspace(0, 1, 5)


@pytest.mark.parametrize(
    ("plot", "field", "word"), [(plot_f_prime, "slope", "F'"), (plot_objective, "objective", "F(p)")]
)
def test_each_scheme_has_its_line(plot, field, word):
    found, ax = curves({"RLOO": leave_one_out(), "mean": group_mean()}, 4, P), Figure().add_subplot()
    lines = plot(ax, found)
    assert [line.get_label() for line in lines] == ["RLOO", "mean"]
    for line, values in zip(lines, getattr(found, field).values(), strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([P, values], axis=1))
    assert "pass rate" in ax.get_xlabel()
    assert word in ax.get_ylabel()
    assert "4" in ax.get_title()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["RLOO", "mean"]


def test_lines_of_many_schemes_stay_apart():
    many = {str(i): P for i in range(20)}
    lines = plot_f_prime(Figure().add_subplot(), Curves(P, many, many, 4))
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_limits_are_drawn_in_the_colour_of_their_scheme():
    ax, found = Figure().add_subplot(), curves({"mean": group_mean()}, 4, P)
    (line,) = plot_f_prime(ax, found, {"mean": np.ones_like})
    _, limit = ax.get_lines()
    assert limit.get_color() == line.get_color()
    np.testing.assert_array_equal(limit.get_ydata(), np.ones(5))
    assert limit.get_label().startswith("_")
    with pytest.raises(ValueError, match="none of the curves mean"):
        plot_f_prime(ax, found, {"median": np.ones_like})
