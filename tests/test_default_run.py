"""The first command of the README keeps its promise."""

import json
import os
import subprocess
import sys

import jax
import pytest


@pytest.mark.slow
def test_the_default_run_learns_to_add(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    command = [sys.executable, "-m", "jaxrl_llm", "train"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "addition-grpo-seed0"
    summary = json.loads((folder / "summary.json").read_text())
    assert 0.2 <= summary["before"]["eval/accuracy"] <= 0.6
    assert summary["after"]["eval/accuracy"] >= 0.9
    assert summary["constant_accuracy"] < 0.1
    assert "above that of the best constant answer" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout
    assert (folder / "report.html").exists()
