"""Exact moments against plain enumeration, their refusals, and the tables they are taken of."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, bandit, bigram, random_table

from jaxrl_llm.advantages import (
    AdvantageTransform,
    Traits,
    apply,
    bare_rollout,
    chain,
    group_mean,
    group_std,
    leave_one_out,
    moving_average,
    no_baseline,
    per_token,
    stateless,
)
from jaxrl_llm.advantages.baselines.batch_leave_one_out import batch_leave_one_out
from jaxrl_llm.advantages.baselines.greedy import greedy
from jaxrl_llm.advantages.baselines.other_prompts_mean import other_prompts_mean
from jaxrl_llm.advantages.weights.maxrl_raw import maxrl_raw
from jaxrl_llm.losses.aggregate import answer_sum
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.surrogates import reinforce
from jaxrl_llm.variance import exact
from jaxrl_llm.variance.designs import antithetic, systematic, without_replacement
from jaxrl_llm.variance.exact import moments, moments_of
from jaxrl_llm.variance.tables import OutcomeTable, bernoulli, softmax_bandit

GRPO = chain(group_mean(), group_std(ddof=1, eps=1e-4))

pytestmark = pytest.mark.usefixtures("float64")


def random_tables(count, seed=0):
    """Policies of several prompts over the same parameters."""
    return [random_table(seed + i, outcomes=3, dim=4) for i in range(count)]


def by_hand(transform, tables, group, drawn):
    """Mean and trace variance by a loop over prompts and answers."""
    n, size = len(tables[0].probs), len(tables)
    choices = itertools.product(range(size), repeat=drawn) if drawn else [range(size)]
    mass, estimates = [], []
    for prompt in choices:
        for flat in itertools.product(range(n), repeat=len(prompt) * group):
            y = np.reshape(flat, (len(prompt), group))
            pi, r, s = (
                np.stack([np.asarray(getattr(tables[x], name))[y[i]] for i, x in enumerate(prompt)])
                for name in ("probs", "rewards", "scores")
            )
            mass.append(np.prod(pi) / (size**drawn if drawn else 1))
            estimates.append((r, s))
    credit = np.asarray(jax.vmap(lambda r: apply(transform, r))(jnp.asarray(np.stack([r for r, _ in estimates]))))
    ghat = np.einsum("mpg,mpgd->md", credit, np.stack([s for _, s in estimates])) / credit[0].size
    mean = np.array(mass) @ ghat
    return np.sum(mass), mean, np.array(mass) @ np.sum((ghat - mean) ** 2, axis=1)


@pytest.mark.parametrize(("transform", "group"), [(no_baseline(), 1), (no_baseline(), 3), (GRPO, 2), (GRPO, 4)])
def test_one_prompt_is_enumerated(transform, group):
    (table,) = random_tables(1)
    mass, mean, trace = by_hand(transform, [table], group, 0)
    found = moments(transform, table, group)
    assert_close(mass, 1)
    assert_close(found.mean_grad, mean)
    assert_close(found.trace_var, trace)


@pytest.mark.parametrize(("prompts", "group"), [(2, 2), (3, 1), (None, 2)])
@pytest.mark.parametrize("transform", [batch_leave_one_out(), other_prompts_mean()], ids=["batch", "others"])
def test_several_prompts_are_drawn_or_stand_once(transform, prompts, group):
    pool = random_tables(2, seed=3)
    mass, mean, trace = by_hand(transform, pool, group, prompts or 0)
    found = moments(transform, pool, group, prompts=prompts)
    assert_close(mass, 1)
    assert_close(found.mean_grad, mean)
    assert_close(found.trace_var, trace)
    assert_close(mean, np.mean([np.asarray(t.gradient) for t in pool], axis=0))
    assert_close(found.bias_norm, 0)


def test_every_field_follows_from_the_mean_and_the_spread():
    estimates, probs = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5]]), np.array([0.2, 0.3, 0.5])
    g = np.array([1.0, -0.5])
    found = moments_of(jnp.asarray(estimates), jnp.asarray(probs), jnp.asarray(g))
    mean = probs @ estimates
    trace = probs @ np.sum((estimates - mean) ** 2, axis=1)
    scale = mean @ g / (g @ g)
    assert_close(found.mean_grad, mean)
    assert_close(found.trace_var, trace)
    assert_close(found.bias_norm, np.linalg.norm(mean - g))
    assert_close(found.mse, probs @ np.sum((estimates - g) ** 2, axis=1))
    assert_close(found.cos, mean @ g / np.linalg.norm(mean) / np.linalg.norm(g))
    assert_close(found.scale, scale)
    assert_close(found.snr, mean @ mean / trace)
    assert_close(found.mse_rescaled, probs @ np.sum((estimates / scale - g) ** 2, axis=1))


def test_a_policy_without_a_choice():
    """One outcome: the gradient is 0 and known. Scale and cosine are 0, the rest is as the docstring says."""
    found = moments(no_baseline(), OutcomeTable([1.0], [[0.0, 0.0]], [2.0]), 2)
    assert (found.trace_var, found.bias_norm, found.mse, found.cos, found.scale) == (0, 0, 0, 0, 0)
    assert found.snr == found.mse_rescaled == float("inf")


def test_the_size_of_a_chunk_changes_nothing(monkeypatch):
    table = bandit("A")
    whole = moments(GRPO, table, 3)
    monkeypatch.setattr(exact, "CELLS", 150)  # 2 batches at a time of 64, and 3 answers of 5 tokens and 4 parameters
    parts = moments(GRPO, table, 3)
    assert_close(parts.trace_var, whole.trace_var)
    assert_close(parts.mean_grad, whole.mean_grad)
    monkeypatch.setattr(exact, "CELLS", 7 * 60)  # the last chunk is not full
    assert_close(moments(GRPO, table, 3).trace_var, whole.trace_var)


def test_an_outcome_that_is_never_drawn_changes_nothing():
    table = bandit("A")
    s = np.vstack([np.asarray(table.scores), [9.0, 9.0, 9.0, 9.0]])
    longer = OutcomeTable([*table.probs, 0.0], s, [*table.rewards, 7.0], [*table.lengths, 4])
    one, other = moments(GRPO, table, 3), moments(GRPO, longer, 3)
    assert_close(one.trace_var, other.trace_var)
    assert_close(one.mean_grad, other.mean_grad)


def test_credit_of_tokens_weighs_the_scores_of_tokens():
    """The same credit at every token is the credit of the answer; at the first token alone it is not."""
    table = bigram("dense")
    whole, tokens = moments(leave_one_out(), table, 2), moments(per_token(leave_one_out()), table, 2)
    assert_close(tokens.trace_var, whole.trace_var)
    first = stateless(
        lambda a, rollout: jnp.where(jnp.arange(3) == 0, jnp.broadcast_to(a[..., None], rollout.acted.shape), 0),
        Traits(unbiased="no"),
    )
    estimates = np.asarray(table.rewards)[:, None] * np.asarray(table.token_scores)[:, 0]
    assert_close(moments(first, table, 1).mean_grad, np.asarray(table.probs) @ estimates)


def test_an_objective_without_ratios_is_the_plain_estimate():
    objective = Objective(surrogate=reinforce(), aggregate=answer_sum())
    for group in (1, 2):
        plain, found = (moments(no_baseline(), bigram(), group, objective=o) for o in (None, objective))
        assert_close(found.trace_var, plain.trace_var)
        assert_close(found.mean_grad, plain.mean_grad)


def test_the_state_is_that_before_the_batch():
    transform, table = moving_average(), bandit("A2")
    _, state = transform.update(table.rewards[None], transform.init(), bare_rollout(table.rewards[None]))
    fresh, later = moments(transform, table, 2), moments(transform, table, 2, state=state)
    assert_close(fresh.trace_var, moments(no_baseline(), table, 2).trace_var)
    assert later.trace_var < fresh.trace_var
    assert later.bias_norm < 1e-9


def test_a_transform_is_traced_once_for_all_tables_of_a_shape():
    traces = []

    def update(advantage, state, rollout):
        traces.append(advantage.shape)
        return advantage, state

    transform = AdvantageTransform(lambda: (), update, Traits(unbiased="yes"))
    for name in ("A", "A2", "A"):
        moments(transform, bandit(name), 3)
    assert len(traces) == 1


# Designs.


@pytest.mark.parametrize("design", [antithetic, systematic])
def test_each_answer_of_a_coupled_group_follows_the_policy(design):
    table = bandit("A")
    groups = design(table, 2)
    assert_close(jnp.sum(groups.probs), 1)
    found = [jnp.sum(jnp.where(groups.outcomes == y, groups.probs[:, None], 0)) / 2 for y in range(4)]
    assert_close(found, table.probs)


def test_answers_without_replacement():
    """p(S) sums to 1; the whole table is the exact gradient; one answer is a plain draw."""
    table = bandit("A")
    for size in (1, 2, 3, 4):
        assert_close(jnp.sum(without_replacement(table, size).probs), 1)
    whole, one = (moments(no_baseline(), table, size, design=without_replacement) for size in (4, 1))
    assert_close([whole.bias_norm, whole.trace_var], [0, 0])
    assert_close(one.trace_var, moments(no_baseline(), table, 1).trace_var)


def test_the_weights_of_a_design_reach_the_credit_of_tokens():
    whole, tokens = (
        moments(t, bigram(), 2, design=without_replacement) for t in (no_baseline(), per_token(no_baseline()))
    )
    assert_close(tokens.trace_var, whole.trace_var)
    assert_close(tokens.bias_norm, 0)


def test_designs_of_several_prompts():
    """Two prompts with groups of their own: variances of independent halves add up."""
    pool = random_tables(2)
    each = [moments(no_baseline(), t, 2, design=systematic).trace_var for t in pool]
    assert_close(moments(no_baseline(), pool, 2, prompts=None, design=systematic).trace_var, sum(each) / 4)


# Refusals.


def misuse():
    table, tokens = bandit("A"), bigram()
    objective = Objective(surrogate=reinforce(), aggregate=answer_sum())
    off = bigram(off_policy=True)
    return {
        "groups of 2 answers, not 1": lambda: moments(leave_one_out(), table, 1),
        "it needs batches of 2, not 1": lambda: moments(other_prompts_mean(), table, 2),
        "drawn independently": lambda: moments(leave_one_out(), table, 2, design=antithetic),
        "'greedy_reward'": lambda: moments(greedy(), bernoulli(0.5), 2),
        "domain 'unit'|domain 'binary'": lambda: moments(maxrl_raw(), table, 2),
        "too many to enumerate": lambda: moments(no_baseline(), tokens, 6),
        "no token_scores": lambda: moments(no_baseline(), table, 2, objective=objective),
        "the credit is one of tokens": lambda: moments(per_token(no_baseline()), table, 2),
        "one shape": lambda: moments(no_baseline(), [table, bernoulli(0.5)], 2),
        "behaviour policy": lambda: moments(no_baseline(), off, 2, design=systematic),
        "2 answers, not 3": lambda: moments(no_baseline(), table, 3, design=antithetic),
        "cannot be drawn": lambda: moments(no_baseline(), table, 5, design=without_replacement),
    }


@pytest.mark.parametrize("number", range(12))
def test_a_use_without_meaning_is_refused(number):
    text, use = list(misuse().items())[number]
    with pytest.raises(ValueError, match=text):
        use()


def test_float32_is_refused():
    table = bandit("A")
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="float64"):
        moments(no_baseline(), table, 2)
    with jax.enable_x64(False), pytest.raises(RuntimeError, match="float64"):
        softmax_bandit([0.0, 1.0], [0.0, 1.0])
