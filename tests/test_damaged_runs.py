"""A run whose folder is damaged beside its checkpoints goes on where it can, and names the file where it cannot."""

import json
import shutil

import pytest
import tiny

from jaxrl_llm import programs as programs_module
from jaxrl_llm import trained as trained_module
from jaxrl_llm.checkpoint import CheckpointError
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.metrics import RunError, read_metrics
from jaxrl_llm.runs import read_summary
from jaxrl_llm.tasks import addition
from jaxrl_llm.train import train


def config(**changes):
    plain = {"prompts_per_step": 8, "answers_per_prompt": 2, "steps": 4, "eval_every": 4, "checkpoint_every": 2}
    plain |= {"eval_problems": 8, "eval_samples": 2, "samples_every": 4, "warmup": WarmUp(max_steps=0)}
    return Config(task=addition(digits=1), model=tiny.SMALL, **(plain | changes))


@pytest.fixture(scope="module", params=[True, False], ids=["with a reference", "without"])
def whole(request, tmp_path_factory):
    """A finished run that measures its KL to the policy before RL, or does not."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (programs_module, trained_module):
            patch.setattr(module, "Policy", tiny.Bigram)
        folder = tmp_path_factory.mktemp("runs") / "whole"
        train(config(measure_kl=request.param, recipe="rloo"), folder, quiet=True)
        yield request.param, folder


def halfway(folder, out):
    """A copy that was stopped after step 2."""
    shutil.copytree(folder, out)
    shutil.rmtree(out / "checkpoints" / "4")
    return out


def test_a_damaged_reference_ends_only_runs_that_need_it(whole, tmp_path):
    needed, folder = whole
    broken = halfway(folder, tmp_path / "broken")
    files = (path for path in (broken / "reference" / "0").rglob("*") if path.is_file())
    file = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    if needed:
        with pytest.raises(CheckpointError, match=rf"{broken}/reference/0/.* "):
            train(config(recipe="rloo"), broken, resume=True, quiet=True)
    else:
        train(config(measure_kl=False, recipe="rloo"), broken, resume=True, quiet=True)
        assert read_metrics(broken)["loss"] == read_metrics(folder)["loss"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"before": {', "is no JSON file"),
        ("[]", "must hold a JSON object"),
        ('{"before": {}, "constant_accuracy": 0.1, "problems": 3}', "it has no 'constant_answer'"),
        (None, "No such file"),
    ],
)
def test_a_damaged_summary_is_named_before_anything_is_sampled(whole, tmp_path, content, message):
    needed, folder = whole
    broken = halfway(folder, tmp_path / "broken")
    if content is None:
        (broken / "summary.json").unlink()
    else:
        (broken / "summary.json").write_text(content)
    with pytest.raises(RunError, match=rf"{broken}/summary\.json .*{message}"):
        train(config(measure_kl=needed, recipe="rloo"), broken, resume=True, quiet=True)
    assert read_metrics(broken)["loss"][0] == [1, 2]


def test_a_summary_is_read_as_it_was_written(whole):
    _, folder = whole
    assert read_summary(folder) == json.loads((folder / "summary.json").read_text())
