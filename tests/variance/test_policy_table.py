"""A decoder written out as a table agrees with what training computes of it."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.advantages import leave_one_out
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.variance import policy_table as module
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.moments import RlooMoments
from jaxrl_llm.variance.policy_table import policy_table
from jaxrl_llm.variance.tables import answers

pytestmark = pytest.mark.usefixtures("float64")
SHAPE = {"layers": 1, "width": 4, "heads": 1, "kv_heads": 1, "head_size": 4, "mlp_width": 4}
POLICY = Policy(DecoderConfig(**SHAPE), 3)
PROMPT = jnp.asarray([1, 0, 2])


@pytest.fixture(scope="module")
def params():
    with jax.enable_x64(True):
        keys = iter(jax.random.split(jax.random.key(0), 99))
        draw = lambda x: jax.random.normal(next(keys), x.shape, jnp.float32)  # noqa: E731
        return jax.tree.map(draw, nn.unbox(POLICY.init(jax.random.key(0))))


@pytest.fixture(scope="module")
def table(params):
    with jax.enable_x64(True):
        return policy_table(POLICY, params, PROMPT, lambda path: float(len(path) == 2), eos=2, length=3)


def test_log_probabilities_and_scores_are_those_of_training(params, table):
    paths = answers(3, 2, 3)
    answer = jnp.asarray([[[*path, *(0,) * (3 - len(path))] for path in paths]], jnp.int32)

    def logp(params):
        mask = jnp.ones((1, len(PROMPT)), bool)
        return answer_logp(POLICY, params, PROMPT[None].astype(jnp.int32), mask, answer, table.acted[None])[0][0]

    np.testing.assert_allclose(table.logp, logp(params), atol=1e-5)
    slopes = jax.jacrev(logp)(params)
    flat = np.concatenate([np.asarray(x).reshape(15, 3, -1) for x in jax.tree.leaves(slopes)], axis=-1)
    assert np.abs(flat).max() > 0.1
    np.testing.assert_allclose(table.token_scores, flat, atol=2e-5 * np.abs(flat).max())


def test_the_law_of_leave_one_out_holds_on_it(table):
    found = moments(leave_one_out(), table, 2)
    assert found.bias_norm < 1e-9 * float(jnp.linalg.norm(table.gradient))
    np.testing.assert_allclose(found.trace_var, RlooMoments.of(table).leave_one_out_variance(2), rtol=1e-9)


def test_boxed_parameters_are_taken_as_they_are(params, table):
    boxed = jax.tree.map(
        lambda box, x: box.replace_boxed(x),
        POLICY.init(jax.random.key(1)),
        params,
        is_leaf=lambda x: isinstance(x, nn.meta.AxisMetadata),
    )
    again = policy_table(POLICY, boxed, PROMPT, lambda path: 0.0, eos=2, length=3)
    np.testing.assert_array_equal(again.probs, table.probs)


def test_a_table_that_is_too_large_is_refused(params, monkeypatch):
    monkeypatch.setattr(module, "LIMIT", 100)
    with pytest.raises(ValueError, match="7 prefixes need"):
        policy_table(POLICY, params, PROMPT, lambda path: 0.0, eos=2, length=3)
