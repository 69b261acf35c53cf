"""Whole runs, small: what they leave behind, what they refuse, and that every recipe learns from every kind of task."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time

import gangs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from jaxrl_llm import recipes, runs, spec, tasks
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.glossary import meaning
from jaxrl_llm.inspect_run import evaluate_run, sample_run
from jaxrl_llm.journal import NonFiniteError
from jaxrl_llm.manifest import require_files
from jaxrl_llm.metrics import RunError, read_metrics, read_samples
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.report import write_report
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.train import train
from jaxrl_llm.types import Grade

TINY = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=16)


def tiny(**changes) -> Config:
    """A run of four steps on eight devices."""
    fields = dict(
        task="digit_sort,length=2,heldout=20",
        model=TINY,
        warmup=WarmUp(max_steps=100, check_every=20, batch=40, learning_rate=1e-2, accuracy=0.3),
        steps=4,
        prompts_per_step=8,
        answers_per_prompt=4,
        eval_every=2,
        eval_problems=16,
        eval_samples=4,
        checkpoint_every=2,
        samples_every=2,
    )
    return Config(**(fields | changes))


def run(config: Config, folder):
    return train(config, folder, quiet=True, console=Console(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    return run(tiny(), folder), folder


def test_a_run_leaves_its_folder(finished):
    result, folder = finished
    assert result.folder == folder
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "summary.json", "report.html"):
        assert (folder / name).stat().st_size, name
    assert list((folder / "tensorboard").glob("events*"))
    curves = read_metrics(folder)
    for name in curves:
        assert meaning(name)
    assert curves["reward/mean"][0] == [1, 2, 3, 4]
    assert curves["eval/accuracy"][0] == [2, 4]
    assert np.isfinite([value for _, values in curves.values() for value in values]).all()
    steps = {row["step"] for row in read_samples(folder)}
    assert steps == {1, 2, 4}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["after"] == result.after
    assert 0 <= summary["constant_accuracy"] <= 1


def test_a_checkpoint_can_be_evaluated_and_sampled(finished, capsys):
    result, folder = finished
    figures = evaluate_run(folder, step=None, split="heldout", problems=16, samples=4, seed=0)
    assert figures == pytest.approx(result.after)
    evaluate_run(folder, step=2, split="train", problems=8, samples=2, seed=1)
    capsys.readouterr()
    sample_run(folder, [], step=None, answers=2, rules=SamplingRules(), seed=0)
    assert "reward" in capsys.readouterr().out
    sample_run(folder, ["31="], step=None, answers=2, rules=SamplingRules(temperature=0.0), seed=0)
    assert "31=" in capsys.readouterr().out
    with pytest.raises(ValueError, match="'x'"):
        sample_run(folder, ["x"], step=None, answers=2, rules=SamplingRules(), seed=0)
    with pytest.raises(ValueError, match="no checkpoint of step 3"):
        evaluate_run(folder, step=3, split="heldout", problems=16, samples=4, seed=0)


def test_a_folder_with_a_run_is_not_overwritten(finished):
    _, folder = finished
    before = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="--resume"):
        run(tiny(), folder)
    with pytest.raises(RunError, match="steps=4, not 5"):
        train(tiny(steps=5), folder, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_same_seed_same_numbers_other_seed_others(finished, tmp_path):
    _, folder = finished

    def rewards(where):
        curves = read_metrics(where)
        return {name: values for name, (_, values) in curves.items() if not name.startswith("perf/")}

    run(tiny(), tmp_path / "again")
    assert rewards(tmp_path / "again") == rewards(folder)
    run(tiny(seed=1), tmp_path / "other")
    assert rewards(tmp_path / "other") != rewards(folder)


# One of each kind that asks something of the loop: a plan, greedy answers, a moving reference, a second network.
KINDS = ("reinforce_ada", "remax", "t1", "prime,low=0,high=1")


@pytest.mark.long
@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_recipe_moves_the_policy(name, tmp_path):
    recipe = spec.build(recipes, name, "recipe")
    result = run(tiny(recipe=recipe, steps=2, answers_per_prompt=16), tmp_path / name)
    curves = read_metrics(result.folder)
    assert np.isfinite(curves["grad_norm"][1]).all()
    assert max(curves["grad_norm"][1]) > 0
    assert curves["kl"][1][-1] > 0  # the policy of the second step is another one


def test_peer_defect_kl_between_identical_policies_at_another_temperature(tmp_path):
    """Log-probabilities of policy and reference are taken at the same temperature: before any update their KL is 0."""
    result = run(tiny(steps=1, temperature=0.7), tmp_path / "cool")
    curves = read_metrics(result.folder)
    assert abs(curves["kl"][1][0]) < 1e-6
    assert curves["sampling/logp_difference_max"][1][0] < 1e-4


def test_a_run_that_is_stopped_in_its_last_report_ends_as_if_nothing_was(tmp_path, monkeypatch):
    said = []

    def stopped(folders, path):
        signal.raise_signal(signal.SIGTERM)
        said.append("it goes on")
        return write_report(folders, path)

    def killed(*_):
        raise AssertionError("nobody listens")

    monkeypatch.setattr("jaxrl_llm.train.write_report", stopped)
    before = signal.signal(signal.SIGTERM, killed)
    try:
        run(tiny(), tmp_path / "run")
    finally:
        assert signal.signal(signal.SIGTERM, before) is killed
    assert said == ["it goes on"]
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.slow
def test_a_second_sigterm_does_not_interrupt_the_save(tmp_path):
    """Launchers signal every process of a job, and a supervisor passes on its own: two within 50 ms, and more later."""
    out, command = tmp_path / "run", [sys.executable, "-m", "jaxrl_llm", "train", *gangs.FLAGS, "--steps", "100000"]
    program = subprocess.Popen(
        [*command, "--checkpoint-every", "100000", "--out", str(out)],
        env=gangs.environment(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        deadline = time.monotonic() + 200
        while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").read_bytes().count(b"\n") < 3:
            assert program.poll() is None, program.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        for pause in (0.03, 0.1, 0.1, 0.1, 0.1):
            program.send_signal(signal.SIGTERM)
            time.sleep(pause)
        text, _ = program.communicate(timeout=100)
    finally:
        program.kill()
    assert program.returncode == 0, text
    (step,) = re.findall(r"SIGTERM: step (\d+) of 100000 is saved", " ".join(text.split()))
    require_files(out / "checkpoints" / step)


def test_a_second_sigint_acts_as_it_always_did():
    def killed(*_):
        raise AssertionError("nobody listens")

    before = signal.signal(signal.SIGTERM, killed)
    try:
        with runs.stoppable() as stop:
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
            assert stop.requested == "SIGTERM"
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        with runs.stoppable() as stop:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            assert stop.requested == "SIGINT"
    finally:
        assert signal.signal(signal.SIGTERM, before) is killed


def test_a_grader_gone_mad_stops_the_run_by_name(tmp_path):
    good = tasks.digit_sort(length=2, heldout=20)

    def mad(answer, acted, truth):
        grade = good.grade(answer, acted, truth)
        return Grade(reward=jnp.full_like(grade.reward, jnp.nan), components=grade.components, valid=grade.valid)

    task = dataclasses.replace(good, grade_fn=mad)
    with pytest.raises(NonFiniteError, match="step 3: 3 updates in a row were refused because a reward"):
        run(tiny(task=task, steps=6, max_nonfinite=3), tmp_path / "mad")
    assert read_metrics(tmp_path / "mad")["nonfinite/skipped"][1] == [1, 2, 3]


def test_answers_that_cannot_be_graded_change_nothing(tmp_path):
    good = tasks.digit_sort(length=2, heldout=20)

    def absent(answer, acted, truth):
        grade = good.grade(answer, acted, truth)
        return Grade(reward=grade.reward, components=grade.components, valid=jnp.zeros_like(grade.valid))

    config = tiny(task=dataclasses.replace(good, grade_fn=absent), warmup=WarmUp(max_steps=0))
    result = run(config, tmp_path / "absent")
    curves = read_metrics(result.folder)
    assert curves["invalid_ratio"][1] == [1] * 4
    assert curves["grad_norm"][1] == [0] * 4
    from jaxrl_llm.programs import Programs

    jax.tree.map(np.testing.assert_array_equal, result.params, Programs(config).fresh_params())
