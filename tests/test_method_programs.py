"""What a recipe has drawn: pools of answers, greedy answers, the task's own entries; and what cannot be drawn."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm import random, recipes
from jaxrl_llm.advantages import Traits, chain, group_mean, per_token, stateless
from jaxrl_llm.advantages.baselines.greedy import greedy
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.measurements import rollout_metrics
from jaxrl_llm.programs import Programs
from jaxrl_llm.rewards._base import RewardTransform
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import GREEDY
from jaxrl_llm.rollouts.select._gather import with_extras
from jaxrl_llm.rollouts.select.down_selection import keep_first
from jaxrl_llm.rollouts.select.plan import Plan
from jaxrl_llm.rollouts.stopping import Stopping
from jaxrl_llm.sharding import MeshShape
from jaxrl_llm.tasks import addition
from jaxrl_llm.tasks._table import DeviceTask
from jaxrl_llm.types import Grade


def parity(answer, acted, truth):
    """The share of even tokens."""
    del truth
    even = jnp.sum(acted & (answer % 2 == 0), axis=-1) / jnp.sum(acted, axis=-1)
    return Grade(reward=even, components=even[..., None], valid=jnp.ones(even.shape, bool))


TASK = dataclasses.replace(addition(digits=1), grade_fn=parity, component_names=("even",))
PLAIN = recipes.grpo()
GREEDY_CREDIT = per_token(greedy())


class OnHost(DeviceTask):
    """The task, graded from host arrays."""

    def grade(self, answer, acted, truth):
        assert isinstance(answer, np.ndarray)
        return self.grade_fn(jnp.asarray(answer), jnp.asarray(acted), truth)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The backend's optimisations take most of the time of programs that run once."""
    monkeypatch.setattr(jax, "jit", tiny.jit)


def config(recipe=PLAIN, task=TASK, **changes):
    fixed = {"model": tiny.SMALL, "mesh": MeshShape(), "warmup": WarmUp(max_steps=0), "seed": 3}
    return Config(task=task, recipe=recipe, **fixed, **({"prompts_per_step": 4, "answers_per_prompt": 2} | changes))


def programs(recipe=PLAIN, task=TASK):
    """The programs of a run and parameters that say something."""
    built = Programs(config(recipe, task), jax.devices()[:1])
    return built, tiny.decoder(vocab=TASK.tokenizer.vocab_size)[1]


def sampled(recipe=PLAIN, task=TASK, step=2):
    built, params = programs(recipe, task)
    return built.sample(params, step)


def tokens_drawn(rollout):
    return int(rollout_metrics(rollout, rollout.reward, rollout.policy_logp)["num_tokens"])


def test_a_pool_of_answers_begins_with_those_that_would_have_been_drawn():
    pools = []

    def select(pool):
        pools.append(pool.answer.shape)
        return with_extras(keep_first(2)(pool), pool=pool.answer, pool_acted=pool.acted)

    ours = sampled(dataclasses.replace(PLAIN, plan=lambda prompts, answers: Plan(select=select, answers=3 * answers)))
    alone = sampled()
    length = TASK.answer_length
    assert pools == [(4, 6, length)]
    assert ours.answer.shape == alone.answer.shape == (4, 2, length)
    for name in ("prompt", "prompt_id", "answer", "acted", "policy_logp", "reward", "version"):
        np.testing.assert_allclose(getattr(ours, name), getattr(alone, name), atol=1e-5, err_msg=name)
    np.testing.assert_array_equal(ours.extras["noise"], alone.extras["noise"])
    assert len(np.unique(ours.extras["pool"].reshape(24, -1), axis=0)) > 12, "the others are other answers"
    assert tokens_drawn(ours) == int(ours.extras["pool_acted"].sum()) > int(ours.acted.sum())
    assert tokens_drawn(alone) == int(alone.acted.sum())


def test_a_pool_of_prompts_is_that_of_a_larger_step():
    def select(pool):
        first = jax.tree.map(lambda x: x[:4], pool)
        return with_extras(first, pool_acted=pool.acted, ids=pool.prompt_id)

    ours = sampled(dataclasses.replace(PLAIN, plan=lambda prompts, answers: Plan(select=select, prompts=3)))
    rows = random.epoch_rows(random.stream_key(3, random.Stream.ORDER), 1, 12, len(TASK.train.prompt))
    np.testing.assert_array_equal(ours.extras["ids"], rows)
    np.testing.assert_array_equal(ours.prompt_id, rows[:4])
    assert tokens_drawn(ours) == int(ours.extras["pool_acted"].sum()) > int(ours.acted.sum())


def greedily(params, rollout, task=TASK):
    """Grades of the likeliest answers, token by token."""
    stopping = Stopping.of(task)
    keys = random.answer_keys(random.stream_key(9, random.Stream.SAMPLE), 0, rollout.prompt_id, 1)
    policy = tiny.decoder(vocab=task.tokenizer.vocab_size)[0]
    tokens = (rollout.prompt, rollout.prompt_mask)
    out = tiny.jit(lambda params: generate(policy, params, *tokens, keys, GREEDY, stopping))(params)
    return task.grade(out.answer, out.acted, {})


