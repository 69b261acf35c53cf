"""Estimators compared on a checkpoint and while training: what is written, what is refused."""

import csv
import json
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm import recipes
from jaxrl_llm.cli import main
from jaxrl_llm.config import Config, ConfigError
from jaxrl_llm.estimators import EstimatorError, estimators_of, measured, needs_of
from jaxrl_llm.measurements import MEASURED
from jaxrl_llm.metrics import meaning
from jaxrl_llm.spec import SpecError

FLAGS = shlex.split("""
    --task digit_sort,length=2,heldout=20 --steps 4 --prompts-per-step 16 --answers-per-prompt 4 --eval-every 4
    --eval-problems 16 --eval-samples 2 --checkpoint-every 4 --samples-every 4 --warmup.max-steps 150 --warmup.batch 16
    --warmup.accuracy 1 --warmup.learning-rate 0.01
    --model.layers 1 --model.width 16 --model.heads 2 --model.kv-heads 1 --model.head-size 8
    --model.mlp-width 16 --quiet
""")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variance") / "run"
    watch = ["--variance-every", "2", "--variance-estimators", "rloo", "dr_grpo", "reinforce_pp"]
    main(["train", *FLAGS, *watch, "--out", str(folder)])
    return folder


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_logs_a_few_figures_of_each_estimator(run):
    logged = rows(run)
    names = {name for row in logged for name in row if name.startswith("variance/")}
    kinds = ("trace_var", "cos", "useful_snr", "mse_ratio")
    assert names == {f"variance/{e}/{kind}" for e in ("rloo", "dr_grpo", "reinforce_pp") for kind in kinds}
    assert all(any(name in row for name in names) == (row["step"] % 2 == 0) for row in logged)
    for row in logged[1::2]:
        assert row["variance/rloo/trace_var"] > row["variance/dr_grpo/trace_var"] > 0
    assert all(name.split("/")[1] in meaning(name) for name in names if not name.endswith("cos"))


@pytest.mark.parametrize("view", [pytest.param("pool", marks=pytest.mark.long), "prompts"])
def test_a_checkpoint_is_compared_and_the_comparison_written(view, run, tmp_path, capsys):
    flags = shlex.split("--estimators rloo dr_grpo,divisor=5 opo --prompts 16 --answers 8 --group-size 4 --sketch 0")
    flags += ["--view", view]
    main(["variance", str(run), *flags, "--out", str(tmp_path / "out")])
    assert "G=4" in " ".join(capsys.readouterr().out.split())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"variance.md", "variance.csv", "variance.png"}
    lines = (tmp_path / "out" / "variance.csv").read_text().splitlines()
    table = {row["scheme"]: row for row in csv.DictReader(lines[1:])}
    assert list(table) == ["rloo", "dr_grpo,divisor=5", "opo"]
    # r - mean is 3/4 of leave-one-out at G = 4, and the sum over tokens is divided by 5.
    assert float(table["dr_grpo,divisor=5"]["ratio"]) == pytest.approx((0.75 / 5) ** 2, rel=1e-4)
    text = (tmp_path / "out" / "variance.md").read_text()
    assert "bias" in text
    assert ("taken for its policy" in text) == (view == "pool")
    if view == "pool":  # of which the true gradient is known
        assert float(table["dr_grpo,divisor=5"]["scale"]) == pytest.approx(0.75 / 5, rel=0.2)
        assert float(table["rloo"]["bias"]) < float(table["opo"]["trace_var"]) ** 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--estimators rlo", "did you mean 'rloo'"),
        ("--estimators rloo dapo", "dapo chooses among answers"),
        ("--estimators prime", "prime chooses among answers"),
        ("--estimators rif_rft", "chooses problems"),
        ("--estimators observe_r1", "changes the reward"),
        ("--estimators rloo rloo", "named twice"),
        ("--estimators rloo --group-size 1", "group_size must be"),
        ("--estimators reinforce_pp --view prompts", "say prompts=2"),
        ("--estimators rloo --view prompts --unit 3", "an interval needs 8"),
        ("--step 3", "no checkpoint of step 3"),
    ],
)
def test_misuse_is_refused_in_words(run, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["variance", str(run), *shlex.split(arguments), "--answers", "8", "--prompts", "16"])
    assert stopped.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": "dapo"}, "trains on answers that it has chosen"),
        ({"variance_estimators": ("remax",)}, "remax reads 'greedy_reward', which the run does not have"),
        ({"variance_estimators": ("reinforce_pp",), "prompts_per_step": 8}, "needs prompts_per_step=16"),
        ({"variance_estimators": ("rloo",), "answers_per_prompt": 1, "recipe": "reinforce"}, "more than 1 answers"),
        ({"variance_estimators": ()}, "at least one"),
        ({"variance_estimators": ("grop",)}, "did you mean 'grpo'"),
    ],
)
def test_what_a_run_cannot_watch_is_refused_before_it_begins(fields, message):
    with pytest.raises((ConfigError, EstimatorError, SpecError), match=message):
        Config(variance_every=5, **fields)


def test_a_configuration_with_watched_estimators_survives_json():
    config = Config(variance_every=5, variance_estimators=("rloo", "opo"))
    assert Config.from_json(json.loads(json.dumps(config.to_json()))).variance_estimators == ("rloo", "opo")


def test_penalties_are_left_out_and_what_is_read_is_measured():
    chosen = estimators_of(["rloo,kl_coefficient=0.3", "opo", "reinforce_energy"])
    assert all(estimator.objective.penalties == () for estimator in chosen.values())
    needs = needs_of(chosen)
    assert "energy" in needs
    policy, params = tiny.bigram()
    rollout = measured(policy, params, tiny.ragged(policy, params), needs)
    expected = MEASURED["energy"](type("Holder", (), {"policy": policy}), params, rollout)
    np.testing.assert_allclose(rollout.extras["energy"], expected, rtol=1e-6)
    assert float(jnp.max(expected)) > 0
    assert recipes.rloo(kl_coefficient=0.3).objective.penalties != ()
