"""What a person sees of a run in a terminal: live progress, and the table of before and after."""

import re
import time
import types
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from jaxrl_llm.metrics import wilson_interval

BLOCKS = "▁▂▃▄▅▆▇█"
FRACTIONS = ("eval/accuracy", "eval/majority", "eval/clipped_ratio")
ROW_NAMES = {
    "eval/accuracy": "accuracy, greedy",
    "eval/majority": "majority answer",
    "eval/mean_length": "mean length (tokens)",
    "eval/clipped_ratio": "cut at length limit",
}


class Progress:
    """Live progress of a run: `with Progress(total_steps) as progress: progress.update(step, row)`.

    `row` is the row of metrics of that step; what it lacks is not shown, and the last held-out accuracy stays with the
    step it was measured at. A terminal gets a bar that redraws itself. Anything else (a file, a pipe, a notebook) gets
    a plain line without control codes for the first step, then one every `interval` seconds, and one for the last step.
    `quiet` shows only what goes through `show`. Time left is judged from the steps since the first, which compiles.

    total_steps    the run has steps 1..total_steps
    warmup_steps   steps of supervised warm-up before them, reported with `warmup`
    resume_from    the last step of the run that is resumed
    """

    def __init__(
        self,
        total_steps: int,
        *,
        warmup_steps: int = 0,
        resume_from: int = 0,
        quiet: bool = False,
        console: Console | None = None,
        interval: float = 10.0,
        clock: Any = time.monotonic,
    ):
        self.console = console or Console()
        self.interval = interval
        self._clock = clock
        self._quiet = quiet
        self._totals = {"warm-up": warmup_steps, "RL": total_steps}
        self._rewards: list[float] = []
        self._live: Live | None = None
        self._pending = False
        self._begin("warm-up" if warmup_steps else "RL", 0 if warmup_steps else resume_from)

    def __enter__(self) -> "Progress":
        # FORCE_COLOR makes rich call a pipe a terminal; a bar that redraws itself would still wreck the file behind it.
        interactive = self.console.is_terminal and self.console.file.isatty() and not self.console.is_dumb_terminal
        if interactive and not self._quiet:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ):
        if self._live is not None:
            self._live.stop()
        elif self._pending:
            self._print_line()

    def warmup(self, step: int, row: Mapping[str, Any]) -> None:
        """Report step 1..warmup_steps of supervised warm-up."""
        self._advance("warm-up", step, row)

    def update(self, step: int, row: Mapping[str, Any]) -> None:
        """Report step 1..total_steps."""
        self._advance("RL", step, row)

    def show(self, renderable: RenderableType) -> None:
        """Print a table or another result, above the bar, in quiet mode too."""
        self.console.print(renderable)

    def _begin(self, phase: str, step: int) -> None:
        self._phase, self._step, self._row = phase, step, {}
        self._first: int | None = None
        self._accuracy: tuple[int, float] | None = None
        self._printed_at = -float("inf")
        self._began = self._first_at = self._at = self._clock()

    def _advance(self, phase: str, step: int, row: Mapping[str, Any]) -> None:
        if phase != self._phase:
            self._begin(phase, step - 1)
        self._step, self._row, self._at = step, dict(row), self._clock()
        if self._first is None:
            self._first, self._first_at = step, self._at
        if "reward/mean" in row:
            self._rewards.append(float(row["reward/mean"]))
        if "eval/accuracy" in row:
            self._accuracy = (step, float(row["eval/accuracy"]))
        self._pending = not self._quiet and self._live is None
        due = self._at - self._printed_at >= self.interval or step >= self._totals[phase]
        if self._pending and due:
            self._print_line()

    def _seconds_left(self) -> float | None:
        done = self._step - (self._first or self._step)
        return (self._at - self._first_at) / done * (self._totals[self._phase] - self._step) if done > 0 else None

    def _figures(self) -> dict[str, str]:
        """What is shown of the last row, in order: short name -> text."""
        row, figures = self._row, {}
        if "reward/mean" in row:
            figures["reward"] = f"{row['reward/mean']:.3f}"
        elif "loss" in row:
            figures["loss"] = f"{row['loss']:.4f}"
        if self._accuracy is not None:
            step, accuracy = self._accuracy
            figures["held-out"] = f"{accuracy:.1%}" + (f" @{step}" if step != self._step else "")
        for short, name, form in (
            ("entropy", "entropy", ".3f"),
            ("KL", "kl", ".4f"),
            ("length", "completions/mean_length", ".1f"),
            ("tokens/s", "perf/tokens_per_second", ",.0f"),
        ):
            if name in row:
                figures[short] = format(float(row[name]), form)
        if row.get("nonfinite/skipped"):
            figures["skipped"] = str(row["nonfinite/skipped"])
        return figures

    def _print_line(self) -> None:
        self._printed_at, self._pending = self._at, False
        left = self._seconds_left()
        parts = [f"{self._phase} {self._step}/{self._totals[self._phase]}"]
        parts += [f"{short} {text}" for short, text in self._figures().items()]
        parts += [f"{_duration(left)} left"] if left is not None and self._step < self._totals[self._phase] else []
        self.console.print(Text("  ".join(parts)), soft_wrap=True)
        self.console.file.flush()

    def _render(self) -> RenderableType:
        total, left = self._totals[self._phase], self._seconds_left()
        times = f"{_duration(self._clock() - self._began)} elapsed"
        times += (
            f", {_duration(left)} left" if left is not None else ", compiling the first step" if not self._row else ""
        )
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            Text(self._phase, style="bold"), ProgressBar(total, self._step, width=28), f"{self._step}/{total}", times
        )
        figures = self._figures()
        if len(self._rewards) > 1 and not self.console.options.ascii_only:
            figures["reward so far"] = sparkline(self._rewards, 14)
        numbers = Table.grid(padding=(0, 3, 0, 0))
        for _ in figures:
            numbers.add_column(no_wrap=True)
        numbers.add_row(*figures, style="dim")
        numbers.add_row(*figures.values(), style="bold")
        return Group(bar, numbers)


