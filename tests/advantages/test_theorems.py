"""Every trait that a transform claims, against exact expectations over all groups of small bandits, in float64."""

import dataclasses

import enumerate_groups
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from enumerate_groups import Table, cosine, credit_of_batches, expected_gradient, extras_of, sequences, tables
from every_transform import KINDS, MEMBERS, SINGLES

from jaxrl_llm import masked, recipes
from jaxrl_llm.advantages import (
    AdvantageTransform,
    Traits,
    bare_rollout,
    chain,
    group_mean,
    group_std,
    leave_one_out,
    moving_average,
    no_baseline,
    stateless,
)

SIZES = [(1, 2, 4), (1, 3, 3), (2, 2, 2), (2, 3, 2)]  # prompts, group, outcomes
CLAIMING = {name: t for name, t in MEMBERS.items() if t.traits.f_prime is not None}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def cases(traits):
    """Tables with a size of group, on which the claims of a transform must hold."""
    for prompts, group, outcomes in SIZES:
        if prompts >= traits.minimum_prompts and group >= traits.minimum_group:
            yield from ((table, prompts, group) for table in tables(prompts, outcomes))
    if traits.minimum_prompts == 1:
        yield from ((table, 1, 3) for table in sequences())
    if traits.unbiased == "no":  # what looks at right and wrong answers turns nothing where none is right
        yield from ((Table(table.logits, np.array([[1.0, 0.0], [0.0, 1.0]])), 2, 4) for table in tables(2, 2))


def within(traits, table):
    """The table with rewards of the transform's domain."""
    return dataclasses.replace(table, rewards=np.round(table.rewards)) if traits.domain == "binary" else table


def assert_bias_as_claimed(transform, state=None):
    """`unbiased` and `scale`. Raises AssertionError where they are false."""
    traits, angles = transform.traits, []
    for given, prompts, group in cases(traits):
        table = within(traits, given)
        mean = expected_gradient(transform, table, group, state)
        if traits.unbiased == "no":
            both = np.any(np.abs(mean) > 1e-12) and np.any(np.abs(table.gradient) > 1e-12)
            angles.append(cosine(mean, table.gradient) if both else 1)
        else:
            scale = traits.scale(prompts, group) if traits.unbiased == "scaled" else 1
            np.testing.assert_allclose(mean, scale * table.gradient, rtol=1e-9, atol=1e-9)
    if traits.unbiased == "no":
        assert min(angles) < 1 - 1e-6, "claims another direction, yet is proportional to the gradient on every table"


def assert_f_prime_as_claimed(transform):
    """For 0/1 rewards the mean is f_prime(p, G) times the gradient of the pass rate p."""
    for group in (2, 4):
        for rewards, policy in zip(([1, 0, 0], [0, 1, 1], [0, 0, 1]), tables(1, 3), strict=True):
            table = Table(policy.logits, np.array([rewards], float))
            p = float(np.sum(table.probs * table.rewards))
            mean = expected_gradient(transform, table, group)
            np.testing.assert_allclose(mean, transform.traits.f_prime(p, group) * table.gradient, rtol=1e-9, atol=1e-12)


def assert_uses_self_as_claimed(transform):
    """Without it, the credit of an answer rises with its own reward at slope 1 whatever the others earn."""
    rng, binary = np.random.default_rng(0), transform.traits.domain == "binary"
    reward = rng.integers(0, 2, size=(2, 3)).astype(float) if binary else rng.uniform(size=(2, 3))
    steps = np.eye(6).reshape(6, 2, 3) * 1e-3
    if binary:
        steps = np.eye(6).reshape(6, 2, 3) * (1 - 2 * reward)
    table, every = Table(np.zeros((2, 6)), np.zeros((2, 6))), np.tile(np.arange(6).reshape(2, 3), (6, 1, 1))
    extras = {name: jnp.asarray(x) for name, x in extras_of(table, every).items() if name in transform.traits.needs}
    acted = jnp.ones((6, 2, 3, 1), bool)
    of = credit_of_batches(transform.update)
    plain = np.broadcast_to(reward, steps.shape)
    moved, still = (of(jnp.asarray(x), transform.init(), acted, extras) for x in (reward + steps, plain))
    rise = np.asarray(moved - still).reshape(6, 6)
    coupled = not np.allclose(np.diag(rise), steps.sum(axis=(1, 2)), atol=1e-9)
    assert transform.traits.uses_self == coupled


@pytest.mark.parametrize("member", MEMBERS)
def test_bias_is_as_claimed(member):
    assert_bias_as_claimed(MEMBERS[member])


@pytest.mark.parametrize("member", CLAIMING)
def test_weight_on_the_gradient_of_the_pass_rate_is_as_claimed(member):
    assert_f_prime_as_claimed(CLAIMING[member])


@pytest.mark.parametrize("member", MEMBERS)
def test_coupling_to_the_own_reward_is_as_claimed(member):
    assert_uses_self_as_claimed(MEMBERS[member])


@pytest.mark.parametrize("second", KINDS)
@pytest.mark.parametrize("first", KINDS)
def test_a_chain_claims_no_more_than_it_keeps(first, second):
    pair = chain(SINGLES[first], SINGLES[second])
    if pair.traits.unbiased != "no":
        assert_bias_as_claimed(pair)


