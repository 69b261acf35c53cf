"""Filter and refill keeps the direction, drawing the same prompt again does not: both by enumeration."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from select_pools import assert_fields_of_the_pool, chance, kept, labels, pool_of, weight

from jaxrl_llm.advantages._base import apply
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.rollouts.select.down_selection import max_variance
from jaxrl_llm.rollouts.select.dynamic_sampling import dynamic_sampling, mixed, reroll_until_mixed
from jaxrl_llm.rollouts.select.plan import Plan
from jaxrl_llm.rollouts.select.reinforce_ada import balanced

NAN = np.nan


def prompts_kept(rollout):
    return (np.asarray(rollout.prompt_id) // 7)[np.asarray(rollout.valid).any(axis=1)].tolist()


def test_first_mixed_groups_in_order_and_invalid_rows_where_there_are_fewer():
    reward = np.array([[0, 0, 0], [0, 1, 0], [1, 1, 1], [1, 0, 1], [0.1, 0.1, 0.1], [0, 0, 1]], np.float32)
    pool = pool_of(reward)
    for wanted, expected in ((1, [1]), (2, [1, 3]), (3, [1, 3, 5]), (5, [1, 3, 5])):
        out = jax.jit(dynamic_sampling(wanted))(pool)
        assert prompts_kept(out) == expected
        assert out.answer.shape == (wanted, 3, pool.answer.shape[2])
        assert kept(out) == [[0, 1, 2]] * len(expected) + [[]] * (wanted - len(expected))
        assert_fields_of_the_pool(pool, out)
    with pytest.raises(ValueError, match="cannot keep 7 of 6"):
        dynamic_sampling(7)(pool)


def test_only_valid_answers_make_a_group_mixed():
    reward = jnp.asarray([[0.0, 1, NAN], [0, 1, NAN], [1, NAN, NAN], [NAN, NAN, NAN], [0.1, 0.1, 0.1]])
    valid = jnp.asarray([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1]], bool)
    np.testing.assert_array_equal(jax.jit(mixed)(reward, valid), [True, False, False, False, False])


def test_groups_may_be_accepted_by_another_rule():
    band = lambda reward, valid: (reward.mean(axis=-1) > 0.4) & (reward.mean(axis=-1) < 0.9)  # noqa: E731
    reward = np.array([[0, 0, 1, 0], [1, 0, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]], np.float32)
    assert prompts_kept(jax.jit(dynamic_sampling(3, accept=band))(pool_of(reward))) == [1, 3]


# Two prompts are drawn, three times, with these chances; a group is two answers.
SHARE, RATE = np.array([0.7, 0.3]), np.array([0.1, 0.6])


def refilled(credit, wanted):
    """Expected Σ over the rows kept of credit · score, by prompt [2], and the expected number of rows."""
    reward = labels(6).reshape(-1, 3, 2)
    pool = pool_of(np.zeros((3, 2), np.float32))
    select = jax.jit(jax.vmap(lambda r: dynamic_sampling(wanted)(dataclasses.replace(pool, reward=r))))
    out = select(jnp.asarray(reward))
    value, filled = np.asarray(credit(out.reward, out.valid)), np.asarray(out.valid[..., 0])
    total, rows = np.zeros(2), 0.0
    for drawn in map(np.array, itertools.product(range(2), repeat=3)):
        probability = np.prod(SHARE[drawn]) * np.prod(chance(reward, RATE[drawn][:, None]), axis=-1)
        row = drawn[np.asarray(out.prompt_id) // 7]
        w = probability[:, None] * filled * weight(value, out.reward, RATE[row][..., None])
        np.add.at(total, row, w)
        rows += probability @ filled.sum(axis=-1)
    return total, rows


def centred(reward, valid):
    return jax.vmap(lambda r, v: apply(group_mean(), r, v))(reward, valid)


@pytest.mark.parametrize("wanted", [1, 2])
def test_theorem_12_refilling_keeps_the_direction_at_one_over_the_share_of_mixed_groups(wanted):
    plain = SHARE * 1 / 2  # (G - 1) / G of ∇p, prompts as often as they are drawn
    accept = SHARE @ (2 * RATE * (1 - RATE))
    total, rows = refilled(centred, wanted)
    np.testing.assert_allclose(total / rows, plain / accept, rtol=1e-7)
    if wanted == 1:
        assert rows == pytest.approx(1 - (1 - accept) ** 3, abs=1e-12)


def test_theorem_12_needs_a_centred_credit():
    total, rows = refilled(lambda reward, valid: jnp.where(valid, reward - 1, 0), 1)
    ratio = total / rows / SHARE  # that credit has weight 1 on every prompt when nothing is filtered
    assert abs(ratio[0] / ratio[1] - 1) > 0.1


@pytest.mark.parametrize(("group", "blocks"), [(2, 1), (2, 3), (3, 2), (4, 2)])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_theorem_12_drawing_the_same_prompt_again_divides_by_the_share_of_mixed_groups(group, blocks, p):
    reward = labels(group * blocks)
    out = jax.jit(reroll_until_mixed(group))(pool_of(reward))
    assert bool(out.valid.all())
    equal = p**group + (1 - p) ** group
    w = chance(reward, p) @ weight(apply(group_mean(), out.reward), out.reward, p)
    assert w == pytest.approx((group - 1) / group * (1 - equal**blocks) / (1 - equal), rel=1e-6)


def test_the_first_mixed_block_else_the_last():
    reward = np.array([[0, 0, 1, 0, 0, 1], [1, 1, 1, 1, 0, 0], [0, 1, 1, 0, 1, 0]], np.float32)
    valid = np.ones((3, 6), bool)
    pool = pool_of(reward, valid)
    select = jax.jit(reroll_until_mixed(2))
    out = select(pool)
    assert kept(out) == [[2, 3], [4, 5], [0, 1]]
    assert_fields_of_the_pool(pool, out)
    valid[0, 2] = valid[2, :2] = False  # a group with one valid answer is not mixed
    assert kept(select(pool_of(reward, valid))) == [[4, 5], [4, 5], [2, 3]]
    with pytest.raises(ValueError, match="groups of 4"):
        reroll_until_mixed(4)(pool)


def test_a_plan_says_what_is_drawn():
    plan = Plan(prompts=3, select=dynamic_sampling(2))
    assert (plan.prompts, plan.answers) == (3, None)
    for wrong in ({"prompts": 0}, {"answers": 0}):
        with pytest.raises(ValueError, match="1 or more, not 0"):
            Plan(select=dynamic_sampling(2), **wrong)


@pytest.mark.parametrize("select", [dynamic_sampling(8), reroll_until_mixed(4), balanced(4, 4, 2), max_variance(4)])
def test_cutting_the_pool_over_devices_changes_nothing(select):
    reward = (np.random.default_rng(5).uniform(size=(16, 8)) < 0.2).astype(np.float32)
    pool = pool_of(reward)
    mesh = Mesh(np.asarray(jax.devices()).reshape(8), ("prompts",), axis_types=(AxisType.Auto,))
    cut = jax.device_put(pool, NamedSharding(mesh, PartitionSpec("prompts")))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(select)(pool), jax.jit(select)(cut))
