"""The report page: what it shows of one run and of several, and that nothing in a run can act in it."""

import base64
import html.parser
import json
import re

import pytest
from matplotlib.figure import Figure

from jaxrl_llm import report_plots
from jaxrl_llm.metrics import MetricsLog, RunError
from jaxrl_llm.report import chosen_samples, config_rows, curve_png, overview, write_report
from jaxrl_llm.report_plots import Panel, draw, headline_panels, panels, plot, read_runs, running_mean, thinned

HOSTILE = "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>\u202e\x00\ud800{{ 7 * 7 }}"
SUMMARY = {
    "warmup": {"steps": 5, "loss": 1.0, "accuracy": 0.1},
    "before": {"eval/accuracy": 0.125, "eval/pass@1": 0.1, "eval/pass@4": 0.3},
    "after": {"eval/accuracy": 0.75, "eval/pass@1": 0.7, "eval/pass@4": 0.9},
    "constant_accuracy": 0.2,
    "constant_answer": "17",
    "problems": 64,
}


def make_run(folder, steps, *, leave_out=(), config=None, summary=SUMMARY, text="1+1=", more=None):
    """A run folder as the trainer leaves it."""
    with MetricsLog(folder) as log:
        for step in range(1, steps + 1):
            row = {
                "reward/mean": step / steps,
                "reward/std": 0.5,
                "reward/component/format": 1.0,
                "entropy": 2.0 / step,
                "kl": 0.01 * step,
                "grad_norm": float("nan") if step == 2 else 10.0**step if step < 5 else 1.0,
                "num_tokens": 100 * step,
                "invalid_ratio": 0.0,
                "perf/step_seconds": 30.0,
            }
            row |= more or {}
            if step % 2 == 0:
                row |= {"eval/accuracy": 0.5, "eval/pass@1": 0.4, "eval/pass@2": 0.6, "eval/pass@4": 0.8}
            log.log(step, {name: value for name, value in row.items() if name not in leave_out})
            sample = {"prompt": text, "answer": text, "reward": 1.0, "advantage": -0.5, "truncated": step == 1}
            log.log_samples(step, [sample | {"prompt": text + str(i // 5)} for i in range(25)])
    config = {"seed": 0, "model": {"width": 16, "heads": 2}} if config is None else config
    (folder / "config.json").write_text(json.dumps(config))
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


class Page(html.parser.HTMLParser):
    """Tags with their attributes, and the text, of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags, self.words = [], []
        self.feed(self.source)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def titles(self):
        return [attrs["alt"].removesuffix(" over the steps") for tag, attrs in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The page of one run whose every text is hostile."""
    folder = tmp_path_factory.mktemp("single") / "first run <b>"
    make_run(folder, 6, text=HOSTILE, config={"task": HOSTILE, "model": {"width": 16}})
    return Page(write_report([folder], folder / "deep" / "report.html"))


@pytest.fixture
def pair(tmp_path):
    """Two runs that differ in configuration, length and metrics."""
    a = make_run(tmp_path / "a" / "run", 6)
    b = make_run(tmp_path / "b" / "run", 4, leave_out=("kl",), config={"seed": 1, "model": {"width": 16}}, summary=None)
    return a, b


def test_hostile_text_is_shown_and_does_nothing(single):
    assert not {"script", "iframe", "object", "link", "base", "form", "b"} & {tag for tag, _ in single.tags}
    assert "<script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>" in single.text
    assert r"\u202e\u0000\ud800{{ 7 * 7 }}" in single.text
    assert "first run <b>" in single.text
    assert all(not name.startswith("on") for _, attrs in single.tags for name in attrs)


def test_the_page_stands_alone(single):
    outside = [value for _, attrs in single.tags for name, value in attrs.items() if name in ("src", "href")]
    assert outside
    assert all(value.startswith("data:image/svg+xml;base64,") for value in outside)
    policy = next(attrs["content"] for _, attrs in single.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert "url(" not in single.source
    assert "@import" not in single.source


def test_a_page_of_one_run_shows_all_of_it(single):
    for piece in (
        "12.5% (6.5-22.8)", "75.0% (63.2-84.0)", "+62.5 pts", "pass@4, sampled", "is above that of the best constant",
        "model.width", "600", "3.0 min", "Sampled answers",
        "fraction of held-out problems that the greedy answer solves",
    ):  # fmt: skip
        assert piece in single.text, piece
    assert single.titles() == [
        "Reward", "Held-out accuracy", "pass@k, held-out", "Reward component: format", "Entropy",
        "KL to the reference", "Gradient norm", "invalid_ratio", "num_tokens", "perf/step_seconds", "reward/std",
    ]  # fmt: skip


def test_several_runs_are_compared(pair):
    page = Page(write_report(pair, pair[0] / "report.html"))
    assert "Comparison of 2 runs" in page.text
    assert page.text.count("a/run") > 1 < page.text.count("b/run")
    assert page.source.count(report_plots.PALETTE[0]) > 1 < page.source.count(report_plots.PALETTE[1])
    assert "KL to the reference" in page.titles()
    assert len(re.findall(r'<tr class="differs">', page.source)) == 2


def test_curves_of_several_runs_lie_in_one_plot(pair):
    axes = Figure().subplots()
    reward, accuracy = headline_panels()
    runs = read_runs(pair)
    plot(axes, reward, runs)
    assert [(line.get_color(), list(line.get_xdata())) for line in axes.lines] == [
        (report_plots.PALETTE[0], [1, 2, 3, 4, 5, 6]),
        (report_plots.PALETTE[1], [1, 2, 3, 4]),
    ]
    axes = Figure().subplots()
    plot(axes, accuracy, runs)
    first, second, constant = axes.lines
    assert list(first.get_xdata()) == [0, 2, 4, 6]  # step 0: before training
    assert list(first.get_ydata()) == [12.5, 50, 50, 50]
    assert list(second.get_xdata()) == [2, 4]
    assert list(constant.get_ydata()) == [20, 20]
    assert [text.get_text() for text in axes.texts] == ["best constant answer"]
    assert len(axes.collections) == 1  # the interval, where the number of problems is known


def test_the_spread_is_a_band_around_one_run(tmp_path):
    lengths = {"completions/min_length": 2.0, "completions/mean_length": 3.0, "completions/max_length": 6.0}
    pair = [make_run(tmp_path / name, 3, more=lengths) for name in ("a", "b")]
    length = next(panel for panel in report_plots.PANELS if panel.names == ("completions/mean_length",))
    for chosen, bands in ((pair[:1], 1), (pair, 0)):
        axes = Figure().subplots()
        plot(axes, length, read_runs(chosen))
        assert len(axes.collections) == bands
    axes = Figure().subplots()
    plot(axes, length, read_runs(pair[:1]))
    corners = axes.collections[0].get_paths()[0].vertices
    assert corners[:, 1].min() == pytest.approx(2)
    assert corners[:, 1].max() == pytest.approx(6)


def test_a_metric_that_jumps_by_orders_of_magnitude_has_a_logarithmic_axis(pair):
    axes = Figure().subplots()
    plot(axes, next(panel for panel in report_plots.PANELS if panel.names == ("grad_norm",)), read_runs(pair))
    assert axes.get_yscale() == "log"


def test_two_metrics_in_a_plot_are_solid_and_dashed(pair):
    axes = Figure().subplots()
    main, _ = panels(read_runs(pair[:1]))
    panel = next(panel for panel in main if panel.title.startswith("pass@k"))
    assert panel.names == ("eval/pass@1", "eval/pass@4")
    plot(axes, panel, read_runs(pair[:1]))
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]


@pytest.mark.parametrize("summary", [None, {"before": {"eval/accuracy": 0.5}}])
def test_a_run_without_a_step_has_a_report(tmp_path, summary):
    make_run(tmp_path / "run", 0, summary=summary)
    page = Page(write_report([tmp_path / "run"], tmp_path / "report.html"))
    assert "has logged no step yet" in page.text
    assert page.titles() == []
    assert "model.width" in page.text
    assert curve_png([tmp_path / "run"], tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_folder_with_only_the_log_has_a_report(tmp_path):
    make_run(tmp_path / "run", 3, summary=None)
    (tmp_path / "run" / "config.json").unlink()
    (tmp_path / "run" / "samples.jsonl").unlink()
    page = Page(write_report([tmp_path / "run"], tmp_path / "report.html"))
    assert "Entropy" in page.titles()
    assert "Configuration" not in page.text
    assert "Sampled answers" not in page.text


@pytest.mark.parametrize("name", ["config.json", "summary.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    make_run(tmp_path / "run", 1)
    (tmp_path / "run" / name).write_bytes(content)
    with pytest.raises(RunError, match=rf"{name} is damaged"):
        write_report([tmp_path / "run"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_no_run_and_no_such_run_are_refused(tmp_path):
    with pytest.raises(RunError, match="no run folder was named"):
        write_report([], tmp_path / "report.html")
    make_run(tmp_path / "grpo", 0)
    with pytest.raises(RunError, match=r"did you mean '.*grpo'"):
        write_report([tmp_path / "grop"], tmp_path / "report.html")


def test_the_same_run_gives_the_same_bytes(tmp_path):
    folder = make_run(tmp_path / "run", 2, leave_out=("kl", "entropy", "reward/component/format", "invalid_ratio"))
    first = write_report([folder], tmp_path / "one.html").read_bytes()
    assert write_report([folder], tmp_path / "two.html").read_bytes() == first


def test_the_plot_for_the_readme_bears_any_folder_name(tmp_path):
    folders = [make_run(tmp_path / name, 50) for name in ("$\\frac$", "_hidden")]
    path = curve_png(folders, tmp_path / "images" / "curve.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_an_image_is_a_whole_svg(pair):
    kind, _, data = draw(Panel("Entropy", "nats", ("entropy",)), read_runs(pair)).partition(",")
    assert kind == "data:image/svg+xml;base64"
    assert base64.b64decode(data).rstrip().endswith(b"</svg>")


def test_runs_are_named_by_what_tells_them_apart(pair):
    assert [run.name for run in read_runs(pair[:1])] == ["run"]
    assert [run.name for run in read_runs(pair)] == ["a/run", "b/run"]
    assert [run.name for run in read_runs([pair[0], pair[0]])] == ["run", "run"]


def test_settings_that_differ_come_first(pair):
    assert config_rows(read_runs(pair)) == [
        ("seed", ["0", "1"], True),
        ("model.heads", ["2", ""], True),
        ("model.width", ["16", "16"], False),
    ]


def test_samples_are_of_the_first_middle_and_last_step_and_of_several_prompts(pair):
    chosen = chosen_samples(read_runs(pair[:1])[0])
    assert [step for step, _ in chosen] == [1, 4, 6]
    assert [sample["prompt"] for sample in chosen[0][1]] == ["1+1=0"] * 3 + ["1+1=1"] * 3 + ["1+1=2"] * 3


def test_a_long_answer_is_cut(tmp_path):
    make_run(tmp_path, 1, text="x" * 5000)
    ((_, rows),) = chosen_samples(read_runs([tmp_path])[0])
    assert rows[0]["answer"] == "x" * 1500 + " [... 3500 more characters]"


def test_the_overview(pair):
    assert overview(read_runs(pair)[0]) == {
        "steps": "6",
        "answer tokens": "600",
        "parameters trained": "",
        "time of the steps": "3.0 min",
        "reward, last tenth": "1.000",
        "held-out accuracy": "50.0% (38.1% to 61.9%)",
    }


def test_long_curves_are_thinned_to_means():
    steps, values = thinned((list(range(1, 1001)), [float(i) for i in range(1, 1001)]))
    assert len(steps) == 334
    assert (steps[:2], values[:2]) == ([3, 6], [2.0, 5.0])
    assert (steps[-1], values[-1]) == (1000, 1000.0)
    short = ([1, 2], [0.0, float("nan")])
    assert thinned(short) is short


def test_the_running_mean_leaves_out_what_is_not_finite():
    values = [1.0] * 60
    values[30] = float("inf")
    assert running_mean(values) == [1.0] * 60
    assert running_mean([0.0, 60.0] * 30)[2:4] == [24.0, 36.0]
    assert running_mean(values[:40]) == values[:40]
