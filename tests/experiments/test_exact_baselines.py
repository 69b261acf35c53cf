"""Baselines by enumeration and simulation: small runs, committed verdicts, and numbers that refute."""

import dataclasses
import pathlib

import jax
import numpy as np
import pytest

from experiments import atlas, problems, shrinkage, tracker_drift
from experiments.answers import command_line, decided
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.moments import VarianceSplit

VERDICTS = {shrinkage: "refuted", tracker_drift: "refuted"}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.long
@pytest.mark.parametrize("experiment", VERDICTS, ids=lambda module: module.NAME)
def test_a_small_run_writes_its_answer(experiment, tmp_path):
    word = command_line(experiment.NAME, experiment.QUESTION, experiment.run, ["--smoke", "--out", str(tmp_path)])
    assert f"**Verdict: {word}**" in (tmp_path / "answer.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"answer.md", "table.csv", "plot.png"}


@pytest.mark.parametrize("experiment", VERDICTS, ids=lambda module: module.NAME)
def test_the_committed_answer_is_there(experiment):
    out = pathlib.Path(problems.__file__).parent / "results" / experiment.NAME / "answer.md"
    assert f"**Verdict: {VERDICTS[experiment]}**" in out.read_text(encoding="utf-8")


def test_shrinkage_that_leaks_or_gains_nothing_is_refuted():
    row = {"G": 2, "variance / leave-one-out's": 0.7, "low": 0.6, "high": 0.8}
    row |= {"largest bias over the gradient": 0.0, "least bias over the gradient": 0.1}
    rows = []
    for b, price in ((4, 1.2), (8, 1.0), (16, 1.0)):
        over = {"over fixed λ": price, "its low": price - 0.02, "its high": price + 0.02}
        rows += [row | over | {"prompts": b, "estimator": name} for name in (shrinkage.LEFT_OUT, shrinkage.RELEASED)]
    assert decided(shrinkage.parts(rows))[0] == "reproduced"
    for at, change in (
        (0, {"largest bias over the gradient": 1e-3}),
        (1, {"least bias over the gradient": 0.0}),
        (0, {"over fixed λ": 1.0, "its low": 0.9, "its high": 1.02}),
        (4, {"over fixed λ": 1.2, "its low": 1.1, "its high": 1.3}),
        (2, {"low": 1.1, "high": 1.2}),
    ):
        bad = [x | change if n == at else x for n, x in enumerate(rows)]
        assert decided(shrinkage.parts(bad))[0] == "refuted"


def test_a_fixed_weight_gives_a_parabola_between_the_two_baselines():
    tables = problems.pool(2, seed=3)
    spread = [moments(shrinkage.fixed(x), tables, 2, prompts=None).trace_var for x in (0.0, 0.5, 1.0, 0.3)]
    np.testing.assert_allclose(spread[3], shrinkage.parabola(*spread[:3], 0.3), rtol=1e-9)
    plain = moments(shrinkage.leave_one_out(), tables, 2, prompts=None).trace_var
    np.testing.assert_allclose(spread[0], plain, rtol=1e-9)


def test_a_tracker_that_crosses_elsewhere_is_refuted():
    row = {"problem": "B", "ρ": 0.5, "worth": 20.0, "G": 4, "drift": 0.0, "reachable": True}
    ratio = lambda x: {"variance / leave-one-out's": x, "low": x - 0.01, "high": x + 0.01}  # noqa: E731
    at = lambda factor: {"drift": -factor, "of the predicted": factor}  # noqa: E731
    rows = [row | ratio(0.9), row | {"G": 32} | ratio(1.1), row | at(0.7) | ratio(0.95), row | at(1.3) | ratio(1.05)]
    assert decided(tracker_drift.parts(rows))[0] == "reproduced"
    for n, wrong in ((0, 1.1), (1, 0.9), (2, 1.05), (3, 0.95)):
        bad = [x | ratio(wrong) if m == n else x for m, x in enumerate(rows)]
        assert decided(tracker_drift.parts(bad))[0] == "refuted"
    unreachable = rows[3] | {"reachable": False} | ratio(0.5) | {"drift": 1.3}
    assert decided(tracker_drift.parts([*rows, unreachable]))[0] == "reproduced"


@pytest.mark.parametrize("drift", [0.0, 0.02, -0.02])
def test_the_tracker_followed_meets_the_law_of_its_history(drift):
    table = problems.named("B")
    _, low, high = tracker_drift.tracked(table, 0.75, drift, 4000)
    assert low - (high - low) / 2 < tracker_drift.law(table, 0.75, drift) < high + (high - low) / 2


@pytest.mark.parametrize("covariance", [True, False])
def test_both_vary_alike_at_the_crossing(covariance):
    table, memory, group = problems.named("A2"), 0.75, 4
    m, lag = problems.facts(table), tracker_drift.crossing(table, memory, group, -1, covariance) / (1 - memory)
    error = m.reward_variance / tracker_drift.worth(memory) + lag**2
    bias = lag if covariance else 0.0  # a falling pass rate leaves the baseline too high
    varies = m.independent_variance(mse=error, bias=bias, group_size=1)
    np.testing.assert_allclose(varies, tracker_drift.of_group(table, group), rtol=1e-9)
    assert tracker_drift.crossing(table, 0.5, 8, 1) == 0


def test_atlas_refuses_a_pool_off_its_law():
    x = moments(atlas.POOLED["group mean"], problems.pool(), 2, prompts=1)
    good = {name: dataclasses.replace(x, bias_norm=0.0) for name in atlas.POOLED}
    assert decided(atlas.parts_of_pool(good, 0.0))[0] == "reproduced"
    assert decided(atlas.parts_of_pool(good, 1e-3))[0] == "refuted"
    for name, change in (("James-Stein", {"bias_norm": 1e-3}), ("group mean", {"scale": 0.6})):
        bad = good | {name: dataclasses.replace(good[name], **change)}
        assert decided(atlas.parts_of_pool(bad, 0.0))[0] == "refuted"
    biased = good | {"James-Stein, released": dataclasses.replace(x, bias_norm=1.0)}
    assert decided(atlas.parts_of_pool(biased, 0.0))[0] == "reproduced"


def test_the_pool_of_the_atlas_has_a_best_group_size_between_two_and_four():
    """Both draws matter on C, or its law would be half tested."""
    split = VarianceSplit.of(problems.pool())
    np.testing.assert_allclose(split.ideal_group_size, 1 + (split.pairs / split.across) ** 0.5, rtol=1e-12)
    assert 2 < float(split.ideal_group_size) < 4


def test_the_transformer_of_the_atlas_is_far_from_uniform():
    table = problems.transformer()
    assert table.scores.shape == (15, 184)
    assert float(table.probs.max()) > 0.3
    assert float(problems.facts(table).fisher_trace) > 3
