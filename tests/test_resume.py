"""A run that is interrupted, killed and resumed ends in the same bits as one that was left alone."""

import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

FLAGS = shlex.split("""
    --task digit_sort,length=2,heldout=20 --steps 12 --prompts-per-step 8
    --answers-per-prompt 4 --epochs 2 --eval-every 4 --eval-problems 16 --eval-samples 2 --checkpoint-every 5
    --samples-every 3 --warmup.max-steps 20 --warmup.batch 16 --warmup.accuracy 1 --model.layers 1 --model.width 16
    --model.heads 2 --model.kv-heads 1 --model.head-size 8 --model.mlp-width 16
""")


def start(out: pathlib.Path, *more: str) -> subprocess.Popen:
    """The command line, on one device, with the compile cache of the tests."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, "-m", "jaxrl_llm", "train", *FLAGS, "--out", str(out), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, code: int = 0) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == code, text
    return text


def stop_at(process: subprocess.Popen, out: pathlib.Path, rows: int, number: signal.Signals) -> None:
    """Send a signal as soon as the log holds so many rows."""
    log = out / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if log.exists() and log.read_bytes().count(b"\n") >= rows:
            process.send_signal(number)
            return
        time.sleep(0.001)
    raise AssertionError(f"the run ended before row {rows}: {process.communicate()[0]}")


def rows(out: pathlib.Path) -> list[dict]:
    """The log without wall-clock figures."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in lines]


def final_state(out: pathlib.Path) -> dict:
    from jaxrl_llm.checkpoint import Checkpoints
    from jaxrl_llm.config import Config
    from jaxrl_llm.programs import Programs
    from jaxrl_llm.runs import read_config

    programs = Programs(Config.from_json(read_config(out)), devices=jax.devices()[:1])
    with Checkpoints(out / "checkpoints") as checkpoints:
        return jax.tree.map(np.asarray, checkpoints.restore(programs.state_like(), 12))


# State beside parameters and moments: a second network with moments of its own; a reference that moves.
RECIPES = {"a second network": "prime,low=0,high=1", "a moving reference": "t1,kl_coefficient=0.1"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        pytest.param(RECIPES["a second network"], id="a second network"),
        pytest.param(RECIPES["a moving reference"], id="a moving reference", marks=pytest.mark.long),
    ],
)
def test_interrupted_killed_and_resumed_is_bit_identical(recipe, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    method = ("--recipe", recipe)
    finish(start(whole, *method))
    process = start(broken, *method)
    stop_at(process, broken, 2, signal.SIGINT)
    text = finish(process, 130)
    assert "--resume goes on from there" in text
    process = start(broken, "--resume", *method)
    stop_at(process, broken, 8, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    finish(start(broken, "--resume", *method))
    assert [row["step"] for row in rows(broken)] == list(range(1, 13))
    assert rows(broken) == rows(whole)
    assert (broken / "samples.jsonl").read_bytes() == (whole / "samples.jsonl").read_bytes()
    assert json.loads((broken / "summary.json").read_text()) == json.loads((whole / "summary.json").read_text())
    jax.tree.map(np.testing.assert_array_equal, final_state(broken), final_state(whole))
    assert (broken / "report.html").exists()


@pytest.mark.slow
def test_killed_during_warm_up_starts_over(tmp_path):
    out = tmp_path / "run"
    process = start(out)
    deadline = time.monotonic() + 120
    while not (out / "config.json").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    finish(process, -signal.SIGKILL)
    assert "holds a run already" in finish(start(out), 2)
    finish(start(out, "--resume"))
    assert [row["step"] for row in rows(out)] == list(range(1, 13))
    assert "seed=0" in finish(start(out, "--resume", "--seed", "1"), 2)