@pytest.mark.parametrize("on_device", [True, False])
def test_greedy_rewards_are_those_of_the_greedy_answers_of_the_whole_pool(on_device):
    plan = lambda prompts, answers: Plan(select=lambda pool: jax.tree.map(lambda x: x[4:], pool), prompts=2)  # noqa: E731
    fields = {field.name: getattr(TASK, field.name) for field in dataclasses.fields(TASK)}
    task = TASK if on_device else OnHost(**fields | {"on_device": False})
    built, params = programs(dataclasses.replace(PLAIN, advantage=GREEDY_CREDIT, plan=plan), task)
    rollout = built.sample(params, 1)
    grade = greedily(params, rollout)
    assert len(np.unique(grade.reward)) > 1
    np.testing.assert_allclose(rollout.extras["greedy_reward"], grade.reward[:, 0], atol=1e-6)


def test_a_greedy_answer_that_cannot_be_graded_is_a_baseline_of_0():
    def graded(answer, acted, truth):
        """Answers that begin with an odd token are not."""
        full = parity(answer, acted, truth)
        valid = answer[..., 0] % 2 == 0
        return Grade(reward=jnp.where(valid, full.reward, jnp.nan), components=full.components, valid=valid)

    task = dataclasses.replace(TASK, grade_fn=graded)
    built, params = programs(dataclasses.replace(PLAIN, advantage=GREEDY_CREDIT), task)
    rollout = built.sample(params, 1)
    grade = greedily(params, rollout, task)
    assert 0 < int(grade.valid.sum()) < 4
    expected = np.where(grade.valid, grade.reward, 0)[:, 0]
    np.testing.assert_allclose(rollout.extras["greedy_reward"], expected, atol=1e-6)


def test_entries_of_the_task_that_are_read_come_along():
    truth = dict(TASK.train.truth) | {
        "difficulty": jnp.arange(len(TASK.train.prompt), dtype=jnp.float32),
        "secret": jnp.zeros(len(TASK.train.prompt)),
    }
    task = dataclasses.replace(TASK, train=dataclasses.replace(TASK.train, truth=truth))
    weigh = stateless(
        lambda advantage, rollout: advantage * rollout.extras["difficulty"][:, None],
        Traits(unbiased="no", needs=("difficulty",)),
    )
    recipe = dataclasses.replace(PLAIN, advantage=per_token(chain(group_mean(), weigh)))
    rollout = sampled(recipe, task)
    np.testing.assert_array_equal(rollout.extras["difficulty"], rollout.prompt_id.astype(jnp.float32))
    assert set(rollout.extras) == {"difficulty", "noise"}


# what cannot be drawn


def needing(*names):
    traits = PLAIN.advantage.traits
    return PLAIN.advantage._replace(traits=dataclasses.replace(traits, needs=names))


def several(prompts):
    return PLAIN.advantage._replace(traits=dataclasses.replace(PLAIN.advantage.traits, minimum_prompts=prompts))


def components(number):
    return RewardTransform(lambda: (), lambda rollout, state: (rollout, state), components=number)


def planning(**fields):
    return lambda prompts, answers: Plan(select=lambda pool: pool, **fields)


WRONG = {
    "a pool smaller than the group": (
        {"plan": planning(answers=1)},
        "answers_per_prompt=2: recipe grpo draws 1 answers to a prompt and keeps some",
    ),
    "a plan that makes no sense": ({"plan": planning(prompts=0)}, "recipe grpo: prompts must be 1 or more, not 0"),
    "more prompts than there are": (
        {"plan": planning(prompts=50)},
        f"(x 50 drawn), but task {TASK.spec} has {len(TASK.train.prompt)} training problems: at most "
        f"{len(TASK.train.prompt) // 50}",
    ),
    "too few components": (
        {"reward": components(2)},
        f"recipe grpo reads 2 reward components, but task {TASK.spec} gives 1 (",
    ),
    "a need nobody knows": (
        {"advantage": needing("difficulty")},
        f"recipe grpo reads 'difficulty', which neither the trainer nor task {TASK.spec} gives",
    ),
    "a need with a slip": ({"advantage": needing("entrpy")}, "gives; did you mean 'entropy'"),
    "too few prompts": (
        {"advantage": several(5)},
        "prompts_per_step=4: recipe grpo compares prompts and needs at least 5",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_recipe_that_cannot_be_run_is_refused(name):
    changes, message = WRONG[name]
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(dataclasses.replace(PLAIN, **changes))


def test_what_just_fits_is_taken_and_one_more_is_not():
    rows = len(TASK.train.prompt)
    two = dataclasses.replace(TASK, component_names=("a", "b"))
    known = ("entropy", "noise", *TASK.train.truth)
    for fits, task, too_much in (
        ({"plan": planning(answers=2)}, TASK, {"plan": planning(answers=1)}),
        ({"plan": planning(prompts=rows // 4)}, TASK, {"plan": planning(prompts=rows // 4 + 1)}),
        ({"reward": components(2)}, two, {"reward": components(3)}),
        ({"advantage": several(4)}, TASK, {"advantage": several(5)}),
        ({"advantage": needing("value"), "gives": ("value",)}, TASK, {"advantage": needing("value"), "gives": ()}),
        ({"advantage": needing(*known)}, TASK, {"advantage": needing(*known, "value")}),
    ):
        recipe = dataclasses.replace(PLAIN, **fits)
        assert config(recipe, task).recipe is recipe
        with pytest.raises(ConfigError):
            config(dataclasses.replace(PLAIN, **too_much), task)


def test_a_warm_up_needs_solutions():
    nothing = dataclasses.replace(TASK.train, solution_mask=jnp.zeros_like(TASK.train.solution_mask))
    with pytest.raises(ConfigError, match="knows no solutions to imitate"):
        Config(task=dataclasses.replace(TASK, train=nothing), recipe=PLAIN, prompts_per_step=4)
