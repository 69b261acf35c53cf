"""Every file that is an experiment has a smoke run among the tests, and an answer that is committed is whole."""

import csv
import importlib
import pathlib

import pytest

from experiments.answers import WORDS
from experiments.experiment import Experiment

ROOT = pathlib.Path(__file__).parents[2] / "experiments"
LAST = ("command_line(NAME, QUESTION, run)", "run(*arguments(NAME, QUESTION))", "EXPERIMENT.main()")
LISTS = ("SMOKE", "VERDICTS", "EXPERIMENTS")  # of the experiments that a test module runs small; the first counts
FILES = sorted(path.stem for path in ROOT.glob("*.py") if path.read_text().rstrip().endswith(LAST))


def with_smoke_runs():
    """What stands in the list of a test module, and what one runs with --smoke by name."""
    names = set()
    for path in pathlib.Path(__file__).parent.glob("test_*.py"):
        if path.stem != pathlib.Path(__file__).stem:
            module, text = importlib.import_module(path.stem), path.read_text()
            members = next((vars(module)[name] for name in LISTS if name in vars(module)), ())
            names |= {x.name if isinstance(x, Experiment) else x.NAME for x in members}
            names |= {name for name in FILES if '"--smoke"' in text and f"{name}.run, " in text}
    return names


def test_no_experiment_is_without_a_smoke_run():
    assert len(FILES) > 15
    assert with_smoke_runs() == {*FILES}


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
