"""Numbers of other libraries on the same rewards, and of the papers, that the transforms must reproduce."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_llm import advantages, masked
from jaxrl_llm.advantages import (
    bare_rollout,
    beta_density,
    chain,
    group_mean,
    group_std,
    leave_one_out,
    moving_average,
    no_baseline,
)

A, B, C = [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]
D, E, F = [0, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.5, 0.9, 0.4]
GROUPS = jnp.array([A, B, C, D, E, F], jnp.float32)
BNPO = chain(group_mean(), beta_density())


@functools.cache
def compiled(transform):
    return jax.jit(lambda reward, valid: advantages.apply(transform, reward, valid))


def apply(transform, reward, valid=None):
    return np.asarray(compiled(transform)(jnp.asarray(reward), valid))


def grpo(ddof, eps):
    return chain(group_mean(), group_std(ddof=ddof, eps=eps))


# rule -> transform, credit of A, of F. That of D and E is 0.
PEERS = {
    "GRPO of TRL": (grpo(1, 1e-4), [1.4997, -0.4999, -0.4999, -0.4999], [-1.0187, 0, 1.3583, -0.3396]),
    "GRPO of verl": (grpo(1, 1e-6), [1.5000, -0.5, -0.5, -0.5], [-1.0190, 0, 1.3587, -0.3397]),
    "GRPO of open-instruct": (grpo(0, 1e-8), [1.7321, -0.5774, -0.5774, -0.5774], [-1.1767, 0, 1.5689, -0.3922]),
    "RLOO": (leave_one_out(), [1, -0.3333, -0.3333, -0.3333], [-0.4, 0, 0.5333, -0.1333]),
    "Dr. GRPO": (group_mean(), [0.75, -0.25, -0.25, -0.25], [-0.3, 0, 0.4, -0.1]),
    "BNPO, official": (BNPO, [0.7166, -0.2389, -0.2389, -0.2389], [-0.2732, 0, 0.3643, -0.0911]),
    "REINFORCE": (no_baseline(), A, F),
}


@pytest.mark.parametrize("rule", PEERS)
def test_peers_numbers_are_reproduced(rule):
    transform, a, f = PEERS[rule]
    credit = apply(transform, GROUPS)
    np.testing.assert_allclose(credit[[0, 5]], [a, f], atol=6e-5)  # four decimals
    if rule != "REINFORCE":
        np.testing.assert_array_equal(credit[[3, 4]], 0)


def test_peer_defect_four_libraries_mean_different_numbers_by_grpo():
    conventions = [apply(grpo(ddof, eps), GROUPS)[0, 0] for ddof, eps in ((1, 1e-4), (1, 1e-6), (0, 1e-8))]
    assert len(np.unique(np.round(conventions, 4))) == 3


@pytest.mark.parametrize("transform", [leave_one_out(), group_mean(), grpo(1, 1e-6)])
def test_peer_defect_a_group_of_one_keeps_its_raw_reward(transform):
    np.testing.assert_array_equal(apply(transform, jnp.array([[1.0]])), [[0.0]])
    one_valid = apply(transform, jnp.array([[1.0, 7.0]]), jnp.array([[True, False]]))
    np.testing.assert_array_equal(one_valid, [[0.0, 0.0]])


def test_rloo_on_the_vectors_of_skyrl():
    np.testing.assert_allclose(apply(leave_one_out(), jnp.array([[6.0, 3], [9, 12]])), [[3, -3], [-3, 3]])


def test_a_moving_average_weighs_the_steps_by_age():
    transform = moving_average(decay=0.5)
    state = transform.init()
    baselines = []
    for reward in ([[1.0, 1.0]], [[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 0.0]]):
        before = jnp.array(reward)
        credit, state = transform.update(before, state, bare_rollout(before))
        baselines.append(float((before - credit)[0, 0]))
    # 0; 1; (.5·1 + 0)/(1.5); (.25·1 + .5·0 + .5)/1.75
    np.testing.assert_allclose(baselines, [0, 1, 0.5 / 1.5, 0.75 / 1.75], rtol=1e-6)


def test_a_step_without_a_valid_answer_leaves_the_moving_average_as_it_is():
    transform = moving_average()
    reward = jnp.array([[1.0, 0.5]])
    _, state = transform.update(reward, transform.init(), bare_rollout(reward))
    _, after = transform.update(reward, state, bare_rollout(reward, jnp.zeros((1, 2), bool)))
    np.testing.assert_array_equal(after, state)


# BNPO


def rewards_with_means(*means, group=4):
    """0/1 rewards whose groups have these means."""
    return jnp.array([[float(i < round(mean * group)) for i in range(group)] for mean in means])


def test_bnpo_golden_batch():
    reward = jnp.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]], jnp.float32)
    expected = [
        [0.6729800, -0.2243267, -0.2243267, -0.2243267],
        [0.4474372, 0.4474372, -0.4474372, -0.4474372],
        [0.2515249, 0.2515249, 0.2515249, -0.7545748],
        [0, 0, 0, 0],
    ]
    np.testing.assert_allclose(apply(BNPO, reward), expected, rtol=2e-6)


def test_bnpo_weight_is_the_inverse_of_the_fitted_beta_density():
    reward = np.random.default_rng(0).uniform(size=(6, 5)) ** 2
    p = reward.mean(axis=1)
    m, v = p.mean(), p.var(ddof=1)
    k = m * (1 - m) / v - 1
    density = stats.beta.pdf(p, max(1 + k * m / 3, 1), max(1 + k * (1 - m) / 3, 1))
    with jax.enable_x64(True):
        actual = apply(BNPO, jnp.asarray(reward))
        np.testing.assert_allclose(actual, (reward - p[:, None]) / density[:, None], rtol=1e-10)


def test_bnpo_is_reinforce_where_alpha_and_beta_are_1():
    reward = jnp.array([[1, 0.8, 1, 0.8], [0.2, 0, 0, 0.2]])  # bimodal: v above m(1 - m)
    np.testing.assert_allclose(apply(BNPO, reward), apply(group_mean(), reward), rtol=1e-6)


def test_bnpo_is_grpo_up_to_pi_over_8_where_alpha_and_beta_are_three_halves():
    reward = rewards_with_means(0.25, 0.5, 0.75)  # m = 1/2, v = 1/16, so k = 3
    with jax.enable_x64(True):
        reward = jnp.asarray(np.asarray(reward), jnp.float64)
        np.testing.assert_allclose(apply(BNPO, reward), np.pi / 8 * apply(grpo(0, 0.0), reward), rtol=1e-12)


@pytest.mark.parametrize(
    "reward",
    [rewards_with_means(0.5), rewards_with_means(0.25, 0.25, 0.25), rewards_with_means(0, 0, 1, 1)],
    ids=["one prompt", "prompts equally hard", "bimodal"],
)
def test_bnpo_is_the_group_mean_where_nothing_can_be_fitted(reward):
    np.testing.assert_allclose(apply(BNPO, reward), apply(group_mean(), reward), rtol=2e-6)


def test_bnpo_counts_means_that_differ_by_rounding_alone_as_equal():
    rng = np.random.default_rng(0)
    reward = np.array([rng.permutation([0.2, 0.5, 0.9, 0.4, 0.3, 0.7]) for _ in range(8)], np.float32)
    means = masked.mean(jnp.asarray(reward), jnp.ones((8, 6), bool), axis=1)
    assert len(np.unique(means)) > 1, "the case has lost its point: the means agree to the last bit"
    np.testing.assert_allclose(apply(BNPO, reward), apply(group_mean(), reward), rtol=2e-6)


def test_bnpo_weight_is_bounded_for_a_prompt_far_from_the_rest():
    reward = np.concatenate([[[0.04, 0, 0, 0]], np.tile([1, 1, 0, 0], (511, 1))])
    credit = apply(BNPO, jnp.asarray(reward, jnp.float32))[0]
    np.testing.assert_allclose(credit, 1e6 * np.array([0.03, -0.01, -0.01, -0.01]), rtol=1e-5)


def test_bnpo_weight_does_not_count_prompts_without_a_valid_answer():
    reward = rewards_with_means(0.25, 0.5, 0.75, 0)
    valid = jnp.ones((4, 4), bool).at[3].set(False)
    np.testing.assert_allclose(apply(BNPO, reward, valid)[:3], apply(BNPO, reward[:3]), rtol=1e-6)
    assert not np.allclose(apply(BNPO, reward)[:3], apply(BNPO, reward[:3]), rtol=1e-2)
