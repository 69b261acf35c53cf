"""A disk that takes no more: one error, which names the file, and the status of a run that failed."""

import errno
import os
import pathlib

import gangs
import numpy as np
import pytest

from jaxrl_llm import cli, heartbeat
from jaxrl_llm.checkpoint import CheckpointError
from jaxrl_llm.config import ConfigError
from jaxrl_llm.metrics import MetricsLog
from jaxrl_llm.report import write_report
from jaxrl_llm.runs import write_attempts, write_json
from jaxrl_llm.writing import WriteError

FULL = pathlib.Path("/dev/full")
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_a_full_disk_is_told_once_and_by_file(name, tmp_path):
    """Closing a file tries once more to write what it could not; that must not stand for the error."""
    (tmp_path / name).symlink_to(FULL)
    sample = {"prompt": "a", "answer": "b", "reward": 1.0, "advantage": 0.5, "truncated": False}
    log = MetricsLog(tmp_path)

    def logged():
        with log:
            log.log(1, {"loss": 0.5})
            log.log_samples(1, [sample])

    with pytest.raises(WriteError, match=f"^{tmp_path}/{name} cannot be written: No space left on device$") as caught:
        logged()
    assert caught.value.status == 1
    assert log._metrics.closed
    assert log._samples.closed


def test_what_fails_when_the_log_is_closed_is_named_too(tmp_path):
    (tmp_path / "metrics.jsonl").symlink_to(FULL)
    log = MetricsLog(tmp_path)
    log._metrics.write(b"the rest of a row")
    with pytest.raises(WriteError, match=f"{tmp_path}/metrics.jsonl cannot be written: No space left"):
        log.close()
    assert log._samples.closed


@pytest.mark.parametrize(("code", "words"), [(errno.EROFS, "Read-only file system"), (errno.EIO, "Input/output error")])
def test_a_log_that_does_not_reach_the_disk_is_named(code, words, tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(code, os.strerror(code))

    with MetricsLog(tmp_path) as log:
        log.log(1, {"loss": 0.5})
        monkeypatch.setattr(os, "fsync", broken)
        with pytest.raises(WriteError, match=f"{tmp_path}/metrics.jsonl cannot be written: {words}"):
            log.sync()
        monkeypatch.undo()


def beat(path):
    heartbeat.Heart(path).beat("step", 1)


WRITERS = {
    "summary.json": lambda path: write_json(path, {"a": 1}),
    "attempts.npy": lambda path: write_attempts(path.parent, np.ones((3, 2), bool)),
    "sign": beat,
}


@pytest.mark.parametrize("name", WRITERS)
def test_files_that_are_written_whole_are_named(name, tmp_path, monkeypatch):
    path = tmp_path / name
    path.write_text("before")
    draft = tmp_path / f"{name}.draft"
    draft.symlink_to(FULL)
    with pytest.raises(WriteError, match=f"^{path} cannot be written: No space left on device$"):
        WRITERS[name](path)
    draft.unlink()

    def read_only(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", read_only)
    with pytest.raises(WriteError, match=f"^{path} cannot be written: Read-only file system$"):
        WRITERS[name](path)
    assert path.read_text() == "before"


def test_a_report_that_cannot_be_written_is_named(tmp_path):
    with MetricsLog(tmp_path) as log:
        log.log(1, {"loss": 0.5})
    (tmp_path / "report.html").symlink_to(FULL)
    with pytest.raises(WriteError, match=f"{tmp_path}/report.html cannot be written: No space"):
        write_report([tmp_path], tmp_path / "report.html")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (CheckpointError("runs/a/7 could not be saved"), 1),
        (CheckpointError("runs/a holds no checkpoint of step 7", status=2), 2),
        (WriteError("runs/a/metrics.jsonl cannot be written"), 1),
        (ConfigError("steps must be 1 or more"), 2),
        (FileNotFoundError("no such folder"), 2),
    ],
)
def test_a_failed_run_is_told_from_a_wrong_request(error, status, monkeypatch, capsys):
    """A supervisor starts the one again, and not the other."""

    def fail(*_, **__):
        raise error

    monkeypatch.setattr("jaxrl_llm.train.train", fail)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "--task", "digit_sort,length=2"])
    assert ended.value.code == status
    assert capsys.readouterr().err == f"jaxrl-llm: {error}\n"


@pytest.mark.slow
def test_a_run_on_a_full_disk_says_which_file(tmp_path, capsys, monkeypatch):
    begin = MetricsLog.__init__

    def filled(self, *inputs):
        begin(self, *inputs)
        full = os.open(FULL, os.O_WRONLY)  # behind the descriptor alone: who reads this device reads for ever
        os.dup2(full, self._metrics.fileno())
        os.close(full)

    monkeypatch.setattr(MetricsLog, "__init__", filled)
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", *gangs.FLAGS, "--warmup.max-steps", "0", "--out", str(tmp_path)])
    assert ended.value.code == 1
    assert capsys.readouterr().err.endswith(f"{tmp_path}/metrics.jsonl cannot be written: No space left on device\n")
