"""Scales: numbers of other libraries on the same rewards, and what each scale is where nothing can be divided."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_llm.advantages import apply, chain, group_mean, group_std, leave_one_out, no_baseline
from jaxrl_llm.advantages.scales.batch_std import batch_std
from jaxrl_llm.advantages.scales.batch_whiten import batch_whiten
from jaxrl_llm.advantages.scales.fixed_beta_density import fixed_beta_density
from jaxrl_llm.advantages.scales.gpg_scale import gpg_scale
from jaxrl_llm.advantages.scales.leave_one_out_std import leave_one_out_std

A, B, C = [1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]
D, E, F = [0, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.5, 0.9, 0.4]
GROUPS = jnp.array([A, B, C, D, E, F], jnp.float32)
LENGTHS = np.tile([2, 5, 3, 4], 6)

NEMO = chain(leave_one_out(), leave_one_out_std(eps=1e-6))

# rule -> transform, credit of A, of F; the versions are those that were current in early 2026.
PEERS = {
    "TRL, scale_rewards=batch": (
        chain(group_mean(), batch_std(ddof=1, eps=1e-4)),
        [1.5680, -0.5227, -0.5227, -0.5227],
        [-0.6272, 0, 0.8363, -0.2091],
    ),
    "grpo of NeMo-RL": (NEMO, [1, -0.5773, -0.5773, -0.5773], [-1.5119, 0, 3.4915, -0.3797]),
    "GPG of verl": (
        chain(group_mean(), gpg_scale()),
        [1.2857, -0.4286, -0.4286, -0.4286],
        [-0.5143, 0, 0.6857, -0.1714],
    ),
}


@pytest.mark.parametrize("rule", PEERS)
def test_peers_numbers_are_reproduced(rule):
    transform, a, f = PEERS[rule]
    credit = np.asarray(apply(transform, GROUPS))
    np.testing.assert_allclose(credit[[0, 5]], [a, f], atol=6e-5)  # four decimals
    np.testing.assert_array_equal(credit[[3, 4]], 0)


def whitened_by_token(credit):
    """Each answer as often as it has tokens, as one group: verl's whitening, row by row of the first token."""
    flat = np.repeat(np.asarray(credit).ravel(), LENGTHS)[None]
    tokens = np.asarray(apply(batch_whiten(ddof=1, eps=1e-8, guard="variance"), jnp.asarray(flat)))[0]
    return tokens[np.cumsum(LENGTHS) - LENGTHS].reshape(6, 4)


def test_whitening_of_repeated_answers_is_reinforce_plus_plus_of_verl():
    rows = whitened_by_token(GROUPS)[[0, 3, 5]]
    expected = [[1.1147, -1.0231, -1.0231, -1.0231], [-1.0231] * 4, [-0.5955, 0.0458, 0.9009, -0.1680]]
    np.testing.assert_allclose(rows, expected, atol=6e-5)  # four decimals


def test_whitening_of_repeated_centred_answers_is_the_group_form_of_verl():
    rows = whitened_by_token(apply(group_mean(), GROUPS))[[0, 3, 5]]
    expected = [[2.3543, -0.6976, -0.6976, -0.6976], [0.0654] * 4, [-0.8502, 0.0654, 1.2861, -0.2398]]
    np.testing.assert_allclose(rows, expected, atol=6e-5)  # four decimals


def test_peer_defect_a_group_without_signal_gets_credit_from_token_weights_but_not_from_answers():
    centred = chain(group_mean(), batch_whiten(ddof=1, eps=1e-8, guard="variance"))
    assert abs(whitened_by_token(apply(group_mean(), GROUPS))[3, 0]) > 0.06
    np.testing.assert_allclose(apply(centred, GROUPS)[jnp.array([3, 4])], 0, atol=1e-6)
    assert np.all(np.asarray(apply(batch_whiten(ddof=1, eps=1e-8, guard="variance"), GROUPS))[3] < -0.5)


def test_whitening_guards_go_where_they_say():
    reward = jnp.array([[0.0, 1.0], [0.5, 0.1]])
    centred, v = reward - reward.mean(), float(jnp.var(reward, ddof=1))
    for guard, divisor in (("deviation", v**0.5 + 0.3), ("variance", (v + 0.3) ** 0.5), ("floor", 0.3**0.5)):
        np.testing.assert_allclose(
            apply(batch_whiten(ddof=1, eps=0.3, guard=guard), reward), centred / divisor, rtol=1e-6
        )
    assert v < 0.3, "the floor has lost its point"
    population = apply(batch_whiten(ddof=0, eps=1e-8, guard="floor"), reward)
    np.testing.assert_allclose(population, centred / jnp.std(reward), rtol=1e-6)