def sparkline(values: list[int | float], width: int) -> str:
    """Values as a row of at most `width` block characters, each the mean of its share; lowest value lowest block."""
    finite = [value for value in values if abs(value) < float("inf")]
    count = min(width, len(finite))
    cells = [finite[i * len(finite) // count : (i + 1) * len(finite) // count] for i in range(count)]
    means = [sum(cell) / len(cell) for cell in cells]
    low, span = min(means, default=0), max(means, default=0) - min(means, default=0)
    return "".join(BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1)) if span else 0] for mean in means)


def before_after_rows(
    before: Mapping[str, Any], after: Mapping[str, Any], problems: int | None
) -> list[tuple[str, ...]]:
    """Rows (what, before, after, change) of the comparison, as text; "" where a value is missing.

    `before` and `after` map names of the glossary to numbers. Fractions are in percent and their change in percentage
    points (pts); the greedy accuracy has its 95% interval where the number of `problems` is known.
    """
    passes = sorted(
        (name for name in {*before, *after} if name.startswith("eval/pass@")), key=lambda name: int(name[10:])
    )
    rows = []
    for name in ["eval/accuracy", *passes, *list(ROW_NAMES)[1:]]:
        if name not in before and name not in after:
            continue
        fraction = name in FRACTIONS or name in passes
        old, new = before.get(name), after.get(name)
        n = problems if name == "eval/accuracy" else None
        change = ""
        if old is not None and new is not None:
            change = f"{100 * (new - old):+.1f} pts" if fraction else f"{new - old:+.2f}"
        what = ROW_NAMES.get(name) or f"pass@{name[10:]}, sampled"
        rows.append((what, _value(old, fraction, n), _value(new, fraction, n), change))
    return rows


def constant_verdict(
    accuracy: int | float | None,
    constant_accuracy: int | float,
    problems: int | None,
    constant_answer: str | None = None,
) -> str:
    """One sentence: is the greedy accuracy above that of the best constant answer?

    A reward can rise by collapsing to the one most frequent answer, so a run that is not above it has learnt nothing
    of the problems.
    """
    quoted = f" '{shorten(constant_answer, 20)}'" if constant_answer is not None else ""
    bar = f"the best constant answer{quoted} ({constant_accuracy:.1%})"
    if accuracy is None:
        return f"To be worth anything, the accuracy must be above that of {bar}."
    if problems:
        low, high = wilson_interval(accuracy, problems)
        if low > constant_accuracy:
            return f"The accuracy is above that of {bar}: so is its whole 95% interval."
        if high < constant_accuracy:
            return f"The accuracy is BELOW that of {bar}: so is its whole 95% interval."
        return f"The accuracy is NOT distinguishable from that of {bar}, which lies in its 95% interval."
    side = "above" if accuracy > constant_accuracy else "NOT above"
    return f"The accuracy is {side} that of {bar}; its interval is not known."


def before_after_table(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    constant_accuracy: int | float | None,
    *,
    problems: int | None = None,
    constant_answer: str | None = None,
) -> Table:
    """The held-out evaluation before and after training, as a table for a terminal.

    before, after       names of the glossary (`eval/...`) -> numbers; the same dicts as in summary.json
    constant_accuracy   accuracy of the best answer that ignores the problem; None: the task has no such thing
    problems            held-out problems; gives the interval of the greedy accuracy
    constant_answer     that answer, as text
    """
    title = "Held-out evaluation" + (
        f", {problems} problems, with the 95% interval of the accuracy" if problems else ""
    )
    table = Table(
        title=title, title_justify="left", caption_justify="left", caption_style="", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("")
    for heading in ("before", "after", "change"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(before_after_rows(before, after, problems)):
        table.add_row(*row, style="bold" if number == 0 else "")
    if constant_accuracy is not None:
        value = f"{constant_accuracy:.1%}"
        table.add_section()
        table.add_row("best constant answer", value, value, "")
        table.caption = Text(constant_verdict(after.get("eval/accuracy"), constant_accuracy, problems, constant_answer))
    return table


def shorten(text: str, length: int) -> str:
    """Text of a model on one line, printable and at most so long."""
    text = re.sub(r"\s+", " ", "".join(c if c.isprintable() or c.isspace() else "?" for c in text))
    return text if len(text) <= length else text[: length - 3] + "..."


def _value(value: int | float | None, fraction: bool, n: int | None) -> str:
    if value is None:
        return ""
    if not fraction:
        return f"{value:.2f}"
    low, high = wilson_interval(value, n) if n else (0, 0)
    return f"{value:.1%}" + (f" ({100 * low:.1f}-{100 * high:.1f})" if n else "")


def _duration(seconds: int | float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
