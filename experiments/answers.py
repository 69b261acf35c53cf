"""How an experiment is called, and how its answer is written: a folder with answer.md, table.csv and plot.png."""

import argparse
import csv
import importlib.metadata
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.decisions import WORDS, Part, decide, listed, shown
from jaxrl_llm.report_plots import STYLE

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("jax", "flax", "optax", "numpy")


def publish(  # noqa: PLR0913 - the parts of an answer, all by name
    name: str,
    *,
    question: str,
    claim: str,
    verdict: str,
    reason: str,
    command: str,
    rows: list[dict[str, Any]],
    figure: Figure,
    out: pathlib.Path | None = None,
) -> pathlib.Path:
    """Write the answer to `out` (default: experiments/results/NAME), print the verdict, and return the folder.

    Columns are the keys of all rows in order of appearance; what a row lacks stays empty. Raises ValueError for a
    verdict that is none of `WORDS` and for no rows.
    """
    if verdict not in WORDS:
        raise ValueError(f"a verdict is one of {', '.join(WORDS)}, not {verdict!r}")
    if not rows:
        raise ValueError("rows must hold at least one row: an answer shows its numbers")
    out = out or ROOT / "experiments/results" / name
    out.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    figure.savefig(out / "plot.png", dpi=150, metadata={"Software": None})
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    (out / "answer.md").write_text(
        f"# {question}\n\n**Claim.** {claim}\n\n{shown(verdict, reason)}\n\n"
        f"{markdown(columns, rows)}\n![figure](plot.png)\n\n{versions}; {jax.default_backend()}.\n\n    {command}\n",
        encoding="utf-8",
    )
    print(f"{claim}\n{verdict}: {reason}\n{out}/answer.md")
    return out


def markdown(columns: list[str], rows: list[dict[str, Any]]) -> str:
    """The rows as a table, numbers to four digits."""
    shown = lambda x: f"{x:.4g}" if isinstance(x, float) else str(x)  # noqa: E731
    lines = [columns, ["---"] * len(columns), *([shown(row.get(key, "")) for key in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def command_line(
    name: str, question: str, run: Callable[[bool, str, pathlib.Path | None], str], argv: list[str] | None = None
) -> str:
    """`python experiments/NAME.py [--smoke] [--out DIR]`: calls `run(smoke, command, out)` in float64 -> verdict.

    Without --out a smoke run writes to runs/NAME-smoke and never over the committed answer.
    """
    with jax.enable_x64(True):
        return run(*flags(name, question, argv))


def flags(name: str, question: str, argv: list[str] | None = None) -> tuple[bool, str, pathlib.Path | None]:
    """Whether it is a smoke run, the command as one would type it, and where the answer goes; None: the default."""
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--smoke", action="store_true", help="so small that it shows only that everything runs")
    parser.add_argument("--out", type=pathlib.Path, help=f"folder of the answer; default: experiments/results/{name}")
    chosen = parser.parse_args(argv)
    command = f"python -m experiments.{name}" + (" --smoke" if chosen.smoke else "")
    return chosen.smoke, command, chosen.out or (ROOT / "runs" / f"{name}-smoke" if chosen.smoke else None)


def figure_of(rows: int, columns: int, size: tuple[float, float], **ratios: Any) -> tuple[Figure, Any]:
    """A figure in the style of the reports, and its axes; `ratios` are those of widths and heights."""
    with mpl.rc_context({key: value for key, value in STYLE.items() if key != "svg.hashsalt"}):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, gridspec_kw=ratios)


def exact(value: Any) -> tuple[float, float, float]:
    """A figure without error as value, low, high: what `decisions.Part` takes."""
    return float(value), float(value), float(value)


def decided(parts: list[Part]) -> tuple[str, str]:
    """`decide`, but figures without error are shown without an interval."""
    texts = []
    for part in parts:
        _, low, high = part.interval
        texts.append(str(part).replace(f" [{low:.4g}, {high:.4g}]", "") if low == high else str(part))
    return decide(parts)[0], listed(texts)
