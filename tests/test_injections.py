"""No payload becomes code in a grader, and each way in which one could is noticed."""

import os
import pathlib
import subprocess
import sys
import time

import pytest

FAULTS = pathlib.Path(__file__).parent / "faults"
sys.path.append(str(FAULTS))
import injections  # noqa: E402
from payloads import payloads  # noqa: E402

TEXTS = ["1+7340251", "7340251*2", *payloads(80, 1, "/nowhere/7340251-{}", 9)]


def test_no_payload_is_compiled_or_run():
    assert injections.hooked(TEXTS) == []


def test_sums_as_the_library_reads_them_are_noticed():
    """Without `plain_sums`, math-verify has sympy evaluate them."""
    assert any("Integer (7340251" in offence for offence in injections.hooked(TEXTS[:3], "--sympy"))


def test_rows_that_are_evaluated_and_templates_without_a_sandbox_are_noticed(tmp_path):
    """A template is code of Jinja's either way: it is known by what it does, a row by being compiled."""
    template = "{{ cycler.__init__.__globals__.os.popen('touch %s').read() }}" % (tmp_path / "7340251")
    assert injections.hooked([template]) == []
    offences = injections.hooked([template, "7340251"], "--open")
    assert {offence.partition(":")[0] for offence in offences} >= {"compile", "subprocess.Popen"}
    assert list(tmp_path.iterdir()) == []


def test_a_grader_that_evaluates_is_noticed(tmp_path):
    offences = injections.hooked(payloads(40, 2, str(tmp_path / "7340251-{}"), 9), "--broken")
    assert {offence.partition(":")[0] for offence in offences} >= {"compile", "exec"}
    injections.sleeping(end=True)


def test_what_payloads_do_where_they_can_is_seen(tmp_path):
    """The same watch that sees nothing at the graders of this package."""
    with injections.Watch(tmp_path) as watch:
        found = left_behind(watch, payloads(250, 0, watch.file, watch.port))
    assert found["files"]
    assert found["connections"]
    assert found["processes"]
    deadline = time.monotonic() + 10.0
    while injections.sleeping(end=False) and time.monotonic() < deadline:  # what was killed takes a moment to end
        time.sleep(0.02)
    assert injections.sleeping(end=False) == 0


def left_behind(watch, texts):
    """Of a grader that evaluates texts, in processes of their own."""
    child = "import sys; sys.path.insert(0, sys.argv[1]); import injections; injections.answer(sys.argv[2:], True)"
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", child, str(FAULTS), *(text.replace("\0", "") for text in texts)],
        check=True,
        cwd=watch.folder,
        env={**os.environ, "PYTHONPATH": str(FAULTS.parents[1])},
    )
    return watch.found()


@pytest.mark.parametrize("seed", range(3))
def test_payloads_are_different_and_marked(seed):
    texts = payloads(500, seed, "/nowhere/7340251-{}", 9)
    assert len(set(texts)) == 500
    assert all("7340251" in text for text in texts)
