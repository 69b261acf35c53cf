"""Problems that are left out before training, and what that changes of the gradient."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.advantages._base import apply
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.baselines.leave_one_out import leave_one_out
from jaxrl_llm.rollouts.select.instance_filter import in_band, solvable


@pytest.mark.parametrize("of", [jnp.asarray, np.asarray])
def test_solvable_counts_right_attempts(of):
    correct = of(np.arange(4)[:, None] > np.arange(8)[None])  # 0, 1, 2 and 3 right of 8
    np.testing.assert_array_equal(solvable(correct), [False, True, True, True])
    np.testing.assert_array_equal(solvable(correct, at_least=3), [False, False, False, True])


@pytest.mark.parametrize("of", [jnp.asarray, np.asarray])
@pytest.mark.parametrize(
    ("attempts", "low", "high", "expected"),
    [(8, 2 / 8, 5 / 8, range(2, 6)), (5, 0.2, 0.8, range(1, 5)), (10, 0.2, 0.8, range(2, 9)), (4, 0.2, 0.8, (1, 2, 3))],
)
def test_bands_hold_their_ends(of, attempts, low, high, expected):
    rate = of(np.arange(attempts + 1, dtype=np.float32) / np.float32(attempts))
    np.testing.assert_array_equal(np.flatnonzero(in_band(rate, low, high)), list(expected))


def test_unsolvable_problems_have_no_centred_gradient_but_a_sampled_one_under_negative_credit():
    """Bandits that share their logits: prompt 0 has no right outcome. The divisor is fixed: all answers."""
    rng = np.random.default_rng(0)
    outcome = rng.integers(0, 3, (3, 6))
    right = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0]], bool)
    reward = np.take_along_axis(right, outcome, axis=1).astype(np.float32)
    score = np.eye(3)[outcome] - 1 / 3
    kept = np.asarray(solvable(right))
    np.testing.assert_array_equal(kept, [False, True, True])

    def gradient(credit, rows):
        return np.einsum("pg,pgd->d", np.asarray(credit(reward[rows]), np.float64), score[rows]) / outcome.size

    everything = np.ones(3, bool)
    for transform in (group_mean(), leave_one_out()):
        credit = lambda r, t=transform: apply(t, jnp.asarray(r))  # noqa: E731
        np.testing.assert_array_equal(gradient(credit, everything), gradient(credit, kept))
        assert np.abs(gradient(credit, kept)).max() > 0.01
    negative = lambda r: r - 1  # noqa: E731
    lost = gradient(negative, everything) - gradient(negative, kept)
    np.testing.assert_allclose(lost, -score[0].sum(axis=0) / outcome.size, atol=1e-12)
    assert np.abs(lost).max() > 0.01
    np.testing.assert_allclose((np.eye(3) - 1 / 3).mean(axis=0), 0, atol=1e-12)  # its expectation