def test_whitening_ignores_shift_and_stretch():
    whiten = batch_whiten(ddof=1, eps=1e-12, guard="variance")
    np.testing.assert_allclose(apply(whiten, 3 * GROUPS + 5), apply(whiten, GROUPS), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guard", ["deviation", "variance", "floor"])
def test_whitening_of_one_answer_or_of_equal_answers_is_0(guard):
    whiten = batch_whiten(ddof=1, eps=1e-8, guard=guard)
    np.testing.assert_array_equal(apply(whiten, jnp.full((3, 4), 0.1)), 0)
    np.testing.assert_array_equal(apply(whiten, jnp.array([[0.7]])), 0)
    np.testing.assert_array_equal(apply(whiten, jnp.array([[0.7, 2.0]]), jnp.array([[True, False]])), 0)


def test_batch_std_is_of_the_raw_rewards_and_not_of_the_credit():
    between = jnp.array([[1.0, 0.9], [0.1, 0.0]])
    raw = apply(chain(group_mean(), batch_std(ddof=1, eps=0.0)), between)
    np.testing.assert_allclose(raw, np.array([[0.05, -0.05]] * 2) / np.std(between, ddof=1), rtol=1e-5)
    np.testing.assert_array_equal(apply(batch_std(ddof=1, eps=0.1), jnp.full((2, 2), 0.3)), jnp.full((2, 2), 0.3))


def test_peer_defect_grpo_of_nemo_sums_to_more_than_0_in_a_group():
    np.testing.assert_allclose(np.sum(apply(NEMO, GROUPS)[0]), 1 - 3**0.5, rtol=1e-5)
    np.testing.assert_allclose(np.sum(apply(leave_one_out(), GROUPS)[0]), 0, atol=1e-6)


def test_peer_defect_deviation_of_equal_others_does_not_explode():
    """NeMo-RL reported advantages of -2075 here: a difference of sums of squares lost to rounding."""
    reward = np.array([[0] + [0.95] * 7])
    credit = np.asarray(apply(NEMO, jnp.asarray(reward, jnp.float32)))[0]
    sigma = np.std([0] + [0.95] * 6, ddof=1)
    np.testing.assert_allclose(credit[0], -0.95, rtol=1e-6)
    np.testing.assert_allclose(credit[1:], (0.95 - 0.95 * 6 / 7) / (sigma + 1e-6), rtol=1e-5)


def test_leave_one_out_std_leaves_pairs_as_they_are():
    pair = jnp.array([[1.0, 0.0], [0.3, 0.8]])
    np.testing.assert_array_equal(apply(leave_one_out_std(eps=1e-6), pair), pair)


def test_gpg_counts_valid_answers_of_all_prompts():
    reward = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    valid = jnp.array([[True, True, False], [True, True, True]])
    np.testing.assert_allclose(apply(gpg_scale(), reward, valid), np.where(valid, reward, 0) * 5 / 3, rtol=1e-6)
    np.testing.assert_array_equal(apply(chain(group_mean(), gpg_scale()), jnp.zeros((2, 3))), 0)


def test_a_fixed_density_of_1_and_1_changes_nothing():
    np.testing.assert_allclose(
        apply(chain(group_mean(), fixed_beta_density(alpha=1, beta=1)), GROUPS), apply(group_mean(), GROUPS), rtol=1e-6
    )


def test_a_fixed_density_of_three_halves_is_grpo_up_to_pi_over_8():
    with jax.enable_x64(True):
        reward = jnp.array([A, B, C, D, E], jnp.float64)
        grpo = apply(chain(group_mean(), group_std(ddof=0, eps=0.0)), reward)
        fixed = apply(chain(group_mean(), fixed_beta_density(alpha=1.5, beta=1.5)), reward)
        np.testing.assert_allclose(fixed, np.pi / 8 * grpo, rtol=1e-12)


def test_a_fixed_density_divides_by_the_density():
    with jax.enable_x64(True):
        reward = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 4)))
        p = np.mean(reward, axis=1, keepdims=True)
        actual = apply(chain(no_baseline(), fixed_beta_density(alpha=2.5, beta=3)), reward)
        np.testing.assert_allclose(actual, reward / stats.beta.pdf(p, 2.5, 3), rtol=1e-10)


def test_a_fixed_density_is_bounded_and_leaves_the_edges():
    far = jnp.array([[1e-4, 0.0], [0.0, 0.0], [1.0, 1.0]])
    credit = apply(fixed_beta_density(alpha=5, beta=1, maximum=1e3), far)
    np.testing.assert_allclose(credit, [[0.1, 0], [0, 0], [1, 1]], rtol=1e-5)
