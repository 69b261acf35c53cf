"""What a comparison of estimators found: table, markdown, CSV and plot. A spread never stands without the bias."""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from jaxrl_llm.spec import nearest
from jaxrl_llm.variance.exact import GradientMoments

if TYPE_CHECKING:
    from rich.table import Table

Interval = tuple[float, float, float]  # estimate, lower, upper

COLUMNS = ("unbiased", "bias", "cos", "scale", "trace_var", "ratio", "mse_rescaled", "mse_ratio", "useful_snr", "floor")
NARROW = ("unbiased", "bias", "cos", "scale", "ratio", "mse_ratio")  # for a terminal of less than WIDE columns
WIDE = 180
TITLES = {
    "unbiased": "unbiased?",
    "bias": "|bias|",
    "trace_var": "trace var",
    "ratio": "trace var, ratio",
    "mse_rescaled": "mse after rescaling",
    "mse_ratio": "mse after rescaling, ratio",
    "useful_snr": "useful SNR",
}
SPREAD = {"trace_var", "ratio"}  # smaller for whatever is shrunken
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")  # Okabe and Ito, 2008


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Figures of estimators, by name, on one frozen batch of `units` x `prompts` prompts, `groups` groups of
    `group_size` answers each.

    moments     the figures, with intervals: of one unit's estimate, prompts and answers drawn anew
    ratios      "trace_var" and "mse_rescaled" over those of `baseline`, on the same replicates
    parts       within (answers drawn anew for the same prompts; NaN with one group a prompt) and across (prompts drawn
                anew), which add up to trace_var; bias_square = |Eĝ - g|², mean_square = |Eĝ|², along = <Eĝ, g> and
                signal = |g|²; all unbiased, so they may be negative
    claims      the trait `unbiased` of the credit: "yes", "scaled" or "no"; "(credit)": an objective weighs it, and of
                that nothing is claimed
    coarse      share of Σc² that is lost because segments hold several tokens; 0: exact
    floor       |difference|² of one estimate between two orders of summation; empty where not measured
    precision   the same between float32 and bfloat16
    pool        answers of a prompt that are taken for its policy, of which `units` batches of all prompts are drawn; 0:
                prompts and answers are a sample, cut in units
    """

    moments: Mapping[str, GradientMoments]
    ratios: Mapping[str, Mapping[str, Interval]]
    parts: Mapping[str, Mapping[str, Interval]]
    claims: Mapping[str, str]
    coarse: Mapping[str, float]
    floor: Mapping[str, float]
    precision: Mapping[str, float]
    baseline: str
    units: int
    groups: int
    prompts: int
    group_size: int
    level: float
    backend: str
    rewards: str
    pool: int = 0

    def header(self) -> str:
        """What the figures are of, in one line."""
        if self.pool:
            return (
                f"P={self.prompts} prompts, the {self.pool} answers of each taken for its policy; G={self.group_size} "
                f"drawn from them, spread over answers alone; rewards {self.rewards}; {self.level:.0%} intervals over "
                f"{self.units} redraws; scores: {self.backend}; baseline: {self.baseline}"
            )
        return (
            f"P={self.units * self.prompts} prompts, units of B={self.prompts} with G={self.group_size}, "
            f"{self.groups} groups each; rewards {self.rewards}; {self.level:.0%} intervals by bootstrap over units; "
            f"scores: {self.backend}; baseline: {self.baseline}"
        )

    def notes(self) -> list[str]:
        """What has to be known to read the figures."""
        notes = ["— : below resolution, with the bound where there is one"]
        for name, share in self.coarse.items():
            if share > 1e-6:
                notes.append(f"{name}: coefficients vary inside segments, {share:.1%} of their squares are left out")
        for name, floor in self.floor.items():
            if floor > 0.01 * self.moments[name].trace_var:
                notes.append(f"{name}: the spread is within 100 times the numeric floor")
        moved = [gap / self.moments[name].trace_var for name, gap in self.precision.items()]
        if moved:
            notes.append(f"bfloat16 moves one estimate by at most {max(moved):.2g} of its spread, squared")
        return notes

    def figure(self, name: str, column: str) -> Interval:
        """Estimate and interval of an estimator in a column; NaN for what is below resolution."""
        if column in ("ratio", "mse_ratio"):
            return self.ratios[name]["trace_var" if column == "ratio" else "mse_rescaled"]
        if column == "floor":
            return (self.floor.get(name, math.nan), math.nan, math.nan)
        field = {"bias": "bias_norm"}.get(column, column)
        moments = self.moments[name]
        return (getattr(moments, field), *moments.intervals[field])

    def table(self, columns: Sequence[str] = COLUMNS) -> "Table":
        """For a terminal; `NARROW` are the columns that most of them have room for."""
        from rich.table import Table

        table = Table(title=self.header(), caption="\n".join(self.notes()), title_justify="left")
        table.add_column("scheme")
        for column in checked(columns):
            table.add_column(TITLES.get(column, column), justify="right")
        stacked = lambda cell: cell.replace(" [", "\n[").replace(" (", "\n(")  # noqa: E731
        for name in self.moments:
            table.add_row(name, *(stacked(self._cell(name, column)) for column in columns))
        return table

    def markdown(self, columns: Sequence[str] = COLUMNS) -> str:
        """The table with its header line and notes."""
        titles = ["scheme", *(TITLES.get(column, column) for column in checked(columns))]
        rows = [[name, *(self._cell(name, column) for column in columns)] for name in self.moments]
        lines = [titles, ["---", *["---:"] * len(columns)], *rows]
        body = "\n".join("| " + " | ".join(x.replace("|", "\\|") for x in line) + " |" for line in lines)
        return "\n\n".join([self.header(), body, "\n".join(f"- {note}" for note in self.notes())]) + "\n"

    def csv(self) -> str:
        """All figures in full, each with its lower and upper bound; the header line is a comment."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        out.write(f"# {self.header()}\n")
        measured = [column for column in (*COLUMNS, "mse", "snr") if column not in ("unbiased", "floor")]
        bounds = [f"{column}{end}" for column in measured for end in ("", "_lower", "_upper")]
        parts = list(next(iter(self.parts.values())))
        ends = [f"{part}{end}" for part in parts for end in ("", "_lower", "_upper")]
        writer.writerow(["scheme", "unbiased", *bounds, *ends, "coarse", "floor", "precision"])
        for name in self.moments:
            figures = [x for column in measured for x in self.figure(name, column)]
            rest = [x for part in parts for x in self.parts[name][part]]
            rest += [self.coarse[name], self.floor.get(name, math.nan), self.precision.get(name, math.nan)]
            writer.writerow([name, self.claims[name], *map(repr, [*figures, *rest])])
        return out.getvalue()

    def plot(self, path: str | pathlib.Path) -> None:
        """Bias, rescaled error and spread of each estimator with intervals, side by side, written to `path`."""
        from matplotlib.figure import Figure

        panels = {"cos": "cos(Eĝ, g)", "scale": "scale of Eĝ", "ratio": "trace var / baseline's"}
        panels |= {"mse_ratio": "mse of ĝ/scale / baseline's"}
        names = list(self.moments)
        figure = Figure(figsize=(3 * len(panels), 1.4 + 0.32 * len(names)), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True)
        for axis, (column, label) in zip(axes, panels.items(), strict=True):
            for at, name in enumerate(names):
                value, low, high = self.figure(name, column)
                colour = COLOURS[at % len(COLOURS)]
                if all(map(math.isfinite, (value, low, high))):
                    axis.plot([low, high], [at, at], color=colour, linewidth=2)
                    axis.plot([value], [at], "o", color=colour)
                else:
                    where = {"transform": axis.get_yaxis_transform(), "ha": "center", "va": "center"}
                    axis.text(0.5, at, "below resolution", **where)
            axis.axvline(1, color="0.6", linewidth=1, zorder=0)
            axis.set_xlabel(label)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].set_ylim(len(names) - 0.5, -0.5)
        figure.suptitle(self.header(), fontsize=7)
        figure.savefig(path)

    def _cell(self, name: str, column: str) -> str:
        if column == "unbiased":
            return self.claims[name]
        value, low, high = self.figure(name, column)
        if column == "floor":
            return "" if math.isnan(value) else f"{value:.1e}"
        if math.isnan(value):
            return f"— (< {high:.3g})" if math.isfinite(high) and column != "cos" else "—"
        return f"{value:.3g} [{low:.3g}, {high:.3g}]"


def checked(columns: Sequence[str]) -> Sequence[str]:
    """The columns. ValueError for one that does not exist, and for a spread without what shows the bias."""
    for column in columns:
        if column not in COLUMNS:
            raise ValueError(f"columns: there is no {column!r}{nearest(column, list(COLUMNS))}")
    missing = [column for column in ("bias", "cos", "scale") if column not in columns]
    if SPREAD & set(columns) and missing:
        raise ValueError(
            f"columns: {sorted(SPREAD & set(columns))[0]!r} without {missing[0]!r} would mislead, because a shrunken "
            f"estimate has less spread: add {', '.join(missing)}"
        )
    return columns
