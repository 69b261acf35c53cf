"""The supervisor notices death, silence and frost, restarts, passes SIGTERM on, and says what it was."""

import os
import pathlib
import re
import signal
import sys
import threading
import time

import pytest

from jaxrl_llm import gang, supervise
from jaxrl_llm.cli import main
from jaxrl_llm.gang import Care

STUB = str(pathlib.Path(__file__).with_name("watched_process.py"))
QUICK = {"stall_floor": 0.5, "first_limit": 20.0, "grace": 3.0}


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    """Processes that need no JAX, and so begin at once."""
    monkeypatch.setattr(gang, "PROGRAM", [sys.executable, STUB])
    monkeypatch.setattr(gang, "SETTLE", 0.3)


def watch(tmp_path, *deeds, **care):
    """Exit status, and how often process 0 was started."""
    status = supervise.supervise(["train", *deeds], Care(logs=tmp_path / "logs", **(QUICK | care)))
    return status, (tmp_path / "logs" / "starts0").read_text().splitlines()


def test_a_run_that_ends_is_left_alone(tmp_path, capfd):
    status, starts = watch(tmp_path, procs=2)
    assert status == 0
    (start,) = starts
    assert "--num-processes 2 --process-id 0" in start
    assert "--resume" not in start
    out, err = capfd.readouterr()
    assert "rank 0 is done" in out
    assert "rank 1" not in out, "process 1 prints into its log alone"
    assert "done" in err


@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("die", "process 1 was killed by SIGKILL in stage 'step', step 4"),
        ("sleep", r"no sign of life from process 1 for .* in stage 'step', step 4"),
        ("freeze", r"process 1 in stage 'step', step 4: frozen by SIGSTOP"),
    ],
)
def test_a_lost_process_is_named_and_all_resume(deed, message, tmp_path, capfd):
    status, starts = watch(tmp_path, f"1.1={deed}", "1.0=follow" if deed == "die" else "1.0=work", procs=2)
    assert status == 0
    assert [("--resume" in start) for start in starts] == [False, True]
    err = capfd.readouterr().err
    assert re.search(message, err), err
    assert "restart 1 of 3: resumed" in err


@pytest.mark.parametrize("deed", ["1.0=grade", "1.1=grade"])
def test_work_that_shows_signs_of_life_is_left_alone(deed, tmp_path, capfd):
    """And so is the other process, which waits for it."""
    other = "1.1=lag" if deed == "1.0=grade" else "1.0=lag"
    status, starts = watch(tmp_path, deed, other, procs=2)
    assert (status, len(starts)) == (0, 1), capfd.readouterr().err


def test_work_that_falls_silent_in_the_end_is_not(tmp_path, capfd):
    status, starts = watch(tmp_path, "1.0=tire", procs=2)
    assert (status, len(starts)) == (0, 2)
    assert "no sign of life from process 0 for" in capfd.readouterr().err


def test_what_lives_on_is_looked_at_when_another_ends_itself(tmp_path, capfd):
    watch(tmp_path, "1.1=abort", "1.0=freeze", procs=2, stall_floor=30.0)
    err = capfd.readouterr().err
    assert "process 1 was killed by SIGABRT" in err
    assert "process 0 in stage 'step', step 4: frozen by SIGSTOP" in err


def test_the_stack_of_what_hangs_is_in_its_log(tmp_path, capfd):
    watch(tmp_path, "1.0=sleep")
    err = capfd.readouterr().err
    assert "at act (" in err or "at main (" in err, err
    (log,) = tmp_path.glob("logs/*/attempt1-process0.log")
    assert "most recent call first" in log.read_text()
    assert "in act" in log.read_text()


def test_a_wrong_request_is_not_made_again(tmp_path, capfd):
    status, starts = watch(tmp_path, "1.1=wrong", procs=2)
    assert (status, len(starts)) == (2, 1)
    assert "the request is wrong" in capfd.readouterr().err


def test_it_gives_up(tmp_path, capfd):
    status, starts = watch(tmp_path, *(f"{n}.0=die" for n in (1, 2, 3, 4)), max_restarts=2)
    assert (status, len(starts)) == (1, 3)
    assert "given up after 2 restarts" in capfd.readouterr().err


def test_what_fails_at_the_same_place_twice_is_not_tried_again(tmp_path, capfd):
    status, starts = watch(tmp_path, *(f"{n}.0=fail" for n in (1, 2, 3, 4)))
    assert (status, len(starts)) == (1, 2)
    assert "the same as before" in capfd.readouterr().err


@pytest.mark.parametrize(("deed", "code"), [("wait", 130), ("deaf", 1)])
def test_sigterm_is_passed_on_and_not_waited_for_for_ever(deed, code, tmp_path, capfd):
    def ask():
        while (
            not list(tmp_path.glob("logs/*/attempt1-process1.log"))
            or "begins" not in next(tmp_path.glob("logs/*/attempt1-process1.log")).read_text()
        ):
            time.sleep(0.02)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    status, starts = watch(tmp_path, f"1.0={deed}", f"1.1={deed}", procs=2, stall_floor=30.0)
    assert (status, len(starts)) == (code, 1)
    assert ("stopped on request" if deed == "wait" else "not done within 3 s") in capfd.readouterr().err


def test_nothing_but_train_is_supervised(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["supervise", "--", "report", "runs/a"])
    assert ended.value.code == 2
    assert "supervise runs `train`" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [{"procs": 0}, {"max_restarts": -1}, {"stall_floor": 0.0}, {"grace": -1.0}])
def test_care_is_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Care(**wrong)
