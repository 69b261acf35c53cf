"""Off-policy weights on problem B, answers drawn from the behaviour policy: figures of the reference text.

They are given to four digits, two of them to ten; every figure is met to half a unit of its last digit. b is the value.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from problems import B, assert_close, bigram, truncated

from jaxrl_llm.advantages import at_end, chain, no_baseline
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.advantages.tokens.dense_rewards import dense_rewards
from jaxrl_llm.advantages.tokens.reward_to_go import reward_to_go
from jaxrl_llm.losses.aggregate import answer_sum
from jaxrl_llm.losses.corrections import self_normalised_group
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.per_decision import per_decision_returns
from jaxrl_llm.losses.surrogates import (
    cispo,
    clipped,
    gspo,
    prefix_ratio,
    reinforce,
    sequence_ratio,
    token_ratio,
    topr,
    vespo,
)
from jaxrl_llm.variance.exact import moments

VALUE = B["binary"]["facts"]["value"]

pytestmark = pytest.mark.usefixtures("float64")


def of_surrogate(surrogate, value=VALUE, group=1, table=None, **fields):
    objective = Objective(surrogate=surrogate, aggregate=answer_sum(), **fields)
    return moments(constant(value=float(value)), table or bigram(off_policy=True), group, objective=objective)


@pytest.mark.parametrize(
    ("surrogate", "bias", "trace_var"),
    [
        (sequence_ratio(), "0.0000", "0.3581151725"),
        (prefix_ratio(), "0.0383", "0.3400"),
        (token_ratio(), "0.0459", "0.3092"),
        (cispo(low=0.1, high=0.1), "0.0468", "0.3137"),
        (clipped(low=0.1, high=0.1), "0.2246", "0.1073"),
        (topr(), "0.0245", "0.2628688245"),
        (vespo(), "0.0358", "0.2055"),
    ],
    ids=["sequence", "prefix", "token", "cispo", "ppo", "topr", "vespo"],
)
def test_bias_and_variance(surrogate, bias, trace_var):
    found = of_surrogate(surrogate)
    for value, figure in ((found.bias_norm, bias), (found.trace_var, trace_var)):
        unit = 10.0 ** -len(figure.split(".")[1])
        assert abs(value - float(figure)) <= 0.5 * unit


def test_self_normalised_weights():
    found = of_surrogate(reinforce(), group=2, corrections=(self_normalised_group(),))
    assert abs(found.bias_norm - 0.0262) <= 0.5e-4
    assert abs(found.trace_var - 0.1726) <= 0.5e-4


def test_per_decision_weights_on_dense_rewards_do_not_always_vary_less():
    """0.6633 with each reward weighed by its prefix, 0.6432 with every reward to go weighed by the whole answer."""
    table = bigram("dense", off_policy=True)
    unpaid = dataclasses.replace(table, rewards=jnp.zeros(15))
    weighed = lambda tokens: per_decision_returns(tokens, tokens.advantage) * tokens.logp  # noqa: E731
    paid = chain(at_end(no_baseline()), dense_rewards())
    for transform, surrogate, figure in (
        (paid, weighed, 0.6633),
        (chain(paid, reward_to_go(discount=1.0)), sequence_ratio(), 0.6432),
    ):
        objective = Objective(surrogate=surrogate, aggregate=answer_sum())
        found = moments(transform, unpaid, 1, objective=objective, target=table.gradient)
        assert_close(found.bias_norm, 0)
        assert abs(found.trace_var - figure) <= 0.5e-4


@pytest.mark.parametrize(
    "surrogate", [sequence_ratio(), token_ratio(), prefix_ratio()], ids=["answer", "token", "prefix"]
)
def test_t13_plain_ratios_are_neutral_to_a_baseline(surrogate):
    """E_mu[ρ s] = 0 given the prefix, so b moves no mean."""
    means = [np.asarray(of_surrogate(surrogate, value=b).mean_grad) for b in (0.0, 0.3, 1.0)]
    assert_close(means[1], means[0])
    assert_close(means[2], means[0])


@pytest.mark.parametrize(
    "surrogate",
    [truncated(1.15), cispo(low=0.1, high=0.1), topr(), vespo(), clipped(low=0.1, high=0.1), gspo(low=0.05, high=0.05)],
    ids=["truncated", "cispo", "topr", "vespo", "ppo", "gspo"],
)
def test_t13_with_a_truncated_ratio_a_baseline_changes_the_objective(surrogate):
    means = [np.asarray(of_surrogate(surrogate, value=b).mean_grad) for b in (0.2, 0.6)]
    assert np.linalg.norm(means[0] - means[1]) > 1e-3


def test_a_behaviour_policy_that_is_the_policy_changes_nothing():
    table = bigram()
    same = dataclasses.replace(table, behaviour_logp=table.logp)
    plain, found = moments(constant(value=VALUE), table, 1), of_surrogate(sequence_ratio(), table=same)
    assert_close([found.bias_norm, found.trace_var], [plain.bias_norm, plain.trace_var])
