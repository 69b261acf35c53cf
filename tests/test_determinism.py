"""The switches of `--deterministic`: set before JAX begins, checked, and tried."""

import itertools
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from jaxrl_llm import determinism, distributed
from jaxrl_llm.agreement import DisagreementError, require_equal_start
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.determinism import XLA, require_switches, switch_on, verify
from jaxrl_llm.metrics import RunError
from jaxrl_llm.runs import check_folder, read_config, write_config
from jaxrl_llm.sharding import MeshShape, make_mesh
from jaxrl_llm.tasks import addition

FLAGS = " ".join(f"--{name}={value}" for name, value in XLA.items())


@pytest.fixture
def switched(monkeypatch):
    """As if the program had been started with the switches."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} {FLAGS}")
    monkeypatch.setenv("NCCL_ALGO", "Tree")


@pytest.mark.parametrize("devices", [1, 8])
def test_the_probe_gives_the_same_bits(switched, devices):
    said = verify(make_mesh(MeshShape(), jax.devices()[:devices]))
    assert said.startswith(f"deterministic: {FLAGS}; matrix product, scatter, sum gave the same bits 8 times. ")
    assert "CPUs and TPUs need none of it and pay nothing; on GPUs steps get slower" in said


def test_bits_that_differ_are_noticed(switched):
    numbers = itertools.count()
    unstable = lambda: {"sum": jnp.float32(next(numbers) // 7), "scatter": jnp.zeros(3)}  # noqa: E731
    with pytest.raises(ConfigError, match="8 runs of one sum gave different bits"):
        verify(make_mesh(MeshShape(), jax.devices()[:1]), unstable)


def test_a_switch_that_is_not_set_is_named(switched, monkeypatch):
    require_switches()
    monkeypatch.setenv("XLA_FLAGS", FLAGS.replace("ops=true", "ops=false"))
    with pytest.raises(ConfigError, match=re.escape("must have --xla_gpu_deterministic_ops=true, and has false")):
        require_switches()
    monkeypatch.setenv("XLA_FLAGS", FLAGS)
    monkeypatch.delenv("NCCL_ALGO")
    with pytest.raises(ConfigError, match="NCCL_ALGO must be set"):
        require_switches()


def test_it_is_too_late_once_jax_has_begun():
    jax.devices()
    with pytest.raises(ConfigError, match=re.escape(f"JAX has begun; start the program with XLA_FLAGS='{FLAGS}'")):
        switch_on()


@pytest.mark.parametrize("flag", ["", "--xla_gpu_no_such_switch=1"])
def test_the_command_sets_them_before_jax_begins(flag, tmp_path):
    """XLA ends a program with a flag that it does not know: so it reads those of the command, and knows them."""
    name, _, value = flag.removeprefix("--").partition("=")
    code = f"from jaxrl_llm import determinism as d; d.XLA |= {{'{name}': '{value}'}} if '{name}' else {{}}"
    code += "; from jaxrl_llm.cli import main; main(['train', '--deterministic', '--prompts-per-step', '100000'])"
    environment = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "NCCL_ALGO")}
    program = [sys.executable, "-c", code]
    done = subprocess.run(
        program, check=False, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    if flag:
        assert "Unknown flag in XLA_FLAGS: --xla_gpu_no_such_switch" in done.stderr
    else:
        assert done.returncode == 2
        assert "training problems: at most" in done.stderr


def test_switches_of_the_user_stay(monkeypatch):
    monkeypatch.setattr(determinism, "backends_are_initialized", lambda: False)  # as before JAX has begun
    monkeypatch.setenv("XLA_FLAGS", "--xla_mine=3 --xla_gpu_autotune_level=0")
    monkeypatch.setenv("NCCL_ALGO", "Tree")
    switch_on()
    wanted = "--xla_mine=3 --xla_gpu_autotune_level=0 --xla_gpu_deterministic_ops=true"
    assert (os.environ["XLA_FLAGS"], os.environ["NCCL_ALGO"]) == (wanted, "Tree")
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=4")
    with pytest.raises(determinism.ConfigError, match="autotune_level=0, and has 4"):
        switch_on()


def test_it_is_a_part_of_the_run(tmp_path):
    """It changes numbers on GPUs: a run is not resumed without it, or with it where it was begun without."""
    config = Config(task=addition(digits=1), warmup=WarmUp(max_steps=0))
    for begun in (False, True):
        folder = tmp_path / str(begun)
        write_config(folder, config, {"data": 1, "fsdp": 8, "tensor": 1}, begun)
        assert json.loads((folder / "config.json").read_text())["deterministic"] is begun
        assert Config.from_json(read_config(folder)).to_json() == config.to_json()
        assert check_folder(config, folder, True, begun) == folder
        with pytest.raises(RunError, match=f"was run with deterministic={begun}, not {not begun}: resume it as"):
            check_folder(config, folder, True, not begun)


def test_processes_started_with_and_without_it_disagree(monkeypatch):
    config = Config(task=addition(digits=1), warmup=WarmUp(max_steps=0))
    monkeypatch.setattr(distributed, "several", lambda: True)

    def others(text):
        return [text, json.dumps(json.loads(text) | {"deterministic": False}), text]

    monkeypatch.setattr(distributed, "told", others)
    require_equal_start(config, False)
    with pytest.raises(DisagreementError, match="process 1 was started with deterministic false, the others with true"):
        require_equal_start(config, True)
