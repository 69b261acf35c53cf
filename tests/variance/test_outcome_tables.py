"""Tables of outcomes: what is seen to be wrong with them, what follows from them, what is not read."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close

from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.tables import OutcomeTable, tabular_policy

pytestmark = pytest.mark.usefixtures("float64")


SOUND = {"probs": [0.25, 0.75], "scores": [[3.0], [-1.0]], "rewards": [1.0, 0.0]}
TOKENS = {"token_scores": [[[2.0], [1.0]], [[-1.0], [5.0]]], "lengths": [2, 1]}
WRONG = {
    "probs": [{"probs": [0.25, 0.7]}, {"probs": [1.25, -0.25]}, {"probs": [[0.25, 0.75]]}, {"probs": []}],
    "scores": [{"scores": [[3.0], [-1.1]]}, {"scores": [3.0, -1.0]}, {"scores": [[float("nan")], [1.0]]}],
    "rewards": [{"rewards": [1.0]}, {"rewards": [float("inf"), 0.0]}],
    "lengths": [{"lengths": [0, 1]}, {"lengths": [1.5, 1]}, {"lengths": [1]}],
    "energies": [{"energies": [1.0]}, {"energies": [-1.0, 1.0]}],
    "token_scores": [
        {"token_scores": [[[2.0], [1.0]], [[-1.0], [5.0]]]},  # two tokens, but the lengths say one
        {**TOKENS, "lengths": [3, 1]},
        {**TOKENS, "token_scores": [[2.0, 1.0], [-1.0, 0.0]]},
    ],
    "logp": [{"logp": [[-1.0], [-1.0]]}, {"logp": [[0.0, 0.0], [0.0, 0.0]]}],
    "behaviour_logp": [{"behaviour_logp": [[-1.0], [-1.0]]}, {"behaviour_logp": [-0.7, -0.7]}],
    "extras": [{"extras": {"noise": [0.5]}}],
}


@pytest.mark.parametrize(("field", "change"), [(field, change) for field, rows in WRONG.items() for change in rows])
def test_a_wrong_table_is_seen(field, change):
    OutcomeTable(**SOUND)
    with pytest.raises(ValueError, match=f"^OutcomeTable: {field}"):
        OutcomeTable(**{**SOUND, **change})


def test_what_lies_after_the_end_of_an_answer_is_not_read():
    table = OutcomeTable(**SOUND, **TOKENS)
    padded = dataclasses.replace(table, token_scores=jnp.asarray([[[2.0], [1.0]], [[-1.0], [jnp.nan]]]))
    assert_close(table.token_scores, padded.token_scores)
    assert_close(jnp.sum(table.token_scores, axis=1), table.scores)
    assert_close(table.known["token_energy"], [[4, 1], [1, 0]])
    assert_close(table.energy, [9, 1])


def test_energies_are_those_of_the_scores_unless_they_are_given():
    """Also of a table whose scores were replaced."""
    table = OutcomeTable([0.25, 0.75], [[3.0], [-1.0]], [1.0, 0.0], [2, 2])
    assert_close(table.energy, [9, 1])
    assert_close(dataclasses.replace(table, scores=[[6.0], [-2.0]]).energy, [36, 4])
    proxy = dataclasses.replace(table, energies=[1.0, 0.0])
    assert_close(proxy.energy, [1, 0])
    weighted = energy_weighted(leave_one_out=True)
    assert moments(weighted, proxy, 3).trace_var != moments(weighted, table, 3).trace_var


def test_scores_of_a_tabular_policy_are_the_slopes_of_its_log_probabilities():
    """∇ log π of a whole answer, by central differences, which a step of 1e-6 leaves with rounding of some 1e-10."""
    logits = np.random.default_rng(0).normal(size=(3, 3))
    table = tabular_policy(logits, lambda path: float(len(path)), eos=2, length=3)
    by_logits = lambda x: tabular_policy(x, len, eos=2, length=3).probs  # noqa: E731
    step = 1e-6
    for c, v in ((0, 1), (2, 0)):
        shift = np.zeros((3, 3))
        shift[c, v] = step
        slope = (jnp.log(by_logits(logits + shift)) - jnp.log(by_logits(logits - shift))) / (2 * step)
        np.testing.assert_allclose(table.scores[:, 3 * c + v], slope, atol=1e-8)
