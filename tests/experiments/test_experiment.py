"""What is shown of runs, and what an experiment makes of it, on records that are written by hand."""

import dataclasses
import json
import math

import matplotlib as mpl
import numpy as np
import pytest
import small
from rich.console import Console

from experiments.experiment import Experiment, Verdict
from experiments.present import Findings
from experiments.rloo_or_mean import EXPERIMENT, MARGIN
from experiments.sweep import Sweep
from jaxrl_llm.config import ConfigError

SILENT = Console(quiet=True)


def record(arm, seed, score, grads=(3.0, 2.0), failed=""):
    curves = {"eval/accuracy": [[0, 2, 4], [0.1, score / 2, score]], "grad_norm": [[1, 4], list(grads)]}
    figures = {"eval/accuracy": score, "eval/pass@1": score / 2}
    before = {"eval/accuracy": 0.1, "eval/pass@1": 0.05}
    return {
        **{"arm": arm, "seed": seed, "digest": "x", "figures": figures, "before": before, "failed": failed},
        **{"curves": curves, "seconds": 1.0, "together": 2},
    }


def findings(**arms):
    return Findings([record(arm, seed, score) for arm, scores in arms.items() for seed, score in enumerate(scores)])


FOUND = findings(a=(0.2, 0.3, 0.4, 0.5), b=(0.3, 0.4, 0.5, 0.6))


def test_a_table_compares_with_the_first_arm_by_seed():
    first, second = FOUND.rows()
    assert first[:2] == ("a", "4")
    assert first[2].startswith("0.350 [")
    assert first[3:] == ("", "", "")
    assert second[3] == "0.100 [0.100, 0.100]"  # every seed gains a tenth: pairing leaves no spread
    assert second[4].startswith("0.719 [")  # (10 wins + 3 ties / 2) of 16 pairs
    assert FOUND.scores("b", "eval/pass@1").tolist() == [0.15, 0.2, 0.25, 0.3]
    steps, values = FOUND.curve("b", "eval/accuracy")
    assert steps.tolist() == [0, 2, 4]
    assert values.shape == (4, 3)


def test_markdown_states_the_kind_of_interval_and_failures_are_counted():
    text = Findings([*FOUND.records[:-1], record("b", 3, 0.0, failed="step 3: ...")]).markdown()
    assert "| b | 4 |" in text
    assert text.splitlines()[3].endswith("| 1 |")
    assert "95% stratified bootstrap percentile intervals over seeds" in text
    assert "fraction of held-out problems that the greedy answer solves" in text


def test_one_seed_has_no_interval_anywhere(tmp_path):
    alone = findings(a=(0.2,), b=(0.3,))
    assert alone.rows()[1][2:5] == ("0.300", "0.100", "1.000")
    assert "two seeds or more" in alone.markdown()
    alone.write(tmp_path)
    assert (tmp_path / "plot.png").stat().st_size > 1000


def test_files_hold_every_run(tmp_path, monkeypatch):
    drawn = []
    save = mpl.figure.Figure.savefig
    monkeypatch.setattr(
        mpl.figure.Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1]
    )
    FOUND.write(tmp_path)
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert rows[0] == "arm,seed,failed,before eval/accuracy,before eval/pass@1,eval/accuracy,eval/pass@1"
    assert rows[1] == "a,0,,0.1,0.05,0.2,0.1"
    assert len(rows) == 9
    curves, finals = drawn[0].axes
    assert curves.get_xlabel() == "policy-gradient step"
    assert "4 seeds" in curves.get_title()
    assert "bootstrap interval" in curves.get_title()
    np.testing.assert_allclose(curves.lines[1].get_ydata(), [0.1, 0.225, 0.45])  # interquartile means of b
    assert [text.get_text() for text in finals.get_yticklabels()] == ["a", "b"]
    assert len({line.get_color() for line in curves.lines}) == 2


def test_an_unknown_arm_is_named():
    with pytest.raises(KeyError, match="choices: a, b"):
        FOUND.scores("c")


def trial(decide, **changes):
    given = {"name": "trial", "question": "Does a beat b?", "claim": "Yes (Nobody, 2026).", "score": "eval/accuracy"}
    arms = {"a": {}, "b": {"learning_rate": 1e-2}}
    return Experiment(**given | {"base": small.BASE, "arms": arms, "seeds": [0, 1], "decide": decide} | changes)


@pytest.fixture
def done(monkeypatch):
    """Runs that are there already: what is tested is what is made of them."""

    def run(sweep, out, **_):
        out.mkdir(exist_ok=True)
        (out / "sweep.json").write_text(json.dumps(sweep._description()))
        return [record(arm, seed, 0.1 * (seed + 1)) for arm in sweep.arms for seed in sweep.seeds]

    monkeypatch.setattr(Sweep, "run", run)


def test_an_answer_states_claim_verdict_and_how_to_get_it(done, tmp_path):
    verdict = trial(lambda found: Verdict("refuted", f"{found.scores('a')[1]:.1f}")).run(tmp_path, console=SILENT)
    assert verdict == ("refuted", "0.2")
    text = (tmp_path / "answer.md").read_text()
    for part in ("Does a beat b?", "Yes (Nobody, 2026).", "**Verdict: refuted** at this scale. 0.2", "| b | 2 |"):
        assert part in text
    assert "python experiments/trial.py" in text
    assert "seeds 0, 1" in text


def test_a_smoke_run_decides_nothing(done, tmp_path):
    verdict = trial(lambda found: Verdict("reproduced", "")).run(tmp_path, smoke=True, console=SILENT)
    assert verdict.word == "undecided"
    assert trial(lambda found: Verdict("reproduced", "")).run(tmp_path, console=SILENT).word == "reproduced"


def test_a_word_that_is_no_verdict_and_an_arm_that_does_not_exist_are_refused(done, tmp_path):
    with pytest.raises(ValueError, match="not 'proved'"):
        trial(lambda found: Verdict("proved", "")).run(tmp_path, console=SILENT)
    with pytest.raises(ConfigError, match=r"no arm 'aa'.*did you mean 'a'"):
        trial(lambda found: Verdict("reproduced", "")).part(["aa"], tmp_path)


NAMES = list(EXPERIMENT.arms)
EQUAL = {name: np.linspace(0.4, 0.5, 8) for name in NAMES}


def shrunk(scores, ratio=0.75):
    grads = {name: (3.0 * (ratio if name == "mean, SGD" else 1.0), 1.0) for name in NAMES}
    return Findings([record(n, s, float(x), grads[n]) for n, xs in scores.items() for s, x in enumerate(xs)])


def test_the_rule_of_rloo_or_mean():
    """(G-1)/G = 3/4 and equal ends: reproduced. A worse mean, or another ratio: refuted. Noise: undecided."""
    decide = EXPERIMENT.decide
    worse = EQUAL | {"mean, AdamW": EQUAL["mean, AdamW"] - 2 * MARGIN}
    noisy = EQUAL | {"mean, AdamW": EQUAL["mean, AdamW"] + 3 * MARGIN * np.resize([1, -1], 8)}
    assert decide(shrunk(EQUAL)).word == "reproduced"
    assert decide(shrunk(worse)).word == "refuted"
    assert decide(shrunk(EQUAL, 0.7)).word == "refuted"
    assert decide(shrunk(noisy)).word == "undecided"
    assert not any(math.isnan(x) for x in dataclasses.astuple(shrunk(EQUAL).figure("mean, SGD"))[:3])
