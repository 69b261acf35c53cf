"""Experiments that train: their rules of decision on made-up runs, their arms, and the tuning of learning rates."""

import json

import numpy as np
import pytest
import small
from rich.console import Console

from experiments import bnpo, reinforce_ada, rloo_or_mean, signs, stale_answers
from experiments.experiment import Experiment, Verdict
from experiments.present import Findings
from experiments.standard import SEEDS, TUNING
from experiments.sweep import Sweep
from jaxrl_llm.config import ConfigError

SILENT = Console(quiet=True)
EXPERIMENTS = [module.EXPERIMENT for module in (bnpo, signs, reinforce_ada, stale_answers)]
SMOKE = [*EXPERIMENTS, rloo_or_mean.EXPERIMENT]
STEPS = [0, 50, 100]


def record(arm, seed, score, *, wide=0.8, entropy=1.0, norms=(1.0, 1.1), drawn=12.0, before=0.3):
    def flat(x):
        return [[1, 50, 100], [x] * 3]

    def at(one, many):
        return {f"eval/pass@{k}": one + (many - one) * np.log2(k) / 4 for k in (1, 2, 4, 8, 16)}

    figures = {"eval/accuracy": score, **at(score, wide)}
    curves = {
        "eval/accuracy": [STEPS, [before, (before + score) / 2, score]],
        "eval/pass@1": [STEPS, [before, (before + score) / 2, score]],
        "entropy": [list(range(10)), [entropy] * 10],
        "grad_norm": [list(range(10)), list(np.resize(norms, 10))],
        "answers_drawn": flat(drawn),
    }
    start = {"eval/accuracy": before, **at(before, 0.7)}
    return {"arm": arm, "seed": seed, "figures": figures, "before": start, "failed": "", "curves": curves}


def runs(experiment, **changes):
    """Eight seeds of every arm; `changes` by arm."""
    jitter = 0.01 * np.cos(np.arange(8))
    given = lambda arm, seed: {"score": 0.5 + jitter[seed]} | changes.get(arm, {})  # noqa: E731
    return Findings(
        [record(arm, seed, **given(arm, seed)) for arm in experiment.arms for seed in range(8)], experiment.score
    )


def test_the_rule_of_bnpo():
    steady, unsteady = (1.0, 1.05), (1.0, 1.5)
    peers = {name: {"score": 0.4, "norms": unsteady} for name in bnpo.PEERS}
    assert bnpo.decide(runs(bnpo.EXPERIMENT, BNPO={"score": 0.5, "norms": steady}, **peers)).word == "reproduced"
    assert bnpo.decide(runs(bnpo.EXPERIMENT, BNPO={"score": 0.5, "norms": unsteady}, **peers)).word != "reproduced"
    worse = peers | {"ReMax": {"score": 0.6, "norms": unsteady}}
    assert bnpo.decide(runs(bnpo.EXPERIMENT, BNPO={"score": 0.5, "norms": steady}, **worse)).word == "refuted"


def test_the_rule_of_signs():
    good = {
        "NSR": {"score": 0.5, "wide": 0.9, "entropy": 1.0},
        "PSR": {"score": 0.5, "wide": 0.8, "entropy": 0.5},
        "W-REINFORCE": {"score": 0.5, "wide": 0.85},
    }
    assert signs.decide(runs(signs.EXPERIMENT, **good)).word == "reproduced"
    narrow = good | {"NSR": good["NSR"] | {"wide": 0.65}}
    assert signs.decide(runs(signs.EXPERIMENT, **narrow)).word == "refuted"
    lively = good | {"PSR": good["PSR"] | {"entropy": 1.5}}
    assert signs.decide(runs(signs.EXPERIMENT, **lively)).word == "refuted"


