"""Sweeps end with every run once, whatever happens on the way, and refuse before they compile."""

import dataclasses
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import pytest
import small
from rich.console import Console

from experiments import sweep as module
from experiments.arms import digest, read_arm
from experiments.ledger import Ledger, alone
from experiments.sweep import Sweep
from jaxrl_llm.config import Config, ConfigError
from jaxrl_llm.metrics import RunError

HERE = pathlib.Path(__file__).parent
SILENT = Console(quiet=True)


def lines(folder):
    return [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]


def untouchable(*_, **__):
    raise AssertionError("nothing may be compiled here")


KILLED = """
import os, signal, sys, pathlib
import small
from experiments.ledger import Ledger

append = Ledger.append

def torn(self, runs):
    if self.runs:
        text = b"".join(b'{"arm": "rloo", "seed": %d, "dig' % run["seed"] for run in runs[:1])
        with self.path.open("ab", buffering=0) as file:
            file.write(text)
        os.kill(os.getpid(), signal.SIGKILL)
    append(self, runs)

Ledger.append = torn
small.sweep(seeds=range(5), chunk=2).run(pathlib.Path(sys.argv[1]), quiet=True)
"""


def test_a_killed_sweep_goes_on_without_loss_or_repetition(tmp_path):
    """Killed in the middle of writing the second of three chunks; the last chunk is filled up with copies."""
    # The flags of this process stay: numbers of programs compiled otherwise differ in the last bits.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE)])}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(HERE.parents[1] / ".jax_cache")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "killed")]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
    before = (tmp_path / "killed/runs.jsonl").read_bytes()
    assert before.count(b"\n") == 2
    assert not before.endswith(b"\n")

    said = io.StringIO()
    again = small.sweep(seeds=range(5), chunk=2)
    records = again.run(tmp_path / "killed", console=Console(file=said, width=200))
    assert "torn by a kill" in said.getvalue()
    assert [record["seed"] for record in records] == [0, 1, 2, 3, 4]
    assert sorted(line["seed"] for line in lines(tmp_path / "killed")) == [0, 1, 2, 3, 4]
    assert (tmp_path / "killed/runs.jsonl").read_bytes().startswith(before[: before.rfind(b"\n") + 1])

    at_once = small.sweep(seeds=range(5), chunk=2).run(tmp_path / "whole", console=SILENT)
    for one, other in zip(records, at_once, strict=True):
        assert one["figures"] == other["figures"]
        assert one["curves"]["reward/mean"] == other["curves"]["reward/mean"]
    assert len({str(record["curves"]["reward/mean"]) for record in at_once}) == 5


def test_what_is_finished_is_not_run_again_and_what_changed_is(tmp_path, monkeypatch):
    """Arms that differ in the learning rate share a program; a record is found by arm, seed and settings."""
    arms = {"slow": {"learning_rate": 1e-4}, "fast": {"learning_rate": 1e-2}}
    records = small.sweep(arms, steps=2).run(tmp_path, console=SILENT)
    assert [(record["arm"], record["seed"]) for record in records] == [
        *(("slow", 0), ("slow", 1)),
        *(("fast", 0), ("fast", 1)),
    ]
    assert {record["together"] for record in records} == {4}
    assert records[0]["curves"]["grad_norm"] != records[2]["curves"]["grad_norm"]
    monkeypatch.setattr(module, "compiled", untouchable)
    assert small.sweep(arms, steps=2).run(tmp_path, console=SILENT) == records
    assert small.sweep(arms, steps=2, checkpoint_every=7).run(tmp_path, console=SILENT) == records
    with pytest.raises(AssertionError, match="nothing may be compiled"):
        small.sweep(arms, steps=2, temperature=0.9).run(tmp_path, console=SILENT)
    with pytest.raises(AssertionError, match="nothing may be compiled"):
        small.sweep(arms, seeds=[0, 1, 2], steps=2).run(tmp_path, console=SILENT)


