"""Laws over every advantage transform found in the folders, and a broken member beside each law."""

import inspect

import chex
import every_transform
import jax.numpy as jnp
import numpy as np
import pytest
from broken_transforms import BROKEN
from every_transform import KINDS, MEMBERS, SINGLES
from laws import LAWS, REWARD, VALID, WORLD, T, an_all_equal_group_gets_0_if_centred, of, spoiled, update

from jaxrl_llm.advantages import (
    Traits,
    apply,
    at_end,
    bare_rollout,
    beta_density,
    chain,
    group_mean,
    leave_one_out,
    moving_average,
    no_baseline,
    per_token,
    stateless,
)


@pytest.mark.parametrize("member", MEMBERS)
@pytest.mark.parametrize("law", LAWS)
def test_law(law, member):
    LAWS[law](MEMBERS[member])


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_member_is_caught(name):
    law, member, error = BROKEN[name]
    with pytest.raises(error):
        LAWS[law](member)


def test_every_law_has_a_broken_member():
    assert {law for law, _, _ in BROKEN.values()} == set(LAWS)


@pytest.mark.parametrize("name", every_transform.found())
def test_a_file_holds_one_public_function_named_as_the_file(name):
    module = inspect.getmodule(every_transform.found()[name])
    assert module is not None, f"advantages: the file {name}.py has no function {name}"
    own = [
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
    ]
    assert [key for key in own if not key.startswith("_")] == [name]


def test_a_transform_without_an_instance_fails_with_its_name():
    def newcomer(*, temperature: float):
        raise AssertionError

    with pytest.raises(LookupError, match=r"newcomer .*: give it a row"):
        every_transform.build("newcomer", newcomer)
    with pytest.raises(LookupError, match="lost"):
        every_transform.build("lost", None)


def test_no_row_of_instances_is_left_over():
    assert {key.partition("(")[0] for key in every_transform.INSTANCES} <= set(every_transform.found())


# chain


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_a_chain_is_centred_where_it_says_so(first, second):
    pair = chain(SINGLES[first], SINGLES[second])
    assert pair.traits.minimum_group == max(SINGLES[first].traits.minimum_group, SINGLES[second].traits.minimum_group)
    if pair.traits.centred:
        an_all_equal_group_gets_0_if_centred(pair, jit=False)


def test_only_the_first_link_is_centred_to_the_last_bit():
    """A compiler may fuse what comes before a mean into the subtraction, and then the two round differently."""
    assert not chain(beta_density(), group_mean()).traits.centred
    assert chain(group_mean(), beta_density()).traits.centred


def test_chain_runs_from_left_to_right_and_keeps_each_state():
    for name in KINDS:
        first = SINGLES[name]
        for second in (group_mean(), moving_average()):
            middle, one = update(first, REWARD, VALID, jit=False)
            last, two = second.update(middle, second.init(), WORLD)
            chex.assert_trees_all_equal(update(chain(first, second), REWARD, VALID, jit=False), (last, (one, two)))


def test_chain_of_one_is_its_link():
    link = leave_one_out()
    credit, state = update(chain(link), REWARD, VALID)
    np.testing.assert_array_equal(credit, update(link, REWARD, VALID)[0])
    assert state == ((),)
    assert chain(link).traits == link.traits


def test_chain_refuses_the_state_of_another_chain():
    with pytest.raises(ValueError, match="zip"):
        update(chain(group_mean(), no_baseline()), REWARD, VALID, ((),), jit=False)


# per_token and at_end

WHERE = np.asarray(WORLD.acted) & VALID[..., None]


def token_credit(lift, transform, rollout=WORLD):
    return np.asarray(lift(transform).update(rollout.reward, transform.init(), rollout)[0])


@pytest.mark.parametrize("member", KINDS)
def test_per_token_gives_acted_tokens_of_valid_answers_the_credit_of_their_answer(member):
    credit = np.asarray(of(SINGLES[member], WORLD, jit=False)[0])
    tokens = token_credit(per_token, SINGLES[member], spoiled(WORLD, np.nan))
    np.testing.assert_allclose(tokens, np.where(WHERE, credit[..., None], 0), rtol=1e-6)
    assert per_token(SINGLES[member]).traits == SINGLES[member].traits


@pytest.mark.parametrize("member", KINDS)
def test_at_end_gives_the_last_acted_token_the_credit_of_its_answer(member):
    credit = np.asarray(of(SINGLES[member], WORLD, jit=False)[0])
    tokens = token_credit(at_end, SINGLES[member], spoiled(WORLD, np.nan))
    last = np.zeros_like(WHERE)
    for p, g in np.argwhere(WHERE.any(axis=-1)):
        last[p, g, np.flatnonzero(WHERE[p, g])[-1]] = True
    np.testing.assert_allclose(tokens, np.where(last, credit[..., None], 0), rtol=1e-6)
    assert at_end(SINGLES[member]).traits == SINGLES[member].traits


@pytest.mark.parametrize("lift", [per_token, at_end])
def test_a_lift_gives_nothing_to_padding_and_does_not_divide_by_length(lift):
    assert np.all(token_credit(lift, no_baseline())[~np.asarray(WORLD.acted)] == 0)
    credits_invalid = stateless(lambda a, rollout: a, Traits(unbiased="no"))
    assert np.all(token_credit(lift, credits_invalid)[~VALID] == 0)
    acted = jnp.concatenate([WORLD.acted, jnp.zeros_like(WORLD.acted)], axis=-1)
    longer = bare_rollout(WORLD.reward, WORLD.valid, acted)
    np.testing.assert_array_equal(token_credit(lift, group_mean(), longer)[..., :T], token_credit(lift, group_mean()))


def test_apply_takes_bare_arrays():
    np.testing.assert_allclose(apply(leave_one_out(), jnp.array([[6.0, 3.0], [9.0, 12.0]])), [[3, -3], [-3, 3]])
