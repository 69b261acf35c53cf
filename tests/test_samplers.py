"""A run whose answers come from elsewhere: the same rollout from the same answers, and none from a lost one."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from stub_server import Stub, reply, serving

from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.metrics import read_metrics
from jaxrl_llm.programs import Programs
from jaxrl_llm.rollouts.completions import Server
from jaxrl_llm.rollouts.generate import Answers
from jaxrl_llm.rollouts.openai_sampler import OpenAISampler, Patience
from jaxrl_llm.rollouts.sampler import on_device
from jaxrl_llm.train import train

CONFIG = Config(
    **{"task": "addition,digits=1,terms=2", "recipe": "rloo", "prompts_per_step": 8, "answers_per_prompt": 2},
    **{"steps": 2, "warmup": WarmUp(max_steps=0), "model": tiny.SMALL, "measure_kl": False},
)


@pytest.fixture(scope="module")
def programs():
    return Programs(CONFIG)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_sampler_on_the_device_gives_the_same_rollout_from_outside(programs):
    params = programs.fresh_params()
    outside = copy.copy(programs)
    outside.sampler = on_device(programs.policy)
    assert_same(outside.sample(params, 2), programs.sample(params, 2))


def test_a_lost_answer_is_invalid_whatever_a_grader_says(programs):
    """The right answer to every problem, of which one has not come."""
    task, told = CONFIG.task, {}

    def sampler(params, prompt, prompt_mask, keys, rules, stopping, limit):
        told.update(params=params, rules=rules, stopping=stopping, prompts=len(prompt), limit=limit)
        answer = jnp.full((*keys.shape, stopping.length), task.tokenizer.eos)
        acted = jnp.zeros(answer.shape, bool).at[..., 0].set(True).at[3, 1].set(False)
        logp = jnp.where(acted, -1.0, 0.0)
        truncated = jnp.zeros(keys.shape, bool)
        return Answers(answer=answer, acted=acted, behaviour_logp=logp, policy_logp=logp, truncated=truncated)

    run = copy.copy(programs)
    run.sampler = sampler
    rollout = run.sample("parameters", 1)
    assert (told["params"], told["limit"]) == ("parameters", None)
    assert (told["prompts"], told["rules"]) == (8, CONFIG.sampling)
    assert told["stopping"].length == task.answer_length
    assert np.argwhere(~np.asarray(rollout.valid)).tolist() == [[3, 1]]
    assert_same(rollout.version, np.zeros((8, 2), np.int32))


@pytest.mark.long
def test_a_run_trains_on_answers_of_a_server_and_loses_some(tmp_path):
    """The server answers at random, and one prompt never: its answers are invalid, and the run ends all the same."""
    vocab = CONFIG.task.tokenizer.vocab_size

    def behave(body, path, tries):
        draw = np.random.default_rng(body["seed"])
        size = int(draw.integers(1, body["max_tokens"]))
        ids = [*draw.integers(3, vocab, size - 1).tolist(), *body["stop_token_ids"]]
        return (503, {}) if body["seed"] % 5 == 0 else (200, reply(body, ids, [-1.0] * len(ids)))

    with serving(Stub(behave)) as url:
        patience = Patience(seconds=5.0, tries=2, wait=0.01, together=8)
        sampler = OpenAISampler(Server(url=url, model="m"), vocab, patience=patience)
        config = dataclasses.replace(CONFIG, eval_problems=8, eval_samples=1)
        train(config, tmp_path / "run", quiet=True, sampler=sampler)
    log = read_metrics(tmp_path / "run")
    assert sampler.counts["failed"] > 0
    lost = sum(share * 16 for share in log["invalid_ratio"][1])
    assert round(lost) == sampler.counts["failed"]
    assert log["sampling/logp_difference_max"][1][0] > 0.1, "the server is another policy, and it is seen"
