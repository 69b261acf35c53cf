"""Gradients of the divergence and self-normalised weights: committed verdicts, and numbers that refute."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import pytest

from experiments import kl_gradients, off_policy_frontier, problems
from experiments.answers import command_line, decided


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def measured():
    with jax.enable_x64(True):
        return kl_gradients.measured()


@pytest.mark.long
def test_a_small_run_writes_its_answer(tmp_path):
    arguments = ["--smoke", "--out", str(tmp_path)]
    word = command_line(kl_gradients.NAME, kl_gradients.QUESTION, kl_gradients.run, arguments)
    assert word == "reproduced"
    assert {path.name for path in tmp_path.iterdir()} == {"answer.md", "table.csv", "plot.png"}


def test_the_committed_answer_is_there():
    out = pathlib.Path(problems.__file__).parent / "results" / kl_gradients.NAME / "answer.md"
    assert "**Verdict: reproduced**" in out.read_text(encoding="utf-8")


def test_the_figures_of_the_reference(measured):
    """The losses that train have the bias and variance of the closed forms, given to three or four digits."""
    found, _ = measured
    for way, figure, value, digits in (
        ("k1 in the reward", "trace_var", 0.449, 3),
        ("k1 to go", "trace_var", 0.310, 3),
        ("exact in loss and to go", "trace_var", 0.0263, 4),
        ("k2 in the loss, tokens", "bias_norm", 0.0244, 4),
        ("k3 in the loss, tokens", "bias_norm", 0.0478, 4),
    ):
        assert abs(getattr(found[way], figure) - value) <= 0.5 * 10**-digits


def test_a_way_on_the_other_side_is_refuted(measured):
    found, gap = measured
    assert decided(kl_gradients.parts(found, gap))[0] == "reproduced"
    assert decided(kl_gradients.parts(found, 1e-3))[0] == "refuted"
    for way, change in (
        ("k1 to go", {"bias_norm": 1e-3}),
        ("k3 in the reward", {"bias_norm": 0.0}),
        ("k1 in the loss", {"mean_grad": jnp.ones(9)}),
        ("exact in the loss, tokens", {"mean_grad": jnp.ones(9)}),
        ("exact in loss and to go", {"trace_var": 1.0}),
    ):
        bad = found | {way: dataclasses.replace(found[way], **change)}
        assert decided(kl_gradients.parts(bad, gap))[0] == "refuted"


def test_self_normalised_weights_of_the_frontier():
    """Bias and variance of the reference text, given to four digits."""
    value = float(problems.facts(problems.bigram()).value)
    found = off_policy_frontier.found_of(off_policy_frontier.NORMALISED, 1.0, value)
    assert abs(found.bias_norm - 0.0262) <= 0.5e-4
    assert abs(found.trace_var - 0.1726) <= 0.5e-4


def test_nothing_is_claimed_of_a_self_normalised_weight():
    row = {"bias": 0.0, "variance": 1.0, "moved by the baseline": 0.0, "staleness": 2.0}
    rows = [row | {"weight": name, "variance": 3.0} for name in off_policy_frontier.PLAIN]
    rows.append(row | {"weight": "whole answer", "staleness": 0.0})
    cut = {"bias": 0.1, "variance": 1.0, "moved by the baseline": 0.1}
    rows += [row | cut | {"weight": name} for name in ("CISPO", "GSPO")]
    still = row | cut | {"weight": off_policy_frontier.NORMALISED, "moved by the baseline": 0.0}
    assert decided(off_policy_frontier.parts([*rows, still]))[0] == "reproduced"
    rows[-1]["moved by the baseline"] = 0.0
    assert decided(off_policy_frontier.parts([*rows, still]))[0] == "refuted"
