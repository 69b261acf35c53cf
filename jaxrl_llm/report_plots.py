"""The plots of a report: which there are, what of a run they show, and how they are drawn."""

import dataclasses
import json
import math
import os
import pathlib
from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO
from typing import Any, NamedTuple

from jaxrl_llm.glossary import meaning
from jaxrl_llm.metrics import Curve, RunError, read_metrics, read_samples, run_folder, wilson_interval

# Okabe and Ito's palette, which stays apart for the colour-blind, without its yellow, which is lost on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":", "-.")
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.edgecolor": "#999999",
    "axes.labelcolor": "#444444",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "lines.linewidth": 1.8,
    "svg.hashsalt": "jaxrl_llm",
}
BAND = {"alpha": 0.13, "linewidth": 0}
MOST_POINTS = 400  # of a curve; a longer one is thinned
MOST_PALE = 4  # curves in a plot; with more, what the running means smooth would hide them


class Panel(NamedTuple):
    """One plot: curves of one unit, each a name of the glossary, the first solid, the next dashed."""

    title: str
    unit: str
    names: tuple[str, ...]
    percent: bool = False
    log: bool = False  # logarithmic where the values span more than a factor of 50
    smooth: bool = True
    spread: tuple[str, ...] = ()  # (lowest, highest), drawn as a band where there is one run