def test_reinforce_ada_is_read_where_both_have_drawn_as_many_answers():
    """12 answers to each of 32 prompts are 38,400 after 100 steps; GRPO has drawn 25,600 then."""
    found = runs(reinforce_ada.EXPERIMENT, **{reinforce_ada.ADA: {"score": 0.55}})
    counts, _ = reinforce_ada.samples(found, reinforce_ada.ADA)
    np.testing.assert_allclose(counts[0], [0, 19200, 38400])
    counts, _ = reinforce_ada.samples(found, reinforce_ada.GRPO)
    np.testing.assert_allclose(counts[0], [0, 12800, 25600])
    difference, count = reinforce_ada.at_equal_samples(found, reinforce_ada.GRPO)
    assert count == 25600
    score = 0.3 + (0.55 - 0.3) * 25600 / 38400
    ends = np.mean([0.5 + 0.01 * np.cos(seed) for seed in range(8)])
    assert difference.point == pytest.approx(score - ends)
    assert reinforce_ada.decide(found).word == "refuted"  # ahead at the end, and not at equal samples
    ahead = runs(reinforce_ada.EXPERIMENT, **{reinforce_ada.ADA: {"score": 0.9}})
    assert reinforce_ada.decide(ahead).word == "reproduced"


def test_the_rule_of_stale_answers():
    named = stale_answers.named
    falls = {named("AsymRE", -0.2): {"score": 0.1}, named("AsymRE", 0.0): {"score": 0.4}}
    found = runs(stale_answers.EXPERIMENT, **falls)
    np.testing.assert_allclose(stale_answers.dependence(found, "AsymRE")[0], 0.41)
    assert stale_answers.decide(found).word == "reproduced"
    worse = runs(stale_answers.EXPERIMENT, **falls, **{named("PPO", -0.2): {"score": 0.01}})
    assert stale_answers.decide(worse).word == "refuted"


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_plots_are_drawn(experiment, tmp_path):
    experiment.draw(runs(experiment), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000


@pytest.mark.long
@pytest.mark.parametrize("experiment", SMOKE, ids=lambda experiment: experiment.name)
def test_a_smoke_run_leaves_an_answer(experiment, tmp_path):
    assert experiment.run(tmp_path, smoke=True, console=SILENT).word == "undecided"
    assert "**Verdict: undecided**" in (tmp_path / "answer.md").read_text(encoding="utf-8")


def trial(**changes):
    given = {"name": "trial", "question": "?", "claim": "-", "base": small.BASE, "arms": {"a": {}, "b": {"epochs": 2}}}
    given |= {"decide": lambda found: Verdict("undecided", "")}
    return Experiment(**given | {"seeds": SEEDS, "tuning": TUNING, "rates": (1e-3, 1e-2)} | changes)


@pytest.fixture
def done(monkeypatch):
    """Runs that are there already. At the rate 1e-2 arm a is better and b worse; seeds that are not tuned on say the
    opposite, and may not matter."""
    asked = []

    def run(sweep, out, **_):
        asked.append(sweep)
        (out / "sweep.json").write_text(json.dumps(sweep._description()))
        found = []
        for arm, config in sweep.configs.items():
            for seed in sweep.seeds:
                high = config.learning_rate == 1e-2
                better = (high if arm.startswith("a") else not high) == (seed in TUNING)
                found.append(record(arm, seed, 0.5 if better else 0.4))
        return found

    monkeypatch.setattr(Sweep, "run", run)
    return asked


def test_every_arm_runs_with_the_rate_that_is_best_on_other_seeds(done, tmp_path):
    trial().run(tmp_path, console=SILENT)
    tuning, whole = done
    assert [*tuning.seeds] == [*TUNING]
    assert len(tuning.arms) == 4
    assert {name: config.learning_rate for name, config in whole.configs.items()} == {"a": 1e-2, "b": 1e-3}
    assert [*whole.seeds] == [*SEEDS]
    answer = (tmp_path / "answer.md").read_text(encoding="utf-8")
    assert "the best of 0.001, 0.01 on seeds 100, 101, 102 for each arm: a 0.01, b 0.001" in answer


def test_a_part_of_the_arms_is_tuned_alone(done, tmp_path):
    trial().part(["b"], tmp_path)
    tuning, whole = done
    assert [*tuning.arms] == ["b @ 0.001", "b @ 0.01"]
    assert whole.arms == {"b": {"epochs": 2, "learning_rate": 1e-3}}


def test_tuning_on_the_seeds_of_the_verdict_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not among the others"):
        trial(tuning=[3]).run(tmp_path, console=SILENT)
    with pytest.raises(ConfigError, match="'a' has a learning rate of its own"):
        trial(arms={"a": {"learning_rate": 0.1}}).run(tmp_path, console=SILENT)
