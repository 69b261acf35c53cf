"""Theorems on filtered groups, truncated ratios and divergences of single steps, on random tables, by enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import VECTORS, assert_close, log_softmax, random_table, truncated

from jaxrl_llm.advantages import apply, chain, group_mean, group_std, leave_one_out, no_baseline
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.losses.aggregate import answer_sum
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.penalties import k1, rao_blackwell
from jaxrl_llm.losses.surrogates import cispo, prefix_ratio, sequence_ratio, token_ratio
from jaxrl_llm.losses.tokens import bare_tokens
from jaxrl_llm.rollouts.select.dynamic_sampling import mixed
from jaxrl_llm.variance.exact import moments, moments_of
from jaxrl_llm.variance.tables import answers, last_token, tabular_policy

pytestmark = pytest.mark.usefixtures("float64")

SEEDS = [0, 1, 2]
GRPO = chain(group_mean(), group_std(ddof=0, eps=0.0))


# T12


def every_group(transform, pool, size):
    """All groups of all prompts: probabilities [M], estimates [M D], and whether two rewards differ [M]."""
    index = jnp.asarray(list(itertools.product(range(len(pool[0].probs)), repeat=size)))
    rewards = jnp.concatenate([table.rewards[index] for table in pool])
    scores = jnp.concatenate([table.scores[index] for table in pool])
    mass = jnp.concatenate([jnp.prod(table.probs[index], axis=1) for table in pool]) / len(pool)
    credit = jax.vmap(lambda r: apply(transform, r[None])[0])(rewards)
    return mass, jnp.einsum("mg,mgd->md", credit, scores) / size, mixed(rewards, jnp.ones(rewards.shape, bool))


def kept(transform, pool, size):
    """Moments of the estimate of an accepted group, and the share of groups that are accepted."""
    mass, estimates, accept = every_group(transform, pool, size)
    share, target = mass @ accept, jnp.mean(jnp.stack([table.gradient for table in pool]), axis=0)
    return moments_of(estimates[accept], mass[accept] / share, target), share


@pytest.mark.parametrize("transform", [group_mean(), leave_one_out(), GRPO], ids=["mean", "rloo", "grpo"])
def test_t12_filter_and_refill_keeps_the_direction_and_saves_little_variance(transform):
    """An accepted group has the mean Eĝ/a, a the share that is accepted. K of them cost K/a groups: at that cost, and
    brought to one mean, K times the variance falls by (1 - a)|Eĝ|² alone."""
    for seed in SEEDS:
        pool = [random_table(10 * seed + i, binary=True) for i in range(3)]
        plain, (found, share) = moments(transform, pool, 3), kept(transform, pool, 3)
        assert 0.1 < share < 0.9
        assert_close(found.mean_grad, plain.mean_grad / share)
        saved = share * plain.trace_var - share**2 * found.trace_var
        assert_close(saved, (1 - share) * jnp.sum(plain.mean_grad**2))


def test_t12_needs_a_credit_that_groups_of_equal_rewards_do_not_have():
    for seed in SEEDS:
        pool = [random_table(10 * seed + i, binary=True) for i in range(3)]
        assert kept(no_baseline(), pool, 3)[0].cos < 1 - 1e-6  # rounding is 1e-15


def test_t12_drawing_the_same_prompt_again_turns_the_direction():
    """Each prompt is then divided by its own share of mixed groups."""
    pool = [random_table(seed, binary=True) for seed in SEEDS]
    alone = [kept(group_mean(), [table], 3)[0].mean_grad for table in pool]
    again, plain = sum(alone), moments(group_mean(), pool, 3).mean_grad
    assert again @ plain < (1 - 1e-6) * jnp.linalg.norm(again) * jnp.linalg.norm(plain)


# T13

NEUTRAL = {"answer": sequence_ratio(), "token": token_ratio(), "prefix": prefix_ratio()}
CUT = {
    "answer": (truncated(1.15), lambda w: np.minimum(np.prod(w, axis=1, keepdims=True), 1.15)),
    "token": (cispo(low=0.1, high=0.1), lambda w: np.clip(w, 0.9, 1.1)),
}


@functools.cache
def moved(seed):
    """A bigram policy with answers from another one."""
    rng = np.random.default_rng(seed)
    paid = {path: rng.normal() for path in answers(3, 2, 2)}
    return tabular_policy(rng.normal(size=(4, 3)), paid.get, eos=2, length=2, behaviour=rng.normal(size=(4, 3)))


def means_of(surrogate, values):
    """Seed -> [values D], the mean of the estimate with each constant baseline."""
    objective = Objective(surrogate=surrogate, aggregate=answer_sum())
    each = [constant(value=b) for b in values]
    return {s: np.array([moments(t, moved(s), 1, objective=objective).mean_grad for t in each]) for s in SEEDS}


@pytest.mark.parametrize("ratio", NEUTRAL)
def test_t13_whole_ratios_are_neutral_to_a_baseline(ratio):
    for means in means_of(NEUTRAL[ratio], (0.0, 0.7)).values():
        assert_close(means[1], means[0])


@pytest.mark.parametrize("ratio", CUT)
def test_t13_with_a_truncated_ratio_a_baseline_adds_its_multiple_of_the_mean_weighted_score(ratio):
    """-b E_μ[Σ_t w̄_t s_t], which is 0 for whole ratios and of a random policy not small for these."""
    surrogate, weight = CUT[ratio]
    for seed, means in means_of(surrogate, (0.0, 0.7)).items():
        table = moved(seed)
        w = np.exp(np.where(table.acted, table.logp - table.behaviour_logp, 0))
        added = np.einsum("n,nt,ntd->d", table.drawn, np.broadcast_to(weight(w), w.shape), table.token_scores)
        assert np.linalg.norm(added) > 1e-2
        assert_close(means[1] - means[0], -0.7 * added)


# T14


def values_of(logits, reference):
    """Probabilities, log ratios of the paths to a reference, and sums of the divergences of their steps."""
    rows, others, paths = log_softmax(logits), log_softmax(reference), answers(3, 2, 2)
    table = tabular_policy(logits, len, eos=2, length=2)
    contexts = [[last_token(path[:t]) for t in range(2)] for path in paths]
    tokens = [[path[t] if t < len(path) else 0 for t in range(2)] for path in paths]
    exact = np.sum(np.exp(rows) * (rows - others), axis=1)[contexts]
    known = {"logp": table.logp, "reference_logp": others[contexts, tokens], "exact_kl": exact}
    record = bare_tokens(table.acted[None], **{name: jnp.asarray(x)[None] for name, x in known.items()})
    total = lambda cost: jnp.sum(jnp.where(record.where, cost(record), 0), axis=-1)[0]  # noqa: E731
    return table.probs, total(k1), total(rao_blackwell(1.0, "reward").cost)


def spreads(pi, path, steps):
    kl = pi @ path
    assert_close(pi @ steps, kl)
    return pi @ (path - kl) ** 2, pi @ (steps - kl) ** 2


@pytest.mark.parametrize("seed", range(6))
def test_t14_divergences_of_the_steps_have_the_mean_of_the_log_ratio_and_as_a_rule_less_variance(seed):
    path, steps = spreads(*values_of(*1.5 * np.random.default_rng(seed).normal(size=(2, 4, 3))))
    assert steps < path


def test_t14_there_are_policies_for_which_they_have_more():
    """The counterexample of two steps, through the penalties; answers that end early have next to no probability."""
    case, never = VECTORS["kl_rb_counterexample"], -200.0
    first, then = ("pi_step1", "ref_step1"), ("pi_step2_given_y1", "ref_step2_given_y1")
    rows = [np.log([case[a], *case[b], [0.5, 0.5]]) for a, b in zip(first, then, strict=True)]
    found = spreads(*values_of(*(np.c_[row, np.full(4, never)] for row in rows)))
    assert_close(found, [case["var_k1"], case["var_rb"]])
    assert found[1] > 6 * found[0]
