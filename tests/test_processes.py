"""Several processes are one run: the same numbers, one writer, and an odd one is named. Real processes on loopback."""

import pathlib
import signal
import subprocess
import sys
import time

import gangs
import numpy as np
import pytest

ODD = str(pathlib.Path(__file__).with_name("odd_rank.py"))
BOUND = 2e-6  # of a figure of a step, relative and absolute, between one process and several


@pytest.mark.slow
def test_a_process_with_another_configuration_is_refused_by_name(tmp_path):
    first, second = gangs.ranks(2)
    train = ["-m", "jaxrl_llm", "train", *gangs.FLAGS, "--out", str(tmp_path / "run")]
    results = gangs.finish([[*train, *first], [*train, *second, "--seed", "5"]], tmp_path / "logs", 1, 60.0)
    for status, text in results:
        assert status == 1, text
        assert "process 1 was started with seed 5, the others with 0" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_processes_are_one_run(tmp_path):
    """Where the devices are is all the same to the bits, as long as there are several processes; a single process adds
    up in another order."""
    four, two, one = (gangs.train(tmp_path, *shape) for shape in ((4, 1), (2, 2), (1, 4)))
    assert [row["step"] for row in gangs.rows(two)] == [1, 2, 3, 4, 5, 6]
    assert gangs.rows(four) == gangs.rows(two)
    for name in ("samples.jsonl", "summary.json"):
        assert (four / name).read_bytes() == (two / name).read_bytes()
    assert (one / "samples.jsonl").read_bytes() == (two / "samples.jsonl").read_bytes()
    for ours, theirs in zip(gangs.rows(one), gangs.rows(two), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=BOUND, atol=BOUND, err_msg=f"{name} of {ours['step']}")


@pytest.mark.long
def test_processes_share_a_task_that_grades_text(tmp_path):
    table = tmp_path / "sums.csv"
    table.write_text("question,answer\n" + "".join(f"{a}+{b}=,{a + b}\n" for a in range(5) for b in range(4)))
    task = f"rows:{table},prompt=question,answer_length=4,heldout=4,workers=1"
    four, two = (gangs.train(tmp_path, *shape, "--task", task) for shape in ((4, 1), (2, 2)))
    assert gangs.rows(four) == gangs.rows(two)
    assert [row["ungraded/timeouts"] for row in gangs.rows(two)] == [0] * 6


@pytest.mark.long
@pytest.mark.parametrize(
    ("deed", "message"),
    [
        ("flip", "step 2: process 1 disagrees with the others in parameter ['final_norm']['scale']"),
        ("raise", "process 1: AttributeError"),
    ],
)
def test_a_process_that_becomes_odd_is_named_by_all(deed, message, tmp_path):
    table = tmp_path / "sums.csv"
    table.write_text("question,answer\n" + "".join(f"{a}+{b}=,{a + b}\n" for a in range(5) for b in range(4)))
    flags = [*gangs.FLAGS, "--task", f"rows:{table},prompt=question,answer_length=4,heldout=4,workers=1"]
    commands = [[ODD, "1", deed, "train", *flags, *rank, "--out", str(tmp_path / "run")] for rank in gangs.ranks(2)]
    for rank, (status, text) in enumerate(gangs.finish(commands, tmp_path / "logs", 2)):
        assert status == 1, f"{rank}: {text[-3000:]}"
        assert message in text or (deed == "raise" and rank == 1 and "AttributeError" in text), text[-3000:]


@pytest.mark.long
def test_sigterm_to_the_supervisor_saves_one_step_on_all_and_the_run_goes_on(tmp_path):
    out, whole = tmp_path / "run", gangs.train(tmp_path, 2, 1, "--steps", "60")
    flags = [*gangs.FLAGS, "--steps", "60", "--out", str(out)]
    care = ["-m", "jaxrl_llm", "supervise", "--procs", "2", "--logs", str(tmp_path / "logs"), "--"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        supervisor = subprocess.Popen(
            [sys.executable, *care, "train", *flags], env=gangs.environment(1), stdout=file, stderr=file
        )
    try:
        deadline = time.monotonic() + 200
        while (
            not (out / "metrics.jsonl").exists() or not 3 < len((out / "metrics.jsonl").read_text().splitlines()) < 60
        ):
            assert supervisor.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        supervisor.send_signal(signal.SIGTERM)
        assert supervisor.wait(60) == 0, log.read_text()
    finally:
        supervisor.kill()
    assert "stopped on request" in log.read_text()
    last = gangs.rows(out)[-1]["step"]
    assert last < 60
    assert (out / "checkpoints" / str(last)).is_dir()
    commands = [["-m", "jaxrl_llm", "train", *flags, "--resume", *rank] for rank in gangs.ranks(2)]
    for status, text in gangs.finish(commands, tmp_path / "again", 1):
        assert status == 0, text[-3000:]
    assert gangs.rows(out) == gangs.rows(whole)
