"""Benchmarks run, and leave no estimator out."""

import importlib
import json
import os
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

from jaxrl_llm import advantages, losses

ROOT = pathlib.Path(__file__).parents[1]
# Of the names that `jaxrl_llm.losses` offers, what is no estimator.
RECORDS = {"Aggregate", "Correction", "Objective", "Penalty", "Surrogate", "Tokens"}
MEASURES = {"bare_tokens", "effective_positives", "effective_sample_size"}


def transforms() -> set[str]:
    """Files of the rooms of `jaxrl_llm.advantages`: one public function each, of the same name."""
    rooms = pkgutil.walk_packages(advantages.__path__, f"{advantages.__name__}.")
    names = {module.name for module in rooms if not module.ispkg}
    return {name.rpartition(".")[2] for name in names if callable(getattr(*named(name), None))}


def named(module: str):
    """A module and the last part of its name."""
    return importlib.import_module(module), module.rpartition(".")[2]


def quick(name: str) -> str:
    """What the quick form of a benchmark prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


@pytest.mark.slow
def test_every_estimator_has_a_row_in_the_benchmark():
    printed = quick("estimators")
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", printed, re.M)
    assert {name for name, _ in rows} >= transforms() | set(losses.__all__) - RECORDS - MEASURES
    assert len(rows) == len({name for name, _ in rows})
    ratios = json.loads(printed.splitlines()[-1])["ratio"]
    assert {name.partition(".")[2] for name in ratios} == {name for name, _ in rows}
    assert all(ratio > 0 for ratio in ratios.values())


@pytest.mark.long
def test_the_variance_laboratory_is_timed_and_weighed():
    found = json.loads(quick("variance").splitlines()[-1])["found"]
    assert set(found) == {"enumeration", "comparison, 12", "comparison, 1"}
    for figures in found.values():
        assert figures["first"] > 0 and len(figures["later"]) == 2 and min(figures["later"]) > 0  # noqa: PT018
        assert figures["bytes"] > 0


@pytest.mark.long
def test_three_ways_to_do_a_sweep_are_timed():
    found = json.loads(quick("sweep").splitlines()[-1])
    assert set(found["sweep"]) == set(found["first"]) == {"together", "one program", "step by step"}
    assert all(len(times) == 1 and times[0] > 0 for times in found["sweep"].values())


@pytest.mark.long
def test_a_whole_step_is_timed_and_weighed():
    """Ours alone; TRL's side needs an environment of its own."""
    found = json.loads(quick("grpo_step").splitlines()[-1])["found"]
    assert set(found) == {"ours"}
    assert len(found["ours"]["seconds"]) == len(found["ours"]["parts"]) == 4
    assert min(found["ours"]["seconds"]) > 0
    assert found["ours"]["bytes"] > 10**8


@pytest.mark.long
def test_log_probabilities_by_blocks_are_weighed_and_timed():
    found = json.loads(quick("logp").splitlines()[-1])
    assert set(found["found"]) == {"blocks", "plain"}
    assert all(len(x["s"]) == 3 and min(x["s"]) > 0 for x in found["found"].values())
    assert found["ratio"]["scratch"] > 0


@pytest.mark.long
def test_an_update_is_timed_against_pytorch():
    for module in ("torch", "transformers"):
        pytest.importorskip(module, reason="needs the extra [parity]")
    found = json.loads(quick("train_step").splitlines()[-1])
    assert set(found["s"]) == {"ours", "torch"}
    assert all(len(times) == 3 and min(times) > 0 for times in found["s"].values())
    assert found["ratio"] > 0 and found["flop"] > 0  # noqa: PT018


@pytest.mark.long
def test_packing_is_timed_and_counted():
    found = json.loads(quick("packing").splitlines()[-1])
    assert found["tokens"]["acted"] < found["tokens"]["packed"] < found["tokens"]["padded"]
    assert len(found["ratios"]) == 5 and min(found["ratios"]) > 0  # noqa: PT018


@pytest.mark.long
def test_the_sampler_and_its_techniques_are_timed():
    found = json.loads(quick("decode").splitlines()[-1])["found"]
    assert len(found["techniques"]) == 7
    for pair in found["techniques"].values():
        assert set(pair) == {"with", "without"}
        assert all(len(times) == 2 and min(times) > 0 for times in pair.values())
    for rows in found.get("engines", {}).values():
        assert set(rows) == {"ours", "ours, sampled", "transformers", "limit"}


@pytest.mark.long
def test_what_saving_costs_is_timed():
    assert len(json.loads(quick("checkpoint").splitlines()[-1])["ratios"]) == 1