def test_a_chain_of_two_scaled_links_claims_nothing():
    double = stateless(lambda a, rollout: 2 * a, Traits(unbiased="scaled", scale=lambda p, g: 2.0))
    assert_bias_as_claimed(double)
    assert_bias_as_claimed(chain(double, leave_one_out()))
    assert_bias_as_claimed(chain(double, moving_average()))
    assert chain(double, double).traits.unbiased == "no"
    assert chain(double, group_mean()).traits.unbiased == "no"


def test_unbiased_recipes_say_so():
    expected = {"bnpo": "no", "dr_grpo": "scaled", "grpo": "no", "reinforce": "yes", "rloo": "yes", "opo": "no"}
    assert {name: getattr(recipes, name)().advantage.traits.unbiased for name in expected} == expected


# Each estimator by its own theorem, without its traits.


@pytest.mark.parametrize("group", [2, 3, 4])
def test_the_group_mean_shrinks_the_gradient_by_one_gth(group):
    for table in tables(1, 3):
        mean = expected_gradient(group_mean(), table, group)
        np.testing.assert_allclose(mean, (group - 1) / group * table.gradient, rtol=1e-12)


@pytest.mark.parametrize("group", [2, 3, 4])
def test_leave_one_out_equals_the_gradient(group):
    for table in tables(1, 3):
        np.testing.assert_allclose(expected_gradient(leave_one_out(), table, group), table.gradient, rtol=1e-12)


def test_division_by_the_group_deviation_turns_the_gradient():
    grpo = chain(group_mean(), group_std(ddof=1, eps=1e-4))
    angles = [cosine(expected_gradient(grpo, table, 4), table.gradient) for table in tables(1, 3)]
    assert min(angles) < 0.9999


def test_a_moving_average_is_unbiased_whatever_it_has_seen():
    earlier = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 4), low=-5, high=5))
    transform = moving_average()
    _, state = transform.update(earlier, transform.init(), bare_rollout(earlier))
    assert state[1] > 0
    assert_bias_as_claimed(transform, state)


def test_a_mean_that_includes_the_present_batch_is_caught():
    def update(advantage, state, rollout):
        state = 0.9 * state + 0.1 * masked.mean(advantage, rollout.valid)
        return advantage - state, state

    with pytest.raises(AssertionError):
        assert_bias_as_claimed(AdvantageTransform(lambda: jnp.zeros(()), update, Traits(unbiased="yes")))


# Broken members: a false trait is caught.


def claims(transform, **traits):
    return transform._replace(traits=dataclasses.replace(transform.traits, **traits))


FALSE_BIAS = {
    "group mean, unbiased": claims(group_mean(), unbiased="yes"),
    "group mean, (G-1)/(G+1)": claims(group_mean(), scale=lambda p, g: (g - 1) / (g + 1)),
    "group mean, scaled by prompts": claims(group_mean(), scale=lambda p, g: (g - 1) / g / p),
    "leave one out, scaled": claims(leave_one_out(), unbiased="scaled", scale=lambda p, g: (g - 1) / g),
    "GRPO, unbiased": claims(chain(group_mean(), group_std(ddof=1, eps=1e-4)), unbiased="yes"),
    "no baseline, another direction": claims(no_baseline(), unbiased="no"),
    "best of the group as baseline, unbiased": stateless(
        lambda a, rollout: a - jnp.max(a, axis=-1, keepdims=True), Traits(unbiased="yes")
    ),
}


@pytest.mark.parametrize("name", FALSE_BIAS)
def test_a_false_bias_is_caught(name):
    with pytest.raises(AssertionError):
        assert_bias_as_claimed(FALSE_BIAS[name])


def test_a_false_f_prime_is_caught():
    for transform in (
        claims(group_mean(), f_prime=lambda p, g: 1.0),
        claims(chain(group_mean(), group_std(ddof=0, eps=1e-8)), f_prime=lambda p, g: (p * (1 - p)) ** -0.5),
    ):
        with pytest.raises(AssertionError):
            assert_f_prime_as_claimed(transform)


def test_a_false_uses_self_is_caught():
    for transform in (claims(group_mean(), uses_self=False), claims(leave_one_out(), uses_self=True)):
        with pytest.raises(AssertionError):
            assert_uses_self_as_claimed(transform)


# The enumerator itself.


def test_assignments_are_all_there_and_their_probabilities_add_up():
    every, probability = enumerate_groups.assignments(tables(2, 3)[0], 2)
    assert every.shape == (81, 2, 2)
    assert len(np.unique(every.reshape(81, 4), axis=0)) == 81
    np.testing.assert_allclose(probability.sum(), 1, rtol=1e-12)


def test_the_gradient_of_a_table_is_that_of_its_expected_reward():
    table = tables(2, 4)[1]
    value = lambda logits: jnp.mean(jnp.sum(jax.nn.softmax(logits) * table.rewards, axis=-1))  # noqa: E731
    np.testing.assert_allclose(table.gradient, jax.grad(value)(jnp.asarray(table.logits)), rtol=1e-12)


def test_expectations_refuse_float32():
    with jax.enable_x64(False), pytest.raises(AssertionError, match="float64"):
        expected_gradient(no_baseline(), tables(1, 3)[0], 2)
