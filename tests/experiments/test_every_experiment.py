"""Every file that is an experiment has a smoke run among the tests, and an answer that is committed is whole."""

import csv
import pathlib

import pytest
import test_exact_experiments
import test_pools
import test_training_experiments

from experiments.answers import WORDS

ROOT = pathlib.Path(__file__).parents[2] / "experiments"
LAST = ("command_line(NAME, QUESTION, run)", "run(*arguments(NAME, QUESTION))", "EXPERIMENT.main()")
FILES = sorted(path.stem for path in ROOT.glob("*.py") if path.read_text().rstrip().endswith(LAST))
SMOKE = [
    *(module.NAME for module in (*test_exact_experiments.EXPERIMENTS, *test_pools.EXPERIMENTS)),
    *(experiment.name for experiment in test_training_experiments.SMOKE),
]


def test_no_experiment_is_without_a_smoke_run():
    assert len(FILES) > 15
    assert sorted(SMOKE) == FILES


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ROOT.glob("results/*/answer.md")))
def test_an_answer_is_whole(name):
    folder = ROOT / "results" / name
    text = (folder / "answer.md").read_text(encoding="utf-8")
    assert any(f"**Verdict: {word}**" in text for word in WORDS)
    assert "**Claim.**" in text
    assert "](plot.png)" in text
    with (folder / "table.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) > 1
    assert (folder / "plot.png").stat().st_size > 10_000
