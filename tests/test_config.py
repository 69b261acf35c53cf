"""Wrong names, values and combinations are refused before anything is compiled, by field and with what is near."""

import dataclasses
import json
import re

import jax
import pytest
from jaxtyping import TypeCheckError

from jaxrl_llm import recipes, tasks
from jaxrl_llm.cli import main
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.policies.config import DecoderConfig, Lora, Rope
from jaxrl_llm.sharding import MeshShape

WRONG = [
    (["--stpes", "3"], "--steps"),
    (["--steps", "abc"], "--steps"),
    (["--steps", "0"], "steps must be 1 or more"),
    (["--recipe", "rlo"], "did you mean 'rloo'"),
    (["--recipe", "grpo,lo=0.1"], "did you mean 'low'"),
    (["--recipe", "grpo,low=abc"], "grpo: low takes float, not 'abc'"),
    (["--task", "adition"], "did you mean 'addition'"),
    (["--task", "addition,digit=3"], "did you mean 'digits'"),
    (["--task", "addition,digits=0"], "digits"),
    (["--task", "reasoning_gym:chain_sun"], "chain_sum"),
    (["--task", "reasoning_gym"], "reasoning_gym:NAME"),
    (["--task", "rows:nowhere.jsonl"], "nowhere.jsonl"),
    (["--schedule", "cosin"], "did you mean 'cosine'"),
    (["--schedule", "cosine,warmup=-1"], "warmup must be 0 or more"),
    (["--answers-per-prompt", "1"], "answers_per_prompt=1"),
    (["--answers-per-prompt", "1", "--recipe", "bnpo"], "needs at least 2"),
    (["--accumulation", "3"], "must divide prompts_per_step=64: nearest 2"),
    (["--prompts-per-step", "100000"], "training problems: at most"),
    (["--temperature", "0"], "temperature must be above 0 and finite"),
    (["--temperature", "nan"], "temperature must be above 0 and finite"),
    (["--top-p", "0"], "top_p must be above 0"),
    (["--top-p", "1.5"], "top_p must be above 0 and at most 1"),
    (["--top-k", "-1"], "top_k must be 0"),
    (["--learning-rate", "0"], "learning_rate must be a finite number above 0"),
    (["--learning-rate", "inf"], "learning_rate"),
    (["--max-grad-norm", "-1"], "max_grad_norm must be 0 or more"),
    (["--seed", "-1"], "seed must be an integer"),
    (["--seed", "None"], "--seed"),
    (["--warmup.accuracy", "2"], "warmup.accuracy"),
    (["--model.kv-heads", "3"], "kv_heads must divide heads=4, not 3 (choices: [1, 2, 4])"),
    (["--model.head-size", "7"], "head_size must be even"),
    (["--model.layers", "0"], "layers must be at least 1"),
    (["--lora.rank", "-1"], "lora.rank must be 1 or more"),
    (["--lora.rank", "4", "--lora.alpha", "0"], "lora.alpha must be a finite number above 0"),
    (["--lora.rank", "4", "--lora.targets", "query", "vlaue"], "did you mean 'value'"),
    (["--lora.rank", "4", "--lora.targets", "head"], "the head of a tied model is its embedding"),
    (["--lora.rank", "4", "--variance-every", "5"], "variance_every measures gradients of all parameters"),
    (["--mesh.data", "0"], "mesh.data=0: mesh axes"),
    (["--model.norm-eps", "-1"], "norm_eps must be a finite number"),
    (["--model.rope.base", "inf"], "rope.base must be a finite number"),
    (["--mesh.data", "-1"], "at most one mesh axis may be -1"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(a) for a, _ in WRONG])
def test_a_wrong_request_is_refused_before_any_compile(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if name.endswith("backend_compile_duration") else None
    )
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert message in re.sub(r"[\s│]+", " ", said.out + said.err)
    assert not list(tmp_path.iterdir()), "a refused request must leave nothing behind"
    if "100000" not in arguments:  # that one needs the task, whose tables are put on the device
        assert not compiled


def test_every_field_is_a_flag_with_a_help_text(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # one column of flags
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    said = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    said = re.sub("[│╭╰╮╯─]", " ", said)
    # A flag and all up to the next one.
    entries = {
        match.group(1): match.group(2) for match in re.finditer(r"^ +--([\w.-]+)(.*?)(?=^ +--|\Z)", said, re.S | re.M)
    }
    parts = {"": Config, "warmup.": WarmUp, "model.": DecoderConfig, "model.rope.": Rope, "mesh.": MeshShape}
    parts |= {"lora.": Lora}
    for prefix, cls in parts.items():
        for field in dataclasses.fields(cls):
            if f"{prefix}{field.name}." in parts:
                continue
            entry = entries[prefix + field.name.replace("_", "-")]
            own_words = re.sub(r"--\S+|[A-Z]{3,}|\(default:.*?\)|[│\s]+", " ", entry)
            assert len(re.findall("[a-z]+", own_words)) > 1, f"{prefix}{field.name} has no help text: {entry}"


def test_help_names_every_choice(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    for name in (*tasks.__all__, *recipes.__all__):
        assert name in said


def test_resolved_configuration_survives_json():
    config = Config(
        task="addition,digits=1,heldout=10", recipe=recipes.grpo(eps=1e-6), schedule="cosine,warmup=3", seed=7
    )
    fields = json.loads(json.dumps(config.to_json()))
    again = Config.from_json(fields)
    assert again.to_json() == config.to_json()
    assert again.recipe.spec == config.recipe.spec
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        Config.from_json(fields | {"setps": 1})


def test_own_parts_are_taken_as_they_are():
    mine = dataclasses.replace(recipes.rloo(), spec="mine")
    task = tasks.addition(digits=1, heldout=10)
    config = Config(task=task, recipe=mine)
    assert config.task is task
    assert config.recipe is mine
    with pytest.raises(TypeCheckError, match="recipe"):
        Config(recipe=lambda: None)
