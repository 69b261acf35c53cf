"""Which problems a run keeps, and in which order it sees them."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.random import Stream, epoch_rows, stream_key
from jaxrl_llm.rollouts.curriculum import easy_to_hard
from jaxrl_llm.rollouts.screening import Screening, everything, screened
from jaxrl_llm.rollouts.select.instance_filter import solvable

KEY = stream_key(0, Stream.ORDER)
CORRECT = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 0]], bool)


def epoch(agenda, batch=2):
    steps = len(agenda.rows) // batch
    return np.concatenate([agenda.rows[agenda.places(KEY, step, batch, len(agenda.rows))] for step in range(steps)])


def test_problems_stay_as_rows_of_the_whole_split_and_in_the_asked_order():
    agenda = screened(Screening(attempts=4, keep=solvable, order=easy_to_hard), CORRECT)
    np.testing.assert_array_equal(agenda.rows, [0, 2, 3, 5])
    np.testing.assert_array_equal(epoch(agenda), [3, 0, 5, 2])


def test_without_a_filter_all_stay_and_without_an_order_it_is_uniform():
    plain = everything(6)
    np.testing.assert_array_equal(epoch(plain), np.concatenate([epoch_rows(KEY, step, 2, 6) for step in range(3)]))
    ordered = screened(Screening(attempts=4, order=easy_to_hard), CORRECT)
    np.testing.assert_array_equal(ordered.rows, np.arange(6))
    rates = CORRECT.mean(axis=1)[epoch(ordered)]
    np.testing.assert_array_equal(rates, np.sort(rates)[::-1])
    kept = screened(Screening(attempts=4, keep=solvable), CORRECT)
    np.testing.assert_array_equal(epoch(kept), kept.rows[epoch(everything(4))])


def test_an_order_is_one_of_the_pass_rates_of_problems_that_stay():
    seen = []

    def order(rate):
        seen.append(rate)
        return epoch_rows

    screened(Screening(attempts=4, keep=solvable, order=order), CORRECT)
    np.testing.assert_array_equal(seen[0], jnp.asarray([0.75, 0.25, 1, 0.5]))


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"none of 3 problems: of 4 attempts at each, 0\.0% were right"):
        screened(Screening(attempts=4, keep=solvable), np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match="attempts must be 1 or more, not 0"):
        Screening(attempts=0)
