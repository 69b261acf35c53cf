"""What an estimate ignores: the origin of the rewards, their unit, and the digits that float32 leaves out."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, random_table, table_of
from test_vectors_cases import CASES, PLAIN, Case

from jaxrl_llm.advantages import chain, group_mean, group_std, leave_one_out, no_baseline
from jaxrl_llm.advantages.baselines.batch_leave_one_out import batch_leave_one_out
from jaxrl_llm.advantages.baselines.batch_mean import batch_mean
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.advantages.baselines.group_quantile import group_quantile
from jaxrl_llm.advantages.baselines.james_stein import james_stein
from jaxrl_llm.advantages.baselines.other_prompts_mean import other_prompts_mean
from jaxrl_llm.variance.exact import moments

pytestmark = pytest.mark.usefixtures("float64")

# Transform, prompts of a batch, and the power of the unit of the rewards that its credit has.
WITHOUT_ORIGIN = {
    "group mean": (group_mean(), 1, 1),
    "leave-one-out": (leave_one_out(), 1, 1),
    "energy": (energy_weighted(leave_one_out=False), 1, 1),
    "energy of the others": (energy_weighted(leave_one_out=True), 1, 1),
    "quantile": (group_quantile(level=0.4), 1, 1),
    "deviation": (chain(group_mean(), group_std(ddof=0, eps=0.0)), 1, 0),
    "batch mean": (batch_mean(), 2, 1),
    "batch, others": (batch_leave_one_out(), 2, 1),
    "other prompts": (other_prompts_mean(), 2, 1),
    "James-Stein": (james_stein(), 2, 1),
}


def recoded(tables, shift, unit):
    return [dataclasses.replace(table, rewards=unit * table.rewards + shift) for table in tables]


@pytest.mark.parametrize("name", WITHOUT_ORIGIN)
def test_the_origin_of_the_rewards_is_ignored_and_their_unit_is_a_factor(name):
    transform, prompts, power = WITHOUT_ORIGIN[name]
    tables = [random_table(seed, outcomes=3) for seed in range(prompts)]
    plain = moments(transform, tables, 2, prompts=prompts)
    found = moments(transform, recoded(tables, 1.7, 3.0), 2, prompts=prompts)
    assert_close(found.trace_var, 9.0**power * plain.trace_var)
    assert_close(found.mean_grad, 3.0**power * plain.mean_grad)
    assert_close(found.cos, plain.cos)


@pytest.mark.parametrize("transform", [no_baseline(), constant(value=0.3)], ids=["none", "constant"])
def test_the_origin_is_in_the_variance_where_nothing_is_compared(transform):
    table = random_table(0)
    plain, found = (moments(transform, recoded([table], shift, 1.0), 2) for shift in (0.0, 1.7))
    assert_close(found.mean_grad, plain.mean_grad)
    assert abs(found.trace_var / plain.trace_var - 1) > 0.1


def in_float32(transform):
    """Credit that is computed in float32 from a rollout in float32."""
    cast = lambda x: x.astype(jnp.float32) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731

    def update(advantage, state, rollout):
        credit, state = transform.update(cast(advantage), jax.tree.map(cast, state), jax.tree.map(cast, rollout))
        assert credit.dtype == jnp.float32
        return credit.astype(jnp.float64), state

    return transform._replace(update=update)


@pytest.mark.parametrize("key", [key for key in CASES if key.endswith("/G3") and key.split("/")[1] in PLAIN])
def test_cases_in_float32(key):
    """To 1e-4 of each figure, the reference's tolerance; a bias of 0 to rounding of the gradient."""
    problem, estimator, group = key.split("/")
    case = Case(problem, estimator, int(group[1:]))
    found, expected = moments(in_float32(PLAIN[estimator](case)), table_of(problem), case.group), CASES[key]
    for field in ("trace_var", "bias_norm", "mse", "cos", "scale", "snr", "mse_rescaled", "mean_grad"):
        np.testing.assert_allclose(getattr(found, field), expected[field], rtol=1e-4, atol=1e-6, err_msg=field)
