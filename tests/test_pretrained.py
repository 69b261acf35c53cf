"""Runs that start from a published model: its weights and tokenizer in, a trained folder out."""

import dataclasses
import re

import flax.linen as nn
import jax
import numpy as np
import pytest
import tiny_hub
from rich.console import Console

from jaxrl_llm import published
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.export import export_run
from jaxrl_llm.inspect_run import load_run
from jaxrl_llm.metrics import RunError
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub.load import load_folder, read_hub, save_folder
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.programs import Programs
from jaxrl_llm.runs import read_config
from jaxrl_llm.sharding import state_shardings
from jaxrl_llm.train import train

STEPS = {"steps": 2, "prompts_per_step": 8, "answers_per_prompt": 2, "learning_rate": 1e-3}
STEPS |= {"eval_problems": 8, "eval_samples": 2, "eval_batch": 8, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_hub.write_model(tmp_path_factory.mktemp("hub") / "tiny")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "sums.csv"
    path.write_text("prompt,answer\n" + "".join(f"What is {a} + {b}?,{a + b}\n" for a in range(6) for b in range(6)))
    return path


@pytest.fixture(scope="module")
def config(model, table):
    task = f"rows:{table},heldout=8,answer_length=6,template=chat"
    return Config(pretrained=str(model), task=task, **STEPS)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A model that has learned nothing earns no reward: it imitates first."""
    config = dataclasses.replace(config, warmup=WarmUp(max_steps=2, check_every=2, batch=8, learning_rate=1e-2))
    return train(config, tmp_path_factory.mktemp("runs") / "run", quiet=True, console=Console(quiet=True))


def test_what_follows_from_the_model(config, model):
    assert config.model == tiny_hub.CONFIG
    assert config.vocab_size == tiny_hub.ROWS
    assert config.vocab_size > config.task.tokenizer.vocab_size
    assert config.warmup.max_steps == 0
    assert f"tokenizer={model}" in config.task.spec
    assert config.task.stops == (2, 0)


def test_a_run_starts_from_the_weights_and_moves_them(config, model, finished):
    programs = Programs(config)
    start = programs.fresh_params()
    key = jax.random.key(0)
    _, loaded = load_folder(model, lambda policy: state_shardings(programs.mesh, policy.init, key))
    jax.tree.map(np.testing.assert_array_equal, start, loaded)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start, finished.params)
    assert all(jax.tree.leaves(moved))


def test_a_run_is_read_back_by_its_folder(config, finished):
    again = Config.from_json(read_config(finished.folder))
    assert dataclasses.replace(again, warmup=config.warmup).to_json() == config.to_json()
    _, params, step = load_run(finished.folder)
    assert step == config.steps
    jax.tree.map(np.testing.assert_array_equal, params, finished.params)


def test_what_is_exported_is_a_model_to_start_from(config, finished, tmp_path):
    out = export_run(finished.folder, tmp_path / "out")
    tokenizer = published.tokenizer_of(str(out))
    assert (tokenizer.stops, tokenizer.eos, tokenizer.template) == ((2, 0), 2, tiny_hub.TEMPLATE)
    assert tokenizer.encode("What is 1 + 2?") == config.task.tokenizer.encode("What is 1 + 2?")
    onward = dataclasses.replace(config, pretrained=str(out), task=config.task)
    jax.tree.map(np.testing.assert_array_equal, Programs(onward).fresh_params(), finished.params)
    with pytest.raises(RunError, match="not empty"):
        export_run(finished.folder, out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pretrained": "nowhere"}, "no model folder or .gguf file 'nowhere'"),
        ({"pretrained": "nowhere.gguf"}, "no model folder or .gguf file 'nowhere.gguf'"),
        ({"pretrained": "no-such/model"}, "no-such/model is no folder here and cannot be downloaded"),
        ({"model": DecoderConfig(layers=7)}, "only bfloat16, recompute, attention may be set"),
        ({"warmup": WarmUp(max_steps=1), "task": "rows:{table},tokenizer=nothing"}, "no tokenizer 'nothing'"),
    ],
)
def test_a_wrong_request_is_refused(changes, words, model, table):
    task = changes.pop("task", "rows:{table},heldout=8").format(table=table)
    with pytest.raises(ValueError, match=re.escape(words)):
        Config(**({"pretrained": str(model), **STEPS} | changes), task=task)


def test_more_tokens_than_rows_are_refused(model, tmp_path, table):
    path = tiny_hub.write_model(tmp_path / "small")
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace(f'"vocab_size": {tiny_hub.ROWS}', '"vocab_size": 100'))
    with pytest.raises(ConfigError, match=r"knows 100 tokens, and those of task rows:.*tokenizer="):
        Config(pretrained=str(path), task=f"rows:{table},heldout=8,tokenizer={model}", **STEPS)


def test_bfloat16_may_be_asked_for(config):
    wide = dataclasses.replace(config, model=dataclasses.replace(config.model, bfloat16=True))
    assert wide.model.bfloat16
    assert Config.from_json(wide.to_json()).model == wide.model


def test_how_a_model_is_computed_may_be_asked_for_and_is_not_part_of_what_is_exported(config, model, tmp_path):
    asked = dataclasses.replace(config, model=DecoderConfig(recompute=False), task=config.task)
    assert asked.model == dataclasses.replace(config.model, recompute=False)
    hub = dataclasses.replace(read_hub(model), config=asked.model)
    params = nn.unbox(Policy(hub.config, hub.vocab_size).init(jax.random.key(0)))
    save_folder(tmp_path, hub, params)
    assert read_hub(tmp_path).config == config.model
