"""What the table of recipes says of them, against exact enumeration; and how the command line shows it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import cli, recipes, spec
from jaxrl_llm.advantages import group_mean, no_baseline, per_token
from jaxrl_llm.config_checks import GIVEN
from jaxrl_llm.losses import Objective, answer_mean, answer_sum, reinforce
from jaxrl_llm.measurements import MEASURED
from jaxrl_llm.recipe_table import markdown, rows
from jaxrl_llm.recipes import _base
from jaxrl_llm.recipes._base import Recipe, facts, unbiased
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.tables import tabular_policy

RECIPES = spec.public_functions(recipes)
EXTRAS = {"energy": (3,), "token_energy": (3, 2), "value": (3, 2), "noise": (3,), "duration": (3,)}
# What is claimed for the first update after sampling can be enumerated where answers, rewards and credit are those of
# the table: no selection, no other reward, no second network.
PLAIN = {
    name: recipe
    for name, recipe in ((name, function()) for name, function in RECIPES.items())
    if recipe.plan is None
    and recipe.screening is None
    and recipe.reward is _base.UNCHANGED
    and recipe.companion is None
}


@functools.cache
def policies(seed):
    """Two prompts, answers of one or two tokens: "", "a" and "aa", of which "a" is right, or all but it."""
    rng = np.random.default_rng(seed)

    def one(right):
        marks = iter(right)
        return tabular_policy(
            rng.normal(size=(2, 2)),
            lambda path: float(next(marks)),
            eos=1,
            length=2,
            extras={name: rng.uniform(0.2, 1, shape) for name, shape in EXTRAS.items()} | {"role": np.zeros(3, int)},
            prompt_extras={"greedy_reward": 1.0, "difficulty": 1.0, "drift": 0.0},
        )

    return one([0, 1, 0]), one([1, 0, 1])


def angle(recipe, group):
    """Smallest cosine of the expected first update and the gradient."""
    objective = dataclasses.replace(recipe.objective, penalties=())
    return min(
        moments(recipe.advantage, policies(seed), group, prompts=None, objective=objective).cos for seed in range(2)
    )


@pytest.mark.parametrize("name", PLAIN)
def test_unbiased_is_as_the_table_says(name):
    with jax.enable_x64(True):
        recipe = PLAIN[name]
        straight = angle(recipe, 4) > 1 - 1e-6  # aggregations weigh in float32
        assert straight != unbiased(recipe).startswith("no")


def test_what_turns_a_recipe_is_named():
    plain = Recipe(
        spec="plain",
        advantage=per_token(no_baseline()),
        objective=Objective(surrogate=reinforce(), aggregate=answer_sum()),
    )
    swap = dataclasses.replace
    assert unbiased(plain) == "yes"
    assert unbiased(swap(plain, advantage=per_token(group_mean()))) == "scaled"
    assert unbiased(swap(plain, objective=swap(plain.objective, aggregate=answer_mean()))) == "no: lengths"
    squared = lambda tokens: jax.lax.stop_gradient(jnp.square(tokens.advantage)) * tokens.logp  # noqa: E731
    assert unbiased(swap(plain, objective=swap(plain.objective, surrogate=squared))) == "no: surrogate"
    assert unbiased(recipes.topr_reinforce()) == "no: reward, lengths"
    assert unbiased(recipes.reroll()) == "no: selection"
    assert unbiased(recipes.psr()) == "no: lengths"
    assert unbiased(recipes.grpo()) == "no: advantage, lengths"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_has_its_row(name):
    row = {row.name: row for row in rows()}[name]
    assert all(row)
    assert row.verified.endswith(".")
    assert f"| `{name}` |" in markdown()


def test_a_recipe_without_its_facts_is_refused():
    def newcomer():
        """New method."""

    with pytest.raises(ValueError, match="newcomer lacks"):
        facts(newcomer)


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_on_the_command_line(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    cli.main(["recipes"])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= columns
    assert all(title in shown for title in ("paper", "formula", "unbiased?", "needs", "verified how"))
    assert all(f" {row.name} " in shown for row in rows())


def test_one_recipe_on_the_command_line(capsys):
    cli.main(["recipes", "oreal,token_model=true"])
    shown = capsys.readouterr().out
    assert "oreal,kl_coefficient=0.01,token_model=True" in shown.replace("\n", "")
    assert "class_denominators()" in shown
    assert "a second network" in shown


@pytest.mark.parametrize(("name", "says"), [("grop", "did you mean 'grpo'"), ("grpo,epss=1", "did you mean 'eps'")])
def test_a_wrong_name_is_refused(name, says, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["recipes", name])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "key"),
    [("maxrl", "kind"), ("spurious", "kind"), ("reinforce_ada", "target"), ("grpo_as_in_trl", "scale_rewards")],
)
def test_a_wrong_choice_is_refused_with_the_choices(name, key):
    with pytest.raises(spec.SpecError, match=f"{key} must be one of .*, .*, not 'other'"):
        spec.build(recipes, f"{name},{key}=other", "recipe")


def test_what_a_configuration_counts_on_is_measured():
    assert {*GIVEN} == {*MEASURED, "noise", "greedy_reward", "component_influence"}


def test_every_need_of_a_recipe_is_met():
    for name, function in RECIPES.items():
        recipe = function()
        assert set(recipe.needs) <= {*GIVEN, *recipe.gives}, name
