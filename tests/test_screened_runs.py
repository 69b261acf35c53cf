"""Runs that measure the pass rates of the training problems first, and ask by them."""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm import programs as programs_module
from jaxrl_llm import recipes
from jaxrl_llm import trained as trained_module
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.evaluate import Evaluator, right
from jaxrl_llm.metrics import RunError
from jaxrl_llm.programs import Programs
from jaxrl_llm.runs import read_attempts, write_attempts
from jaxrl_llm.tasks import addition
from jaxrl_llm.train import train
from jaxrl_llm.types import Grade


def parity(answer, acted, truth):
    """Right, for problems whose truth is even: as many even tokens as odd ones or more. The others are never solved."""
    even = jnp.sum(acted & (answer % 2 == 0), axis=-1) * 2 >= jnp.sum(acted, axis=-1)
    possible = (truth["answer"][..., 0] % 2 == 0)[:, None]
    reward = (even & possible).astype(jnp.float32)
    return Grade(reward=reward, components=jnp.stack([reward, reward], axis=-1), valid=jnp.ones(reward.shape, bool))


TASK = dataclasses.replace(addition(digits=1), grade_fn=parity)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    for module in (programs_module, trained_module):
        monkeypatch.setattr(module, "Policy", tiny.Bigram)


def config(recipe, **changes):
    plain = {"prompts_per_step": 4, "answers_per_prompt": 2, "steps": 6, "eval_every": 6, "checkpoint_every": 2}
    plain |= {"eval_problems": 8, "eval_samples": 2, "samples_every": 6, "seed": 3, "temperature": 0.9}
    return Config(
        task=TASK,
        recipe=recipe,
        model=tiny.SMALL,
        warmup=WarmUp(max_steps=0),
        **(plain | changes),
    )


def asked(programs, params, steps):
    return np.concatenate([programs.sample(params, step).prompt_id for step in range(1, steps + 1)])


def test_problems_that_were_never_solved_are_never_asked_and_easy_ones_come_first():
    made = config(recipes.sari(attempts=6))
    programs = Programs(made, jax.devices()[:1])
    params = programs.fresh_params()
    count = len(TASK.train.prompt)
    sampler = Evaluator(programs.policy, TASK, programs.mesh, 3, count, 1, split="train")
    correct = right(sampler.decode(params, 0, 6, made.sampling)[1])
    rate = correct.mean(axis=1)
    assert 0 < (rate > 0).sum() < count
    programs.screen(correct)
    steps = (rate > 0).sum() // 4
    seen = asked(programs, params, steps)
    assert len(set(seen.tolist())) == len(seen) == 4 * steps
    assert rate[seen].min() > 0
    np.testing.assert_array_equal(rate[seen], np.sort(rate[seen])[::-1])


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in lines]


def test_a_resumed_run_asks_what_was_measured_once(tmp_path, capsys):
    made = config(recipes.rif_rft(attempts=4), prompts_per_step=8)
    train(made, tmp_path / "whole", quiet=True)
    correct = read_attempts(tmp_path / "whole")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())["screening"]
    kept = int(correct.any(axis=1).sum())
    assert summary == {"problems": kept, "of": len(correct), "attempts": 4, "pass_rate": correct.mean()}
    assert f"{kept} of {len(correct)} training problems stay" in " ".join(capsys.readouterr().out.split())
    assert rows(tmp_path / "whole")[-1]["epoch"] == 6 / (kept // 8)

    broken = shutil.copytree(tmp_path / "whole", tmp_path / "broken")
    shutil.rmtree(broken / "checkpoints" / "6")
    train(made, broken, resume=True, quiet=True)
    assert rows(broken) == rows(tmp_path / "whole")
    # The file is what the resumed run goes by: with another one it asks other problems.
    other = shutil.copytree(tmp_path / "whole", tmp_path / "other")
    shutil.rmtree(other / "checkpoints" / "6")
    write_attempts(other, np.roll(correct, 1, axis=0))
    train(made, other, resume=True, quiet=True)
    assert rows(other)[:4] == rows(broken)[:4]
    assert rows(other)[4:] != rows(broken)[4:]


def test_damage_and_too_few_problems_are_named(tmp_path):
    programs = Programs(config(recipes.rif_rft(attempts=2)), jax.devices()[:1])
    correct = np.zeros((40, 2), bool)
    with pytest.raises(ConfigError, match=r"recipe rif_rft,attempts=2,at_least=1: .* leaves none of 40 problems"):
        programs.screen(correct)
    correct[:3] = True
    with pytest.raises(ConfigError, match=r"keeps 3 of 40 .* at most prompts_per_step=3"):
        programs.screen(correct)
    with pytest.raises(RunError, match=r"attempts\.npy cannot be read"):
        read_attempts(tmp_path)
    write_attempts(tmp_path, correct)
    whole = (tmp_path / "attempts.npy").read_bytes()
    (tmp_path / "attempts.npy").write_bytes(whole[:-30])
    with pytest.raises(RunError, match=r"attempts\.npy cannot be read"):
        read_attempts(tmp_path)
    flipped = bytearray(whole)
    flipped[140] ^= 1
    (tmp_path / "attempts.npy").write_bytes(flipped)
    with pytest.raises(RunError, match=rf"{tmp_path}/attempts\.npy cannot be read: it is damaged: it has the crc32 "):
        read_attempts(tmp_path)
    assert np.load(io.BytesIO(flipped)).sum() == correct.sum() + 1, "as anyone else reads it"
    write_attempts(tmp_path, np.ones(3))
    with pytest.raises(RunError, match="must hold a table of booleans"):
        read_attempts(tmp_path)