@pytest.mark.long
def test_a_task_that_grades_on_the_host_goes_run_by_run(tmp_path, monkeypatch):
    """The same task, told to grade on the host, gives the same answers."""
    one = small.sweep(steps=2).run(tmp_path / "device", console=SILENT)
    monkeypatch.setattr(module, "compiled", untouchable)
    monkeypatch.setattr(jax, "devices", lambda: jax.local_devices()[:1])
    task = small.BASE.task
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    grade = lambda *arrays: task.grade(*jax.tree.map(jnp.asarray, arrays))  # noqa: E731
    host = types.SimpleNamespace(**fields | {"on_device": False, "spec": "on the host", "grade": grade})
    other = small.sweep(steps=2, task=host).run(tmp_path / "host", console=SILENT)
    assert [record["figures"] for record in one] == [record["figures"] for record in other]
    assert {record["together"] for record in other} == {1}


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: small.sweep({"a": {"recipe": "rlo"}}), "arm 'a'.*did you mean 'rloo'"),
        (lambda: small.sweep({"a": {"learning_rat": 1.0}}), "arm 'a'.*did you mean 'learning_rate'"),
        (lambda: small.sweep({"a": {"warmup": {"max_step": 1}}}), "arm 'a'.*did you mean 'max_steps'"),
        (lambda: small.sweep({"a": {"seed": 3}}), "the sweep gives the seed"),
        (lambda: small.sweep({"a": {"answers_per_prompt": 1}}), "arm 'a'.*at least 2"),
        (lambda: small.sweep({"a": {}, "b": {"recipe": "rloo"}}), "'a' and 'b' are the same run"),
        (lambda: small.sweep(seeds=[1, 1]), "seeds must be different"),
        (lambda: small.sweep(seeds=[-1]), "seed must be an integer"),
        (lambda: small.sweep(chunk=0), "chunk must be 1"),
        (lambda: Sweep(base=small.BASE, arms={}, seeds=[0]), "at least one arm"),
        (lambda: read_arm("rloo@steps"), "FIELD=VALUE"),
    ],
)
def test_a_wrong_sweep_is_refused_before_anything_is_compiled(make, words, monkeypatch):
    monkeypatch.setattr(module, "on_one_device", untouchable)
    with pytest.raises(ConfigError, match=words):
        make()


def test_arms_of_a_command_line():
    assert read_arm("rloo") == ("rloo", {"recipe": "rloo"})
    name, arm = read_arm("grpo,eps=1e-6@learning_rate=1e-3@schedule=constant,warmup=0")
    assert name == "grpo,eps=1e-6@learning_rate=1e-3@schedule=constant,warmup=0"
    assert arm == {"recipe": "grpo,eps=1e-6", "learning_rate": 1e-3, "schedule": "constant,warmup=0"}


def test_a_digest_reads_every_field_that_moves_a_number():
    """A field that is neither silent nor in the digest would let a sweep take old runs for new ones."""
    silent = {"mesh", "checkpoint_every", "keep_checkpoints", "samples_every", "variance_every", "variance_estimators"}
    fields = small.BASE.to_json()
    for name in fields:
        other = type("Other", (), {"to_json": lambda self, n=name: fields | {n: "another"}})()
        assert (digest(other) == digest(small.BASE)) == (name in silent), name
    assert {field.name for field in dataclasses.fields(Config)} == set(fields)


def test_a_damaged_line_and_a_second_writer_are_refused(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"arm": "a", "seed": 0, "digest": "x"}\nnonsense\n')
    with pytest.raises(RunError, match="line 2"):
        Ledger(tmp_path, print)
    with alone(tmp_path), pytest.raises(RunError, match="held by another"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass


@pytest.mark.long
def test_the_command_ends_with_a_table_and_a_plot(tmp_path):
    root = HERE.parents[1]
    command = [sys.executable, "experiments/sweep.py", "rloo", "grpo,kl_coefficient=0", "--smoke"]
    command += ["--task", "addition,digits=1,heldout=20", "--out", str(tmp_path / "try")]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "4/4 runs" in run.stdout
    folder = tmp_path / "try-smoke"
    assert (folder / "plot.png").stat().st_size > 10_000
    assert "| rloo | 2 |" in (folder / "table.md").read_text()
    assert len((folder / "table.csv").read_text().splitlines()) == 5
    wrong = subprocess.run([*command[:2], "rlo"], cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert wrong.returncode == 2
    assert "did you mean 'rloo'" in wrong.stderr
