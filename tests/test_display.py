"""What a terminal shows, and what a file gets where a terminal is expected."""

import io

import pytest
from rich.console import Console

from jaxrl_llm.display import Progress, before_after_rows, before_after_table, constant_verdict, shorten, sparkline

ROW = {
    "reward/mean": 0.625,
    "entropy": 1.25,
    "kl": 0.0125,
    "completions/mean_length": 7.5,
    "perf/tokens_per_second": 3100.4,
}
BEFORE = {"eval/accuracy": 0.25, "eval/pass@1": 0.2, "eval/pass@16": 0.6, "eval/pass@4": 0.4, "eval/mean_length": 9.0}
AFTER = {"eval/accuracy": 0.75, "eval/pass@1": 0.7, "eval/pass@16": 0.9, "eval/pass@4": 0.8, "eval/mean_length": 7.5}


class Screen(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self):
        return True


class Clock:
    """Time that passes when told."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def plain(**options):
    return Console(file=io.StringIO(), width=80, **options)


def screen():
    return Console(file=Screen(), width=100, force_terminal=True, color_system=None, _environ={"TERM": "xterm"})


def text_of(console):
    return console.file.getvalue()


def drive(progress, clock, steps, seconds=1.0):
    for step in steps:
        clock.now += seconds
        progress.update(step, ROW)


def test_a_file_gets_the_first_line_the_last_and_one_now_and_then(clock):
    console = plain()
    with Progress(100, console=console, interval=30.0, clock=clock) as progress:
        drive(progress, clock, range(1, 101))
        lines = text_of(console).splitlines()
    assert text_of(console).splitlines() == lines
    assert [line.split()[1] for line in lines] == ["1/100", "31/100", "61/100", "91/100", "100/100"]
    assert lines[1] == "RL 31/100  reward 0.625  entropy 1.250  KL 0.0125  length 7.5  tokens/s 3,100  1:09 left"


def test_a_run_that_ends_early_still_shows_its_last_step(clock):
    console = plain()

    def steps():
        yield from range(1, 8)
        raise KeyError

    with pytest.raises(KeyError), Progress(100, console=console, interval=30.0, clock=clock) as progress:
        drive(progress, clock, steps())
    assert [line.split()[1] for line in text_of(console).splitlines()] == ["1/100", "7/100"]


@pytest.mark.parametrize("options", [{}, {"force_terminal": True}, {"_environ": {"FORCE_COLOR": "1"}}])
def test_a_file_gets_no_control_codes_and_no_wrapped_lines(clock, options):
    console = plain(**options)
    with Progress(3, warmup_steps=2, console=console, interval=0.0, clock=clock) as progress:
        progress.warmup(1, {"loss": 1.5})
        for step in range(1, 4):
            progress.update(step, ROW | {"eval/accuracy": 0.5, "nonfinite/skipped": 2})
    text = text_of(console)
    assert len(text.splitlines()) == 4
    assert text.replace("\n", "").isprintable()
    assert text.isascii()


def test_quiet_prints_only_what_is_shown(clock):
    console = plain()
    with Progress(3, console=console, quiet=True, interval=0.0, clock=clock) as progress:
        drive(progress, clock, range(1, 4))
        assert text_of(console) == ""
        progress.show("the table")
    assert text_of(console) == "the table\n"
    console = screen()
    with Progress(3, console=console, quiet=True, clock=clock) as progress:
        drive(progress, clock, range(1, 4))
    assert text_of(console) == ""


def test_a_terminal_gets_a_bar(clock):
    console = screen()
    with Progress(40, warmup_steps=5, console=console, clock=clock) as progress:
        with console.capture() as capture:
            console.print(progress._render())
        assert "warm-up" in capture.get()
        assert "compiling the first step" in capture.get()
        drive(progress, clock, range(1, 21), seconds=2.0)
        with console.capture() as capture:
            console.print(progress._render())
        shown = capture.get()
    for piece in ("RL", "━", "20/40", "0:38 elapsed", "0:40 left", "reward", "0.625", "1.250", "0.0125", "3,100", "▁"):
        assert piece in shown
    assert "\x1b[" in text_of(console)  # the bar redraws itself
    assert "20/40" in text_of(console)  # and its last state stays


def test_time_left_leaves_out_the_step_that_compiles(clock):
    console = plain()
    with Progress(12, console=console, interval=0.0, clock=clock, resume_from=2) as progress:
        drive(progress, clock, [3], seconds=600.0)
        drive(progress, clock, [4, 5, 6, 7])
    assert "left" not in text_of(console).splitlines()[0]
    assert text_of(console).splitlines()[-1].endswith("0:05 left")


def test_the_accuracy_stays_with_the_step_it_was_measured_at(clock):
    console = plain()
    with Progress(9, warmup_steps=3, console=console, interval=0.0, clock=clock) as progress:
        progress.warmup(3, {"loss": 1.5, "eval/accuracy": 0.125})
        progress.update(1, ROW)
        progress.update(2, ROW | {"eval/accuracy": 0.5})
        progress.update(3, ROW)
    warmup, first, second, third = text_of(console).splitlines()
    assert warmup == "warm-up 3/3  loss 1.5000  held-out 12.5%"
    assert "held-out" not in first
    assert "held-out 50.0%  " in second
    assert "held-out 50.0% @2  " in third


def test_a_row_without_a_metric_or_with_one_that_is_not_finite_is_shown(clock):
    console = plain()
    with Progress(2, console=console, interval=0.0, clock=clock) as progress:
        progress.update(1, {})
        progress.update(2, {"reward/mean": float("nan"), "kl": float("inf"), "nonfinite/skipped": 1})
    assert text_of(console).splitlines() == ["RL 1/2", "RL 2/2  reward nan  KL inf  skipped 1"]


def test_sparkline():
    assert sparkline([0.0, 1.0], 8) == "▁█"
    assert sparkline([float(i) for i in range(800)], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([float("nan"), 3.0, 3.0, float("inf")], 8) == "▁▁"
    assert sparkline([], 8) == ""


def table_text(*args, width=80, **options):
    console = Console(file=io.StringIO(), width=width)
    console.print(before_after_table(*args, **options))
    return text_of(console)


def test_the_table_says_what_changed():
    text = table_text(BEFORE, AFTER, 0.1, problems=100, constant_answer="[red]17\x1b[31m")
    lines = [line.split() for line in text.splitlines()]
    assert ["accuracy,", "greedy", "25.0%", "(17.5-34.3)", "75.0%", "(65.7-82.5)", "+50.0", "pts"] in lines
    assert [line[0] for line in lines if line and line[0].startswith("pass@")] == ["pass@1,", "pass@4,", "pass@16,"]
    assert ["mean", "length", "(tokens)", "9.00", "7.50", "-1.50"] in lines
    assert ["best", "constant", "answer", "10.0%", "10.0%"] in lines
    assert "'[red]17?[31m' (10.0%): so is its whole 95%" in " ".join(text.split())
    assert "majority" not in text
    assert "\x1b" not in text


def test_the_table_fits_eighty_columns():
    full = {
        "eval/accuracy": 1.0,
        "eval/pass@128": 1.0,
        "eval/majority": 1.0,
        "eval/mean_length": 1000.0,
        "eval/clipped_ratio": 1.0,
    }
    text = table_text(full, full, 1.0, problems=100, constant_answer="x" * 1000)
    labels = [line[:22].strip() for line in text.splitlines()[2:] if line.strip()]
    assert labels[2:8] == [
        "accuracy, greedy",
        "pass@128, sampled",
        "majority answer",
        "mean length (tokens)",
        "cut at length limit",
        "best constant answer",
    ]


def test_the_table_does_without_what_is_not_known():
    text = table_text(BEFORE, {}, None)
    assert "25.0% " in text
    assert "(" not in text.replace("(tokens)", "")
    assert "constant" not in text


def test_rows_of_a_metric_that_only_one_side_has():
    assert before_after_rows({"eval/majority": 0.5}, {"eval/pass@2": 0.25}, None) == [
        ("pass@2, sampled", "", "25.0%", ""),
        ("majority answer", "50.0%", "", ""),
    ]


@pytest.mark.parametrize(
    ("accuracy", "problems", "words"),
    [
        (0.5, 100, "is above"),
        (0.5, None, "is above"),
        (0.22, 100, "is NOT distinguishable"),
        (0.22, 100_000, "is above"),
        (0.05, 100, "is BELOW"),
        (0.2, None, "is NOT above"),
        (None, 100, "must be above"),
    ],
)
def test_a_collapse_to_one_answer_is_told(accuracy, problems, words):
    verdict = constant_verdict(accuracy, 0.2, problems)
    assert words in verdict
    assert "(20.0%)" in verdict


def test_shorten():
    assert shorten("a\n b\x1b\u202e", 20) == "a b??"
    assert shorten("x" * 21, 20) == "x" * 17 + "..."
