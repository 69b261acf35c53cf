"""Experiments by enumeration: small runs write their answers, and numbers that contradict the claims refute them."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from experiments import (
    adaptive_weight,
    atlas,
    f_of_p,
    group_size,
    kl_estimators,
    leave_one_out_law,
    off_policy_frontier,
    problems,
    self_inclusion_exact,
)
from experiments.answers import command_line, decided
from jaxrl_llm.variance.moments import VarianceSplit

VECTORS = json.loads((pathlib.Path(__file__).parents[1] / "variance/variance_vectors.json").read_text(encoding="utf-8"))
EXPERIMENTS = {
    atlas: "reproduced",
    leave_one_out_law: "reproduced",
    group_size: "refuted",
    self_inclusion_exact: "reproduced",
    kl_estimators: "refuted",
    f_of_p: "reproduced",
    off_policy_frontier: "reproduced",
    adaptive_weight: "reproduced",
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.long
@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda module: module.NAME)
def test_a_small_run_writes_its_answer(experiment, tmp_path):
    word = command_line(experiment.NAME, experiment.QUESTION, experiment.run, ["--smoke", "--out", str(tmp_path)])
    assert word in ("reproduced", "refuted", "undecided")
    assert f"**Verdict: {word}**" in (tmp_path / "answer.md").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"answer.md", "table.csv", "plot.png"}


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda module: module.NAME)
def test_the_committed_answer_is_there(experiment):
    out = problems.__file__.replace("problems.py", f"results/{experiment.NAME}/answer.md")
    assert f"**Verdict: {EXPERIMENTS[experiment]}**" in pathlib.Path(out).read_text(encoding="utf-8")


def test_the_problems_are_those_of_the_vectors():
    for name in ("A", "A2"):
        expected = VECTORS["problems"][name]
        table = problems.bandit(name)
        np.testing.assert_allclose(table.probs, expected["probs"] if name == "A" else VECTORS["problems"]["A"]["probs"])
        np.testing.assert_allclose(table.rewards, expected["rewards"])
        np.testing.assert_array_equal(table.lengths, expected["lengths"])
    b, table = VECTORS["problems"]["B"], problems.bigram(1.0)
    np.testing.assert_allclose(table.probs, b["probs"], rtol=1e-9)
    np.testing.assert_allclose(table.rewards, b["binary"]["rewards"])
    np.testing.assert_allclose(table.drawn, b["off_policy"]["behaviour_probs"], rtol=1e-9)
    assert problems.BIGRAM["reference"] == b["ref_logits"]


def test_atlas_refuses_a_baseline_that_is_biased():
    x = atlas.moments(atlas.group_mean(), problems.named("A"), 2)
    good = dict.fromkeys(atlas.estimators("A", 2), dataclasses.replace(x, bias_norm=0.0, scale=0.5, cos=1.0))
    good |= {name: dataclasses.replace(x, cos=0.9) for name in atlas.TURNED}
    good["constant b*"] = dataclasses.replace(good["none"], trace_var=0.0)
    assert decided(atlas.parts({"A": good}, 2))[0] == "reproduced"
    for name, change in (
        ("greedy", {"bias_norm": 1e-3}),
        ("group mean", {"scale": 0.6}),
        ("energy, self", {"cos": 1.0}),
    ):
        bad = good | {name: dataclasses.replace(good[name], **change)}
        assert decided(atlas.parts({"A": bad}, 2))[0] == "refuted"


def test_a_fitted_group_size_far_from_the_law_is_refuted():
    split = VarianceSplit(linear=1.0, pairs=25.0, across=1.0)
    rows = [{"baseline": "leave-one-out", "G": 2, "N tr Var": 1.0, "law": 1.0}]
    rows += [{"baseline": "value", "G": g, "N tr Var": float(g)} for g in (1, 2)]
    assert decided(group_size.parts(rows, (6.0, 5.5, 6.5), split))[0] == "reproduced"
    assert decided(group_size.parts(rows, (10.0, 9.5, 10.5), split))[0] == "refuted"
    assert decided(group_size.parts(rows, (9.0, 8.0, 10.5), split))[0] == "undecided"


def test_a_group_on_the_wrong_side_of_the_crossing_is_refuted():
    row = {"problem": "A", "G": 2, "how": "enumerated", "law": 2.0, "variance": 2.0, "low": 2.0, "high": 2.0}
    row |= {"no baseline": 1.0, "crossing at G": 3.0, "scale of group mean": 0.5}
    assert decided(leave_one_out_law.parts([row]))[0] == "reproduced"
    for change in ({"crossing at G": 1.5}, {"law": 2.1}, {"scale of group mean": 0.6}):
        assert decided(leave_one_out_law.parts([row | change]))[0] == "refuted"


def test_divergences_that_vary_less_everywhere_reproduce_the_claim():
    rows = kl_estimators.measured()
    assert decided(kl_estimators.parts(rows))[0] == "refuted"
    assert decided(kl_estimators.parts([row for row in rows if row["policy"] == "bigram"]))[0] == "reproduced"


def test_a_truncated_weight_that_no_baseline_moves_is_refuted():
    row = {"bias": 0.0, "variance": 1.0, "moved by the baseline": 0.0}
    stale = {"variance": 3.0, "staleness": 2.0}
    rows = [row | {"weight": name} | stale for name in off_policy_frontier.PLAIN]
    rows.append(row | {"weight": "whole answer", "staleness": 0.0})
    cut = {"bias": 0.1, "variance": 1.0, "moved by the baseline": 0.1, "staleness": 2.0}
    rows += [row | cut | {"weight": name} for name in ("CISPO", "TOPR")]
    assert decided(off_policy_frontier.parts(rows))[0] == "reproduced"
    rows[-1]["moved by the baseline"] = 0.0
    assert decided(off_policy_frontier.parts(rows))[0] == "refuted"


def test_an_own_weight_that_turns_nothing_is_refuted():
    row = {"problem": "A", "weight": "energy", "bias": 0.0, "variance / leave-one-out's": 0.5, "cosine": 0.9}
    rows = [row | {"form": "self"}, row | {"form": "others", "variance / leave-one-out's": 0.9}]
    assert decided(self_inclusion_exact.parts(rows))[0] == "reproduced"
    for which, change in ((0, {"cosine": 1.0}), (1, {"bias": 0.1}), (1, {"variance / leave-one-out's": 0.6})):
        bad = [x | change if n == which else x for n, x in enumerate(rows)]
        assert decided(self_inclusion_exact.parts(bad))[0] == "refuted"


def test_a_weight_that_is_no_polynomial_is_refuted():
    row = {"F'": 1.0, "polynomial": 1.0, "cosine": 1.0}
    assert decided(f_of_p.parts([row], 8))[0] == "reproduced"
    for change in ({"F'": 1.01}, {"cosine": 0.99}):
        assert decided(f_of_p.parts([row | change], 8))[0] == "refuted"


def test_a_weight_far_from_its_limit_is_refuted():
    near = [{"p": p, "weight / closed form": 0.99, "mean of the drawn": p + 0.02} for p in (0.2, 0.3, 0.5, 0.7)]
    far = [{"p": p, "weight / closed form": 0.3, "mean of the drawn": p} for p in adaptive_weight.FAR]
    assert decided(adaptive_weight.parts(near + far))[0] == "reproduced"
    for index, change in (
        (2, {"weight / closed form": 0.9}),
        (0, {"mean of the drawn": 0.2}),
        (4, {"weight / closed form": 0.6}),
    ):
        bad = [row | change if index == n else row for n, row in enumerate(near + far)]
        assert decided(adaptive_weight.parts(bad))[0] == "refuted"
