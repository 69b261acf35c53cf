"""Short forms of the campaigns in `faults/`, in processes of their own."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

FAULTS = pathlib.Path(__file__).parent / "faults"
sys.path.append(str(FAULTS))
import graders  # noqa: E402


def campaign(script, *flags, status=0):
    """What a campaign prints at its end; fails the test where its exit status is another."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    done = subprocess.run(
        [sys.executable, str(FAULTS / script), *flags],
        capture_output=True,
        text=True,
        check=False,
        timeout=1200,
        env=environment,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_killed_runs_end_as_whole_ones():
    told = campaign("kill.py", "--count", "4", "--nested", "1")
    assert told["failed"] == 0
    assert sum(told["places"].values()) == told["kills"] >= 4


@pytest.mark.long
def test_stopped_runs_save_and_go_on():
    told = campaign("sigterm.py", "--count", "3")
    assert told["failed"] == 0
    assert told["saved"] >= 1


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux") or not shutil.which("cc"), reason="needs Linux and cc")
def test_a_disk_that_fails_costs_no_step():
    assert campaign("disk.py", "--most", "2")["failed"] == 0


@pytest.mark.long
def test_hostile_answers_cost_no_right_one_its_grade():
    told = campaign("graders.py", "--count", "500", "--budget", "0.5", "--hangers", "8", "--repeats", "1")
    assert told["failed"] == {}
    assert set(told) == {"numeric", "math_verify", "code", "products", "spell_backward", "hangers", "failed"}


FIGURES = {"wrong": 0, "crashes": 0, "timeouts": 9, "max_s": 2.4, "processes": [2, 2], "same_keeper": True}


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("wrong", 1),
        ("crashes", 1),
        ("max_s", 2.6),
        ("processes", [2, 1]),
        ("processes", [3, 2]),
        ("same_keeper", False),
    ],
)
def test_a_campaign_of_graders_complains(name, bad):
    assert graders.complaints(FIGURES, 2.0) == []
    assert graders.complaints(FIGURES | {name: bad}, 2.0) == [name]


def test_a_grader_that_crashes_is_no_success(monkeypatch):
    """One process that an answer ends, and one that is not there afterwards."""
    monkeypatch.setattr(graders._Worker, "ask", graders._Worker.ask)  # which the clock replaces
    exchange = graders._Worker._exchange

    def fragile(one, message, seconds):
        if b"fragile" in message:
            os.kill(one.pid, 9)
        return exchange(one, message, seconds)

    monkeypatch.setattr(graders._Worker, "_exchange", fragile)
    clock = graders.Clock()
    assert graders.complaints(graders.fuzz(clock, "exact", ["2"] * 18, 2.0), 2.0) == []
    assert graders.complaints(graders.fuzz(clock, "exact", ["2"] * 9 + ["fragile"], 2.0), 2.0) == ["crashes"]
    monkeypatch.setattr(graders, "living", lambda pool: (1, 1))
    assert graders.complaints(graders.fuzz(clock, "exact", ["2"], 2.0), 2.0) == ["processes"]


@pytest.mark.long
def test_payloads_leave_nothing():
    told = campaign("injections.py", "--count", "60")
    assert told["payloads"] == 60
    assert told["files"] == told["hooked"] == []
    assert told["connections"] == told["processes"] == 0


@pytest.mark.long
def test_a_grader_that_evaluates_answers_is_noticed():
    told = campaign("injections.py", "--count", "60", "--broken", status=1)
    assert told["hooked"]
    assert told["files"]
