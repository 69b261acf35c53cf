"""What is shown of a sweep: tables for a terminal, Markdown and CSV, and a plot."""

import csv
import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from experiments.intervals import Estimate, improvement, interquartile_mean, interval, paired_difference
from jaxrl_llm.metrics import meaning
from jaxrl_llm.report_plots import PALETTE, STYLE
from jaxrl_llm.spec import nearest

HEADINGS = ("arm", "seeds", "IQM", "difference", "P(better)", "failed")
MARKERS = "osD^vPX*"


@dataclasses.dataclass(frozen=True)
class Findings:
    """Records of a sweep. `score` is the held-out figure that arms are judged by; the first arm is the reference."""

    records: list[dict[str, Any]]
    score: str = "eval/accuracy"

    @property
    def arms(self) -> list[str]:
        """In the order of the sweep."""
        return list(dict.fromkeys(record["arm"] for record in self.records))

    def of(self, arm: str) -> list[dict[str, Any]]:
        """The records of an arm, by seed. Raises KeyError, which names the nearest arm."""
        found = sorted((r for r in self.records if r["arm"] == arm), key=lambda record: record["seed"])
        if not found:
            raise KeyError(f"there is no arm {arm!r}{nearest(arm, self.arms)}")
        return found

    def scores(self, arm: str, figure: str = "") -> np.ndarray:
        """A held-out figure after RL (default: the score), by seed [runs]."""
        return np.asarray([record["figures"][figure or self.score] for record in self.of(arm)])

    def curve(self, arm: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps [S] and values by seed [runs, S] of a curve; a value that was not finite is NaN."""
        curves = [record["curves"][name] for record in self.of(arm)]
        return np.asarray(curves[0][0]), np.asarray([values for _, values in curves], np.float64)

    def figure(self, arm: str, figure: str = "") -> Estimate:
        """Interquartile mean over the seeds."""
        return interval(self.scores(arm, figure))

    def difference(self, arm: str, other: str, figure: str = "") -> Estimate:
        """Mean of arm - other over the seeds, which they share."""
        return paired_difference(self.scores(arm, figure), self.scores(other, figure))

    def improvement(self, arm: str, other: str, figure: str = "") -> Estimate:
        """Probability that a run of the arm is better than one of the other."""
        return improvement(self.scores(arm, figure), self.scores(other, figure))

    def rows(self) -> list[tuple[str, ...]]:
        """A row an arm, as text; differences and P are against the first arm."""
        first, rows = self.arms[0], []
        for arm in self.arms:
            runs = self.of(arm)
            against = ("", "")
            if arm != first:
                against = (str(self.difference(arm, first)), str(self.improvement(arm, first)))
            failed = str(sum(bool(record["failed"]) for record in runs) or "")
            rows.append((arm, str(len(runs)), str(self.figure(arm)), *against, failed))
        return rows

    @property
    def caption(self) -> str:
        """What the columns are."""
        alone = self.figure(self.arms[0]).reason
        tail = f" {alone[0].upper()}{alone[1:]}." if alone else ""
        first = self.arms[0]
        return (
            f"{self.score}: {meaning(self.score)}. IQM: interquartile mean over seeds. difference: mean difference to "
            f"{first} of runs with the same seed. P(better): probability that a run beats one of {first}, ties counted "
            f"half. In brackets: 95% stratified bootstrap percentile intervals over seeds.{tail}"
        )

    def table(self) -> Table:
        """For a terminal."""
        table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=self.caption, caption_justify="left")
        for number, heading in enumerate(HEADINGS):
            table.add_column(heading, justify="right" if number else "left", overflow="fold", no_wrap=bool(number))
        for row in self.rows():
            table.add_row(*(text.replace("[", "\\[") for text in row))
        return table

    def markdown(self) -> str:
        """The same with its caption, for a file."""
        lines = [HEADINGS, (":---", *("---:" for _ in HEADINGS[1:])), *self.rows()]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{self.caption}\n"

    def write(self, out: pathlib.Path, draw: "Callable[[Findings, pathlib.Path], None] | None" = None) -> None:
        """table.md, table.csv (a line a run, all held-out figures) and plot.png, by `draw` or `plot`."""
        (out / "table.md").write_text(self.markdown(), encoding="utf-8")
        names = list(self.records[0]["figures"])
        with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["arm", "seed", "failed", *(f"before {name}" for name in names), *names])
            for r in self.records:
                values = [r["before"][name] for name in names] + [r["figures"][name] for name in names]
                writer.writerow([r["arm"], r["seed"], r["failed"], *values])
        (draw or Findings.plot)(self, out / "plot.png")

    def plot(self, path: pathlib.Path) -> None:
        """Learning curves with pointwise intervals, and final scores: every run, and their interval."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(10, 0.3 * max(len(self.arms), 9) + 1.4), layout="constrained")
            curves, finals = figure.subplots(1, 2, width_ratios=(3, 2))
            for number, arm in enumerate(self.arms):
                colour, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
                self._draw_curve(curves, arm, colour, marker)
                self._draw_finals(finals, arm, number, colour, marker)
            seeds = len(self.of(self.arms[0]))
            curves.set(xlabel="policy-gradient step", ylabel=self.score)
            curves.set_title(f"interquartile mean of {seeds} seeds, pointwise 95% bootstrap interval", fontsize=9)
            finals.set(xlabel=f"{self.score} after the last step", yticks=range(len(self.arms)), yticklabels=self.arms)
            finals.set_title("each seed; interquartile mean\nand 95% bootstrap interval", fontsize=9)
            finals.grid(axis="x")
            finals.invert_yaxis()
            curves.legend(fontsize=8, frameon=False)
            figure.savefig(path, dpi=150, metadata={"Software": None})

    def _draw_curve(self, axes: Any, arm: str, colour: str, marker: str) -> None:
        steps, values = self.curve(arm, self.score)
        axes.plot(
            steps, interquartile_mean(values.T), color=colour, marker=marker, markevery=0.15, markersize=4, label=arm
        )
        if len(values) > 1:
            ends = [interval(column) for column in values.T]
            axes.fill_between(
                steps, [e.low for e in ends], [e.high for e in ends], color=colour, alpha=0.15, linewidth=0
            )

    def _draw_finals(self, axes: Any, arm: str, row: int, colour: str, marker: str) -> None:
        estimate, scores = self.figure(arm), self.scores(arm)
        axes.plot(scores, np.full(len(scores), row + 0.22), "|", color=colour, alpha=0.6, markersize=6)
        axes.plot(estimate.point, row, marker, color=colour, markersize=6)
        if not estimate.reason:
            axes.plot([estimate.low, estimate.high], [row, row], color=colour, linewidth=2.5)
