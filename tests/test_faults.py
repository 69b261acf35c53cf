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
    assert told["numeric"]["wrong"] == told["math_verify"]["wrong"] == 0


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
