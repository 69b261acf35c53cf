"""The log of a run: every name has a meaning, every line is whole, and a resumed log is that of an unbroken run."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import glossary, metrics
from jaxrl_llm.glossary import glossary_markdown, meaning
from jaxrl_llm.metrics import MetricsLog, RunError, read_metrics, read_samples, run_folder

SAMPLE = {"prompt": "1+1=", "answer": "2", "reward": 1.0, "advantage": 0.5, "truncated": False}


def write_steps(folder, steps, resume_from=None):
    with MetricsLog(folder, resume_from) as log:
        for step in steps:
            log.log(step, {"loss": 1 / 3 * step, "num_tokens": 7 * step})
            log.log_samples(step, [SAMPLE, SAMPLE | {"answer": f"{step}\né\ud800"}])


def contents(folder):
    return [(folder / name).read_bytes() for name in metrics.FILES]


@pytest.fixture
def run(tmp_path):
    """A run of nine steps."""
    write_steps(tmp_path / "run", range(1, 10))
    return tmp_path / "run"


def test_what_is_logged_is_read_back(run):
    steps = list(range(1, 10))
    assert read_metrics(run) == {
        "loss": (steps, [1 / 3 * step for step in steps]),
        "num_tokens": (steps, [7 * step for step in steps]),
    }
    assert read_samples(run)[:2] == [{"step": 1, **SAMPLE}, {"step": 1, **SAMPLE, "answer": "1\né\ud800"}]


def test_a_metric_that_is_missing_at_some_steps_has_its_own_steps(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(1, {"loss": 1.0})
        log.log(2, {"loss": 2.0, "eval/accuracy": 0.5})
    assert read_metrics(tmp_path) == {"loss": ([1, 2], [1.0, 2.0]), "eval/accuracy": ([2], [0.5])}


@pytest.mark.parametrize("value", [2.5, np.float32(2.5), np.array(2.5), jnp.asarray(2.5)])
def test_numbers_of_every_library_are_logged(tmp_path, value):
    with MetricsLog(tmp_path) as log:
        log.log(1, {"loss": value, "num_tokens": jnp.asarray(3)})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.5, "num_tokens": 3}\n'


def test_values_that_are_not_finite_are_strict_json_and_come_back(tmp_path):
    def refuse(word):
        raise AssertionError(word)

    with MetricsLog(tmp_path) as log:
        log.log(1, {"loss": math.nan, "grad_norm": -math.inf, "kl": 0.5})
        log.log_samples(1, [SAMPLE | {"reward": math.inf}])
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert row == {
        "step": 1,
        "loss": None,
        "grad_norm": None,
        "kl": 0.5,
        "nonfinite": {"loss": "nan", "grad_norm": "-inf"},
    }
    curves = read_metrics(tmp_path)
    assert math.isnan(curves["loss"][1][0])
    assert curves["grad_norm"] == ([1], [-math.inf])
    assert set(curves) == {"loss", "grad_norm", "kl"}
    assert json.loads((tmp_path / "samples.jsonl").read_text(), parse_constant=refuse)["reward"] is None


@pytest.mark.parametrize("name", ["reward/maen", "reward/component/", "eval/pass@", "eval/pass@0", "loss ", ""])
def test_nothing_is_logged_without_a_meaning(tmp_path, name):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match="GLOSSARY"):
        log.log(1, {"loss": 0.0, name: 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_typing_error_is_met_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'reward/mean'"):
        meaning("reward/maen")


def test_families_have_meanings():
    assert "component format" in meaning("reward/component/format")
    assert "one of 16 sampled" in meaning("eval/pass@16")


@pytest.mark.parametrize("value", ["1.0", None, [1.0], {}])
def test_what_is_no_number_is_refused(tmp_path, value):
    with MetricsLog(tmp_path) as log, pytest.raises(TypeError, match="loss"):
        log.log(1, {"loss": value})
    assert read_metrics(tmp_path) == {}


def test_steps_must_rise(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(2, {"loss": 0.0})
        with pytest.raises(ValueError, match="step 2 after step 2"):
            log.log(2, {"loss": 0.0})
    assert read_metrics(tmp_path) == {"loss": ([2], [0.0])}


def test_samples_have_exactly_their_keys(tmp_path):
    with MetricsLog(tmp_path) as log, pytest.raises(ValueError, match="a sample has the keys"):
        log.log_samples(1, [SAMPLE | {"colour": "red"}])


def test_a_line_is_whole_on_the_disk_at_once(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(1, {"loss": 0.0})
        log.log_samples(1, [SAMPLE])
        assert [content.count(b"\n") for content in contents(tmp_path)] == [1, 1]
        assert read_metrics(tmp_path) == {"loss": ([1], [0.0])}


def test_a_run_is_not_overwritten(run):
    before = contents(run)
    with pytest.raises(RunError, match="exists already"):
        MetricsLog(run)
    assert contents(run) == before


@pytest.mark.parametrize("resume_from", [0, 4, 9])
@pytest.mark.parametrize("torn", [b"", b'{"step": 10, "lo', b'{"step": 10, "loss": 1.0}', b"\0\0\0", b"\xff"])
def test_a_resumed_log_is_that_of_an_unbroken_run(tmp_path, run, resume_from, torn):
    whole = contents(run)
    for name in metrics.FILES:
        with open(run / name, "ab") as file:
            file.write(torn)
    write_steps(run, range(resume_from + 1, 10), resume_from)
    assert contents(run) == whole
    assert not list(run.glob("*.draft"))


def test_damage_behind_the_cut_goes_with_it(run):
    whole = contents(run)
    lines = whole[0].split(b"\n")
    (run / "metrics.jsonl").write_bytes(b"\n".join([*lines[:6], b"", b"{", b""]))
    write_steps(run, range(6, 10), 5)
    assert contents(run) == whole


def test_a_complete_last_row_without_its_end_is_kept(run):
    whole = contents(run)
    (run / "metrics.jsonl").write_bytes(whole[0].rstrip(b"\n"))
    assert read_metrics(run)["loss"][0] == list(range(1, 10))
    MetricsLog(run, 9).close()
    assert contents(run) == whole


def test_a_kill_while_rows_are_cut_loses_none(run, monkeypatch):
    whole = contents(run)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(metrics.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsLog(run, 4)
    assert contents(run) == whole


def test_missing_rows_are_told(run):
    with pytest.warns(UserWarning, match="ends at step 9, the checkpoint at 12"):
        MetricsLog(run, 12).close()


@pytest.mark.parametrize(
    "damage",
    [b'{"step": 3, "lo', b"", b"[1]", b'{"loss": 1.0}', b'{"step": "3"}', b'{"step": 1}', b'{"step": 3.0}', b"\xff"],
)
def test_a_damaged_line_is_named_by_file_and_number(run, damage):
    lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    lines[2] = damage
    (run / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 3, is damaged"):
        read_metrics(run)
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 3, is damaged"):
        MetricsLog(run, 5)


def test_a_line_that_is_being_written_is_left_out(run):
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 10, "lo')
    assert read_metrics(run)["loss"][0][-1] == 9


def test_a_run_folder_is_found_or_the_nearest_named(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert run_folder(run) == run
    with pytest.raises(RunError, match=r"rum does not exist; did you mean '.*run'"):
        run_folder(tmp_path / "rum")
    with pytest.raises(RunError, match=r"does not exist$"):
        run_folder(tmp_path / "no" / "such")
    with pytest.raises(RunError, match=r"empty is not a run folder"):
        read_metrics(tmp_path / "empty")
    with pytest.raises(RunError, match=r"the runs in it: .*run"):
        read_samples(tmp_path)


def tensorboard_steps(path):
    from tensorboardX.proto.event_pb2 import Event

    data, events = path.read_bytes(), []
    while data:
        length = int.from_bytes(data[:8], "little")
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_tensorboard_gets_finite_scalars_and_is_told_what_a_resume_voids(tmp_path):
    with MetricsLog(tmp_path) as log:
        for step in range(1, 4):
            log.log(step, {"loss": math.nan if step == 2 else float(step), "eval/pass@4": 0.5})
    with MetricsLog(tmp_path, 1) as log:
        log.log(2, {"loss": 2.5})
    first, second = map(tensorboard_steps, sorted((tmp_path / "tensorboard").glob("events*")))
    found = [(event.step, value.tag, value.simple_value) for event in first for value in event.summary.value]
    assert [(step, value) for step, tag, value in found if tag == "loss"] == [(1, 1.0), (3, 3.0)]
    assert len(found) == 5
    assert [event.step for event in second if event.session_log.status] == [2]
    assert [(event.step, value.simple_value) for event in second for value in event.summary.value] == [(2, 2.5)]


def test_the_glossary_table_has_a_row_for_each_name():
    lines = glossary_markdown().splitlines()
    assert lines[:2] == ["| metric | meaning |", "|---|---|"]
    names = [line.split("`")[1] for line in lines[2:]]
    assert names == [*glossary.GLOSSARY, *(family for family, _, _ in glossary.FAMILIES)]
    assert {"reward/component/NAME", "eval/pass@N", "variance/NAME/cos"} <= set(names)
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines[2:])
    assert all(text and "\n" not in text for text in glossary.GLOSSARY.values())


@pytest.mark.parametrize(
    ("fraction", "n", "low", "high"),
    # From the closed form, to four places: the textbook values for 0/10, 10/10, 5/10 and 81/263.
    [(0, 10, 0, 0.2775), (1, 10, 0.7225, 1), (0.5, 10, 0.2366, 0.7634), (81 / 263, 263, 0.2553, 0.3662)],
)
def test_wilson_interval(fraction, n, low, high):
    assert metrics.wilson_interval(fraction, n) == pytest.approx((low, high), abs=5e-5)
