"""reasoning-gym as a task: its questions, its scorers, and wrong names refused without importing it."""

import importlib
import json
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest
from host_texts import prompts

from jaxrl_llm.tasks.reasoning_gym import _require_no_code, _sources, reasoning_gym


def test_reasoning_gym_asks_and_grades():
    task = reasoning_gym("products", size=60, heldout=15, max_digits=1, workers=1)
    assert (len(task.train.prompt), len(task.heldout.prompt)) == (60, 15)
    asked = prompts(task, task.train) + prompts(task, task.heldout)
    assert len(set(asked)) == 75
    for problems in (task.train, task.heldout):
        right = task.grade(problems.solution[:, None], problems.solution_mask[:, None], problems.truth)
        assert right.reward.min() == 1
        assert right.valid.all()
    others = jnp.roll(task.train.truth["row"], 1)
    wrong = task.grade(task.train.solution[:, None], task.train.solution_mask[:, None], {"row": others})
    assert wrong.reward.mean() < 0.2
    task.close()


def test_split_seeds_give_other_questions():
    """Item i of a data set is drawn from seed + i: seeds that lie near each other share nearly all questions."""
    tasks = [reasoning_gym("chain_sum", size=30, heldout=5, split_seed=seed, workers=1) for seed in (0, 1)]
    first, second = (set(prompts(task, task.train) + prompts(task, task.heldout)) for task in tasks)
    assert len(first & second) < 10
    for task in tasks:
        task.close()


def test_without_a_known_answer_there_is_no_solution():
    task = reasoning_gym("propositional_logic", size=6, heldout=2, workers=1)
    assert not task.train.solution_mask.any()
    assert not task.heldout.solution_mask.any()
    task.close()


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("chain_sun", {}, "no data set 'chain_sun'; did you mean 'chain_sum'"),
        ("chain_sum", {"max_term": 2}, "chain_sum has no option 'max_term'; did you mean 'max_terms'"),
        ("chain_sum", {"heldoutt": 2}, "did you mean 'heldout'"),
        ("chain_sum", {"seed": 2}, "use split_seed"),
        ("chain_sum", {"tokenizer": "chat"}, "did you mean 'char'"),
        ("chain_sum", {"size": 0}, "start at 1"),
        ("chain_sum", {"heldout": 0}, "start at 1"),
        ("chain_sum", {"split_seed": -1}, "split_seed"),
        ("chain_sum", {"threshold": 1.5}, "threshold"),
        ("chain_sum", {"min_terms": 9, "max_terms": 2}, "max_terms must be >= min_terms"),
        ("products", {"max_digits": 1, "size": 500}, "size + heldout can be at most"),
        (
            "chain_sum",
            {"size": 20, "heldout": 5, "prompt_length": 10},
            "25 of 25 prompts are longer than prompt_length=10",
        ),
        ("spell_backward", {"size": 20, "heldout": 5, "answer_length": 2}, "answers are longer than answer_length=2"),
    ],
)
def test_wrong_names_and_options_of_reasoning_gym_are_refused(name, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        reasoning_gym(name, **{"workers": 1, **options})


def test_questions_that_are_not_made_in_time_are_an_error(monkeypatch):
    monkeypatch.setattr(importlib.import_module("jaxrl_llm.tasks.reasoning_gym"), "MAKING", 1e-6)
    with pytest.raises(ValueError, match="cannot make chain_sum: no grade within"):
        reasoning_gym("chain_sum", size=5, heldout=2, workers=1)


REFUSAL = """
import sys, time
start = time.monotonic()
from jaxrl_llm.tasks.reasoning_gym import reasoning_gym
from jaxrl_llm.tasks.rows import rows
start = time.monotonic()
for name, options in (("chain_sun", {}), ("chain_sum", {"max_term": 2})):
    try:
        reasoning_gym(name, **options)
    except ValueError as error:
        print(error)
print(time.monotonic() - start)
print(sorted({"reasoning_gym", "datasets", "math_verify", "pandas", "pyarrow"} & set(sys.modules)))
"""


def test_a_wrong_name_is_refused_at_once_and_without_the_library():
    said = subprocess.run(
        [sys.executable, "-c", REFUSAL], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert "chain_sum" in said[0]
    assert "max_terms" in said[1]
    assert float(said[2]) < 1.0
    assert said[3] == "[]"


def test_names_and_options_are_those_of_the_library():
    """What is read from the source is what the library says when it is asked, in a process of its own."""
    module = importlib.import_module("jaxrl_llm.tasks.reasoning_gym")
    ask = (
        "import json, dataclasses; from reasoning_gym.factory import DATASETS; import reasoning_gym;"
        "print(json.dumps({n: sorted(f.name for f in dataclasses.fields(c)) for n, (_, c) in DATASETS.items()}))"
    )
    said = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout
    sources = module._sources()
    assert {name: sorted(module._fields(name, file)) for name, file in sources.items()} == json.loads(
        said.splitlines()[-1]
    )


@pytest.mark.parametrize(
    "options", [{"max_terms": [2]}, {"max_terms": "2"}, {"max_terms": "true"}, {"max_terms": "a,b"}]
)
def test_what_no_command_line_could_say_is_refused(options):
    with pytest.raises(ValueError, match="max_terms"):
        reasoning_gym("chain_sum", **options)


EVALUATE = [
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24"),
    *("simple_integration", "spiral_matrix", "string_insertion"),
]


@pytest.mark.parametrize("name", EVALUATE)
def test_a_scorer_that_evaluates_answers_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is refused: its scorer evaluates the answer as code \("):
        reasoning_gym(name)


def test_no_other_scorer_is_refused():
    refused = []
    for name, file in _sources().items():
        try:
            _require_no_code(name, file)
        except ValueError:
            refused.append(name)
    assert sorted(refused) == EVALUATE