PANELS = (
    Panel("Entropy", "nats per token", ("entropy",)),
    Panel("KL to the reference", "nats per token", ("kl",)),
    Panel(
        "Answer length",
        "tokens",
        ("completions/mean_length",),
        spread=("completions/min_length", "completions/max_length"),
    ),
    Panel("Answers cut at the length limit", "% of answers", ("completions/clipped_ratio",), percent=True),
    Panel("Groups without signal", "% of prompts", ("frac_reward_zero_std",), percent=True),
    Panel("Gradient norm", "norm before clipping", ("grad_norm",), log=True),
    Panel("Clipped probability ratios", "% of tokens", ("clip_ratio/low", "clip_ratio/high"), percent=True),
    Panel(
        "Learner against sampler", "nats", ("sampling/logp_difference_mean", "sampling/logp_difference_max"), log=True
    ),
    Panel("Loss", "loss", ("loss",)),
    Panel("Learning rate", "learning rate", ("learning_rate",), smooth=False),
    Panel("Throughput", "answer tokens per second", ("perf/tokens_per_second",)),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What the folder of a run holds. `summary` is {} while the run is not finished."""

    name: str
    colour: str
    config: dict[str, Any]
    metrics: dict[str, Curve]
    samples: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def problems(self) -> int | None:
        """Held-out problems, where the run tells."""
        return self.summary.get("problems")

    def curve(self, name: str) -> Curve:
        """A metric, with its value before training as step 0 where the summary has it."""
        steps, values = self.metrics.get(name, ([], []))
        first = self.summary.get("before", {}).get(name)
        return (steps, values) if first is None else ([0, *steps], [first, *values])


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs of the folders, named by as many last parts of their paths as tell them apart."""
    if not folders:
        raise RunError("no run folder was named")
    paths = [run_folder(folder) for folder in folders]
    full = [path.resolve().parts for path in paths]
    depth = next((n for n in range(1, max(map(len, full))) if len({parts[-n:] for parts in full}) == len(full)), 1)
    return [
        Run(
            name="/".join(parts[-depth:]),
            colour=PALETTE[number % len(PALETTE)],
            config=_json(path / "config.json"),
            metrics=read_metrics(path),
            samples=read_samples(path),
            summary=_json(path / "summary.json"),
        )
        for number, (path, parts) in enumerate(zip(paths, full, strict=True))
    ]


def headline_panels() -> tuple[Panel, Panel]:
    """The two plots that come first, and alone in the README."""
    reward = Panel("Reward", "mean reward", ("reward/mean",))
    return reward, Panel("Held-out accuracy", "% of problems, greedy answer", ("eval/accuracy",), percent=True)


def panels(runs: Sequence[Run]) -> tuple[list[Panel], list[Panel]]:
    """The plots that the runs have curves for: those of every report, and one for each metric left over."""
    names = sorted({name for run in runs for name in run.metrics})
    passes = sorted((name for name in names if name.startswith("eval/pass@")), key=lambda name: int(name[10:]))
    components = [
        Panel(f"Reward component: {name[17:]}", "mean", (name,))
        for name in names
        if name.startswith("reward/component/")
    ]
    ends = tuple(dict.fromkeys([*passes[:1], *passes[-1:]]))
    wanted = [*headline_panels(), Panel("pass@k, held-out", "% of problems", ends, percent=True), *components, *PANELS]
    main = [panel for panel in wanted if set(panel.names) & set(names)]
    shown = {name for panel in main for name in (*panel.names, *panel.spread)} | set(passes)
    return main, [Panel(name, name, (name,), smooth=False) for name in names if name not in shown]


def caption(panel: Panel) -> str:
    """What the plot shows, in the words of the glossary."""
    if len(panel.names) == 1:
        return meaning(panel.names[0])
    return "; ".join(f"{look}: {name}" for look, name in zip(("solid", "dashed"), panel.names, strict=True))


def draw(panel: Panel, runs: Sequence[Run]) -> str:
    """The plot as an image to stand in a page: a data URI of an SVG, the same bytes for the same runs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.4, 2.9), layout="constrained")
        plot(figure.subplots(), panel, runs)
        file = BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + b64encode(file.getvalue()).decode()


def plot(axes: Any, panel: Panel, runs: Sequence[Run]) -> None:
    """Draw the curves of a panel: colour tells the run, dashes the metric; pale is what a running mean smooths."""
    factor = 100 if panel.percent else 1
    seen: list[int | float] = []
    for number, run in enumerate(runs):
        for name, dash in zip(panel.names, DASHES, strict=False):
            steps, values = thinned(run.curve(name))
            values = [factor * value for value in values]
            seen += [value for value in values if math.isfinite(value)]
            smooth = running_mean(values) if panel.smooth else values
            line = DASHES[number // len(PALETTE) % len(DASHES)] if len(panel.names) == 1 else dash
            if smooth is not values and len(panel.names) * len(runs) <= MOST_PALE:
                axes.plot(steps, values, color=run.colour, alpha=0.25, linewidth=0.8)
            marker = "o" if len(steps) <= 30 else None
            axes.plot(steps, smooth, color=run.colour, linestyle=line, marker=marker, markersize=3.5)
    if len(runs) == 1:
        _spread(axes, panel, runs[0], factor)
    if panel.names == ("eval/accuracy",):
        _accuracy_marks(axes, runs)
    if panel.percent:
        axes.set_ylim(bottom=0, top=103 if max(seen, default=0) > 50 else None)
    elif panel.log and seen and min(seen) > 0 and max(seen) > 50 * min(seen):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel=panel.unit)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _spread(axes: Any, panel: Panel, run: Run, factor: int) -> None:
    """The band of the panel's spread, where it was logged at the same steps as the curve."""
    curves = [thinned(run.curve(name)) for name in panel.spread]
    middle = thinned(run.curve(panel.names[0]))
    if not curves or any(curve[0] != middle[0] for curve in curves):
        return
    low, high = (running_mean(values) for _, values in curves)
    axes.fill_between(middle[0], [factor * x for x in low], [factor * x for x in high], color=run.colour, **BAND)


def _accuracy_marks(axes: Any, runs: Sequence[Run]) -> None:
    """95% intervals of the held-out accuracy, and the level of the best constant answer."""
    for run in runs:
        steps, values = thinned(run.curve("eval/accuracy"))
        if run.problems and steps:
            bounds = [wilson_interval(value, run.problems) for value in values]
            low, high = ([100 * bound for bound in side] for side in zip(*bounds, strict=True))
            axes.fill_between(steps, low, high, color=run.colour, **BAND)
    levels = {run.summary.get("constant_accuracy"): run.colour for run in runs} | {None: ""}
    for level, colour in levels.items():
        if level is not None:
            shared = len(levels) == 2  # every run that knows one has this one
            axes.axhline(100 * level, color="#666666" if shared else colour, linestyle=(0, (4, 3)), linewidth=1.1)
    if len(levels) > 1:
        highest = 100 * max(level for level in levels if level is not None)
        style = {"ha": "right", "va": "bottom", "fontsize": 8.5, "color": "#666666"}
        axes.annotate("best constant answer", (1, highest), (0, 2), ("axes fraction", "data"), "offset points", **style)


def thinned(curve: Curve) -> Curve:
    """At most MOST_POINTS points, each the mean of equally many neighbours, at the step of the last of them."""
    steps, values = curve
    size = -(-len(steps) // MOST_POINTS)
    if size <= 1:
        return curve
    starts = range(0, len(steps), size)
    return [steps[min(i + size, len(steps)) - 1] for i in starts], [finite_mean(values[i : i + size]) for i in starts]


def running_mean(values: list[int | float]) -> list[int | float]:
    """Mean over a window of a fifteenth of the curve, cut at the ends; a curve of up to 40 points stays as it is."""
    half = len(values) // 30 if len(values) > 40 else 0
    return [finite_mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))] if half else values


def finite_mean(values: Sequence[int | float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} where there is no file. Raises RunError for anything else."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} is damaged: it holds no JSON object")
    return content
