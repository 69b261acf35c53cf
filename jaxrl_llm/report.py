"""One HTML page, without links or scripts, that shows one run or compares several; and the one plot for a README.

A run folder holds, besides the log of `jaxrl_llm.metrics`, `config.json` (the resolved configuration, possibly nested)
and `summary.json`: {"before": {metric: number}, "after": {...}, "constant_accuracy": number or null,
"constant_answer": str or null, "problems": int or null,
"parameters": {"all": int, "trained": int}}. Each file, and each key of the summary, may be missing.
"""

import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxrl_llm.display import before_after_rows, constant_verdict
from jaxrl_llm.glossary import meaning
from jaxrl_llm.metrics import wilson_interval
from jaxrl_llm.report_plots import (
    MOST_POINTS,
    STYLE,
    Run,
    caption,
    draw,
    finite_mean,
    headline_panels,
    panels,
    plot,
    read_runs,
)
from jaxrl_llm.writing import writing

MOST_PROMPTS, MOST_ANSWERS = 3, 3
MOST_CHARACTERS = 1500


def write_report(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> pathlib.Path:
    """Write the page that shows or compares the runs of these folders; returns its path.

    Raises RunError where no folder is named, one is no run folder, or a file in it is damaged.
    """
    import jinja2

    runs = read_runs(folders)
    main, rest = panels(runs)
    # Prompts and answers are text of a model and of a data set: nothing in them may become markup.
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(pathlib.Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8"))
    page = template.render(
        runs=runs,
        views=[
            {"run": run, "overview": overview(run), "verdict": verdict(run), "samples": chosen_samples(run)}
            for run in runs
        ],
        config=config_rows(runs),
        comparison=comparison_rows(runs),
        sections=[[(panel, draw(panel, runs), caption(panel)) for panel in part] for part in (main, rest)],
        glossary=[(name, meaning(name)) for name in sorted({name for run in runs for name in run.metrics})],
        most_points=MOST_POINTS,
    )
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        path.write_bytes(page.encode("utf-8", errors="replace"))  # a sample may hold half a surrogate pair
    return path


def curve_png(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> pathlib.Path:
    """Draw reward and held-out accuracy over the steps as one PNG; returns its path. Raises as `write_report`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    runs = read_runs(folders)
    path = pathlib.Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        for axes, panel in zip(figure.subplots(1, 2), headline_panels(), strict=True):
            plot(axes, panel, runs)
            axes.set_title(panel.title, loc="left", fontweight="bold")
        handles = [Line2D([], [], color=run.colour) for run in runs]
        if len(runs) > 1:
            legend = figure.legend(
                handles, [run.name for run in runs], loc="outside lower center", ncols=4, frameon=False
            )
            for text in legend.get_texts():
                text.set_parse_math(False)  # a folder may be named with dollars
        figure.savefig(path, format="png", dpi=160, metadata={"Software": None})
    return path


def overview(run: Run) -> dict[str, str]:
    """The run in one row of figures."""
    steps, rewards = run.metrics.get("reward/mean", ([], []))
    accuracy = run.curve("eval/accuracy")[1]
    seconds = sum(run.metrics.get("perf/step_seconds", ([], []))[1])
    tokens = run.metrics.get("num_tokens", ([], [0]))[1][-1]
    low, high = wilson_interval(accuracy[-1], run.problems) if accuracy and run.problems else (0, 0)
    return {
        "steps": f"{max((curve[0][-1] for curve in run.metrics.values()), default=0):,}",
        "answer tokens": f"{tokens:,.0f}",
        "parameters trained": _trained_of(run.summary.get("parameters", {})),
        "time of the steps": f"{seconds / 60:.1f} min" if seconds else "",
        "reward, last tenth": f"{finite_mean(rewards[-max(1, len(steps) // 10) :]):.3f}" if rewards else "",
        "held-out accuracy": (f"{accuracy[-1]:.1%}" + (f" ({low:.1%} to {high:.1%})" if run.problems else ""))
        if accuracy
        else "",
    }


def _trained_of(parameters: Mapping[str, int]) -> str:
    if not parameters:
        return ""
    trained, every = parameters["trained"], parameters["all"]
    return f"{trained:,}" if trained == every else f"{trained:,} of adapters on {every:,}"


def config_rows(runs: Sequence[Run]) -> list[tuple[str, list[str], bool]]:
    """Rows (key, value of each run, do the runs differ), nested keys joined by dots; the differing ones come first."""
    flat = [dict(_flat(run.config)) for run in runs]
    keys = list(dict.fromkeys(key for config in flat for key in config))
    rows = [(key, [config.get(key, "") for config in flat]) for key in keys]
    return sorted(((key, values, len(set(values)) > 1) for key, values in rows), key=lambda row: not row[2])


def comparison_rows(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Rows (what, (before, after, change) of each run) of the held-out evaluation; [] where no run has one."""
    tables = []
    for run in runs:
        rows = before_after_rows(run.summary.get("before", {}), run.summary.get("after", {}), run.problems)
        tables.append({what: rest for what, *rest in rows})
    names = dict.fromkeys(what for table in tables for what in table)
    return [(what, [tuple(table.get(what, ("", "", ""))) for table in tables]) for what in names]


def verdict(run: Run) -> str:
    """Whether the run is above the best constant answer; "" where that is not known."""
    constant = run.summary.get("constant_accuracy")
    accuracy = run.summary.get("after", {}).get("eval/accuracy")
    return (
        ""
        if constant is None
        else constant_verdict(accuracy, constant, run.problems, run.summary.get("constant_answer"))
    )


def chosen_samples(run: Run) -> list[tuple[int, list[dict[str, Any]]]]:
    """(step, first answers to its first prompts) of the first, middle and last step that has samples."""
    by_step: dict[int, dict[str, list[dict[str, Any]]]] = {}
    for sample in run.samples:
        by_step.setdefault(sample["step"], {}).setdefault(sample["prompt"], []).append(sample)
    steps = list(by_step)
    chosen = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
    return [
        (step, [_legible(s) for group in list(by_step[step].values())[:MOST_PROMPTS] for s in group[:MOST_ANSWERS]])
        for step in chosen
    ]


def _legible(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The sample with long texts cut, and invisible characters, such as those that turn the line round, spelled out."""

    def show(text: str) -> str:
        seen = "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text[:MOST_CHARACTERS])
        extra = len(text) - MOST_CHARACTERS
        return f"{seen} [... {extra} more characters]" if extra > 0 else seen

    return {**sample, "prompt": show(sample["prompt"]), "answer": show(sample["answer"])}


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
