"""Baselines: numbers of other libraries and of small exact problems, reductions to one another, leaks, and edges."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from enumerate_groups import Table, cosine, expected_gradient, tables

from jaxrl_llm.advantages._base import bare_rollout, chain
from jaxrl_llm.advantages.baselines.batch_leave_one_out import batch_leave_one_out
from jaxrl_llm.advantages.baselines.batch_mean import batch_mean
from jaxrl_llm.advantages.baselines.beta_tracker import beta_tracker
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.advantages.baselines.empirical_bayes import empirical_bayes
from jaxrl_llm.advantages.baselines.energy_tracker import energy_tracker
from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.advantages.baselines.greedy import greedy
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.baselines.group_median import group_median
from jaxrl_llm.advantages.baselines.group_quantile import group_quantile
from jaxrl_llm.advantages.baselines.james_stein import james_stein
from jaxrl_llm.advantages.baselines.james_stein_deployed import james_stein_deployed
from jaxrl_llm.advantages.baselines.kalman import kalman
from jaxrl_llm.advantages.baselines.leave_one_out import leave_one_out
from jaxrl_llm.advantages.baselines.length_weighted import length_weighted
from jaxrl_llm.advantages.baselines.logit_proxy_weighted import logit_proxy_weighted
from jaxrl_llm.advantages.baselines.moving_average import moving_average
from jaxrl_llm.advantages.baselines.no_baseline import no_baseline
from jaxrl_llm.advantages.baselines.other_prompts_mean import other_prompts_mean
from jaxrl_llm.advantages.baselines.pool_mean import pool_mean
from jaxrl_llm.advantages.baselines.pool_root_rate import pool_root_rate
from jaxrl_llm.advantages.baselines.pool_standard_score import pool_standard_score
from jaxrl_llm.advantages.baselines.role_mean import role_mean
from jaxrl_llm.advantages.baselines.shift import shift
from jaxrl_llm.advantages.baselines.shrunk_leave_one_out import shrunk_leave_one_out

RNG = np.random.default_rng(0)
RAGGED = RNG.uniform(size=(5, 4))
VALID = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]], bool)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.lru_cache(maxsize=8)
def compiled(update):
    return tiny.jit(update)


def apply(transform, reward, valid=None, acted=None, **extras):
    given = {name: jnp.asarray(extras[name]) for name in transform.traits.needs}
    masks = (None if x is None else jnp.asarray(x) for x in (valid, acted))
    rollout = bare_rollout(jnp.asarray(reward, float), *masks, **given)
    return np.asarray(compiled(transform.update)(rollout.reward, transform.init(), rollout)[0])


def step(transform, state, reward, valid=None, prompt_id=None, **extras):
    reward = jnp.asarray(reward, float)
    given = {name: jnp.asarray(extras[name]) for name in transform.traits.needs}
    rollout = bare_rollout(reward, None if valid is None else jnp.asarray(valid), **given)
    if prompt_id is not None:
        rollout = dataclasses.replace(rollout, prompt_id=jnp.asarray(prompt_id))
    credit, state = compiled(transform.update)(reward, state, rollout)
    return np.asarray(credit), state


def lengths_to_acted(lengths):
    return np.arange(5) < np.asarray(lengths)[..., None]


# A bandit of four arms, real and 0/1 rewards. Its moments are those of reference tables for the same formulas.

LOGITS = np.array([0.5, -0.3, 0.1, -1.0])
PROBS = np.exp(LOGITS) / np.exp(LOGITS).sum()
SCORES = np.eye(4) - PROBS
ENERGY = np.square(SCORES).sum(axis=1)
LENGTHS = np.array([3, 1, 2, 5])
ARMS = {"A": np.array([1, 0, 0.5, -0.2]), "A2": np.array([1.0, 0, 0, 1])}


def moments(transform, rewards, group, pairs=None):
    """(mean, trace of the covariance) of (1/G) Σ A s, over independent answers or over {arms: probability}."""
    pairs = pairs or {arms: PROBS[list(arms)].prod() for arms in itertools.product(range(4), repeat=group)}
    arms, weight = np.array(list(pairs)), np.array(list(pairs.values()))
    acted = lengths_to_acted(LENGTHS[arms])
    credit = apply(
        transform,
        rewards[arms],
        acted=acted,
        energy=ENERGY[arms],
        token_energy=np.where(acted, (ENERGY / LENGTHS)[arms][..., None], np.nan),
        greedy_reward=np.broadcast_to(rewards[PROBS.argmax()], len(arms)),
    )
    estimate = np.einsum("mg,mgd->md", credit, SCORES[arms]) / group
    mean = weight @ estimate
    return mean, weight @ np.square(estimate).sum(axis=1) - mean @ mean


def gradient(rewards):
    return PROBS * (rewards - PROBS @ rewards)


# transform, rewards, G -> trace of the covariance, norm of the bias
EXACT = {
    "constant 0.3": (constant(value=0.3), "A", 1, 0.09326627450806482, 0),
    "value": (constant(value=0.550856012102142), "A", 1, 0.10060800358813715, 0),
    "best constant": (constant(value=0.40422281199457194), "A", 1, 0.08577031612662166, 0),
    "greedy": (greedy(), "A", 1, 0.3307157421962717, 0),
    "greedy, 0/1": (greedy(), "A2", 1, 0.312701532442301, 0),
    "OPO": (length_weighted(leave_one_out=False), "A", 3, 0.034072651338719596, 0.08043932067983527),
    "OPO, pairs": (length_weighted(leave_one_out=False), "A", 2, 0.041842351461560616, 0.1181954150159295),
    "OPO, 0/1": (length_weighted(leave_one_out=False), "A2", 3, 0.04098400250645479, 0.08743009415018631),
    "OPO, others": (length_weighted(leave_one_out=True), "A", 3, 0.0746966911295146, 0),
    "energy": (energy_weighted(leave_one_out=False), "A", 3, 0.025386993995975306, 0.07709545659242487),
    "energy, 0/1": (energy_weighted(leave_one_out=False), "A2", 3, 0.029499474199119587, 0.08768977549803939),
    "energy, others": (energy_weighted(leave_one_out=True), "A", 3, 0.06625472881753594, 0),
    "logit proxy": (logit_proxy_weighted(leave_one_out=False), "A", 3, 0.025386993995975306, 0.07709545659242487),
    "logit proxy, others": (logit_proxy_weighted(leave_one_out=True), "A2", 3, 0.07519025487565728, 0),
    "quantile 0.4": (group_quantile(level=0.4), "A", 2, 0.038618195218584415, 0.13051357592127893),
    "quantile 0.6": (group_quantile(level=0.6), "A", 2, 0.0791481265805817, 0.10343583004415817),
    "quantile 0.6, 0/1": (group_quantile(level=0.6), "A2", 3, 0.03918148167362085, 0.13759560714281804),
    "shrunk": (shrunk_leave_one_out(factor=0.5044717569226242), "A", 3, 0.040336723518340376, 0),
    "shrunk, pairs, 0/1": (shrunk_leave_one_out(factor=0.3606003493305232), "A2", 2, 0.08429718119779586, 0),
}


@pytest.mark.parametrize("case", EXACT)
def test_moments_of_the_bandit_are_reproduced(case):
    transform, rewards, group, trace, bias = EXACT[case]
    mean, variance = moments(transform, ARMS[rewards], group)
    np.testing.assert_allclose(variance, trace, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(np.linalg.norm(mean - gradient(ARMS[rewards])), bias, rtol=1e-9, atol=1e-11)


def test_the_deployed_optimal_baseline_is_not_the_optimal_constant():
    """Population, leave-one-out and deployed are three estimators: only the last turns the direction."""
    for weighted in (energy_weighted, length_weighted, logit_proxy_weighted):
        with_itself, _ = moments(weighted(leave_one_out=False), ARMS["A"], 3)
        others, _ = moments(weighted(leave_one_out=True), ARMS["A"], 3)
        assert cosine(with_itself, gradient(ARMS["A"])) < 0.998
        np.testing.assert_allclose(others, gradient(ARMS["A"]), rtol=1e-12)


def test_coupled_answers_bias_what_needs_independent_ones():
    """Antithetic pairs: uniform u and 1-u through the same cumulative probabilities."""
    edges = np.unique(np.concatenate([[0, 1], np.cumsum(PROBS)[:3], 1 - np.cumsum(PROBS)[:3]]))
    pairs = {}
    for low, high in itertools.pairwise(edges):
        arms = tuple(int(np.searchsorted(np.cumsum(PROBS), u)) for u in ((low + high) / 2, 1 - (low + high) / 2))
        pairs[arms] = pairs.get(arms, 0) + high - low
    mean, trace = moments(leave_one_out(), ARMS["A"], 2, pairs)
    np.testing.assert_allclose([cosine(mean, gradient(ARMS["A"])), trace], [0.8881152091481306, 0.12685487211304308])
    for transform in (
        shrunk_leave_one_out(factor=0.5),
        energy_weighted(leave_one_out=True),
        length_weighted(leave_one_out=True),
    ):
        assert transform.traits.needs_iid
        assert np.linalg.norm(moments(transform, ARMS["A"], 2, pairs)[0] - gradient(ARMS["A"])) > 0.01
    for transform in (constant(value=0.3), greedy(), shift(amount=0.1)):
        assert not transform.traits.needs_iid
        np.testing.assert_allclose(moments(transform, ARMS["A"], 2, pairs)[0], gradient(ARMS["A"]), rtol=1e-9)


# Weighted means


def test_opo_of_verl():
    """verl 1dda039, answers of 2, 5, 3 and 4 tokens."""
    reward = [[1, 0, 0, 0], [0, 0, 0, 0], [0.2, 0.5, 0.9, 0.4]]
    credit = apply(
        length_weighted(leave_one_out=False), reward, acted=np.tile(lengths_to_acted([2, 5, 3, 4]), (3, 1, 1))
    )
    expected = [[0.8571, -0.1429, -0.1429, -0.1429], [0, 0, 0, 0], [-0.3143, -0.0143, 0.3857, -0.1143]]
    np.testing.assert_allclose(credit, expected, atol=6e-5)  # four decimals


@pytest.mark.parametrize("size", [0.0, 1e-30, 0.7, 1e30, np.inf])
@pytest.mark.parametrize("leave_out", [False, True])
def test_equal_weights_give_the_mean_whatever_their_size(size, leave_out):
    plain = apply(leave_one_out() if leave_out else group_mean(), RAGGED, VALID)
    energy = np.where(VALID, size, np.nan)
    tokens = np.where(VALID, size, np.nan)[..., None]
    for credit in (
        apply(energy_weighted(leave_one_out=leave_out), RAGGED, VALID, energy=energy),
        apply(logit_proxy_weighted(leave_one_out=leave_out), RAGGED, VALID, token_energy=tokens),
        apply(length_weighted(leave_one_out=leave_out), RAGGED, VALID, acted=np.ones((5, 4, 2), bool) & (size > 0)),
    ):
        np.testing.assert_allclose(credit, plain, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("top", [1e30, np.inf])
def test_an_answer_with_all_the_energy_gets_0_and_is_the_baseline_of_the_others(top):
    reward, energy = [[0.2, 0.5, 0.9, 0.4]], [[1.0, top, 1.0, 2.0]]
    credit = apply(energy_weighted(leave_one_out=False), reward, energy=energy)
    np.testing.assert_allclose(credit, np.subtract(reward, 0.5), atol=1e-15)
    others = apply(energy_weighted(leave_one_out=True), reward, energy=energy)
    np.testing.assert_allclose(others, [[-0.3, 0.5 - (0.2 + 0.9 + 2 * 0.4) / 4, 0.4, -0.1]], atol=1e-15)


def test_others_without_weight_count_alike():
    credit = apply(energy_weighted(leave_one_out=True), [[1.0, 0.2, 0.4]], energy=[[3.0, 0.0, 0.0]])
    np.testing.assert_allclose(credit, [[1 - 0.3, 0.2 - 1, 0.4 - 1]], rtol=1e-12)


def test_the_logit_proxy_counts_acted_tokens_of_valid_answers_alone():
    acted = lengths_to_acted([[3, 1, 2]])
    acted[0, 0, 1] = False
    energy = np.where(acted, RNG.uniform(size=acted.shape), np.nan)
    credit = apply(logit_proxy_weighted(leave_one_out=False), [[1, 0.5, 0]], acted=acted, token_energy=energy)
    expected = apply(energy_weighted(leave_one_out=False), [[1, 0.5, 0]], energy=np.nansum(energy, axis=-1))
    np.testing.assert_allclose(credit, expected, rtol=1e-12)


# Shrunk, batch and other prompts


def test_shrunk_leave_one_out_ends_at_no_baseline_and_at_leave_one_out():
    np.testing.assert_array_equal(apply(shrunk_leave_one_out(factor=0.0), RAGGED, VALID), np.where(VALID, RAGGED, 0))
    several = VALID & (VALID.sum(axis=1, keepdims=True) > 1)
    credit = apply(shrunk_leave_one_out(factor=1.0), RAGGED, VALID)
    np.testing.assert_allclose(credit[several], apply(leave_one_out(), RAGGED, VALID)[several], rtol=1e-12)
    np.testing.assert_array_equal(credit[3, 2], RAGGED[3, 2])


def test_batch_baselines_by_hand():
    reward, valid = [[1.0, 0.0, 7.0], [0.5, 0.0, 0.5]], [[True, True, False], [True, True, True]]
    # All: mean 2/5. Others: 2/4 less a quarter of the own. Other prompts: 1/3 and 1/2.
    np.testing.assert_allclose(apply(batch_mean(), reward, valid), [[0.6, -0.4, 0], [0.1, -0.4, 0.1]])
    expected = [[1 - 0.25, -0.5, 0], [0.5 - 0.375, -0.5, 0.5 - 0.375]]
    np.testing.assert_allclose(apply(batch_leave_one_out(), reward, valid), expected)
    expected = [[1 - 1 / 3, -1 / 3, 0], [0, -0.5, 0]]
    np.testing.assert_allclose(apply(other_prompts_mean(), reward, valid), expected, atol=1e-15)


def test_other_prompts_count_by_their_answers():
    pooled = [np.concatenate([RAGGED[y][VALID[y]] for y in range(5) if y != x]).mean() for x in range(5)]
    expected = np.where(VALID, RAGGED - np.array(pooled)[:, None], 0)
    np.testing.assert_allclose(apply(other_prompts_mean(), RAGGED, VALID), expected, rtol=1e-12)


def test_batch_baselines_of_one_prompt_are_those_of_the_group():
    for wide, narrow in ((batch_mean(), group_mean()), (batch_leave_one_out(), leave_one_out())):
        np.testing.assert_allclose(apply(wide, RAGGED[:1]), apply(narrow, RAGGED[:1]), rtol=1e-12)


def test_groups_of_one_and_batches_of_one():
    one, several = RAGGED[:1, :1], RAGGED[:, :1]
    for transform in (batch_leave_one_out(), james_stein(), shrunk_leave_one_out(factor=0.5)):
        np.testing.assert_array_equal(apply(transform, one), one)
    for transform in (batch_mean(), other_prompts_mean(), group_median(), length_weighted(leave_one_out=True)):
        np.testing.assert_array_equal(apply(transform, one), 0)
    np.testing.assert_array_equal(apply(other_prompts_mean(), RAGGED[:1]), 0)
    for transform in (batch_leave_one_out(), james_stein()):
        np.testing.assert_allclose(apply(transform, several), apply(other_prompts_mean(), several), rtol=1e-12)


def test_peer_defect_opo_keeps_the_raw_reward_of_a_group_of_one():
    for leave_out in (False, True):
        np.testing.assert_array_equal(apply(length_weighted(leave_one_out=leave_out), [[1.0]]), [[0.0]])
        np.testing.assert_array_equal(
            apply(length_weighted(leave_one_out=leave_out), [[1.0, 7]], [[True, False]]), [[0.0, 0.0]]
        )


# James-Stein


def james_stein_by_hand(reward, valid):
    groups = [[r for r, v in zip(*row, strict=True) if v] for row in zip(reward, valid, strict=True)]
    credit = np.zeros(np.shape(reward))
    for x, row in enumerate(valid):
        rest = [g for y, g in enumerate(groups) if y != x and g]
        noise = [np.var(g, ddof=1) / len(g) for g in rest if len(g) > 1]
        means = [np.mean(g) for g in rest]
        u, s = np.mean(noise) if noise else 0, np.var(means) if means else 0
        share = u / (u + s) if u + s > 0 else 0
        anchor = np.mean(means) if means else 0
        for i in np.flatnonzero(row):
            own = [reward[x][j] for j in np.flatnonzero(row) if j != i]
            baseline = (1 - share) * np.mean(own) + share * anchor if own else anchor
            credit[x, i] = reward[x][i] - baseline
    return credit


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5])
def test_james_stein_by_hand(rows):
    credit = apply(james_stein(), RAGGED[:rows], VALID[:rows])
    np.testing.assert_allclose(credit, james_stein_by_hand(RAGGED[:rows], VALID[:rows]), rtol=1e-10, atol=1e-14)


def test_james_stein_with_two_prompts_takes_the_other_one_alone():
    reward = RAGGED[:2]
    np.testing.assert_allclose(apply(james_stein(), reward), apply(other_prompts_mean(), reward), rtol=1e-12)


def test_james_stein_is_leave_one_out_where_answers_of_other_prompts_do_not_vary():
    reward = np.concatenate([RAGGED[:1], [[0.0] * 4, [1.0] * 4]])
    np.testing.assert_allclose(apply(james_stein(), reward)[0], apply(leave_one_out(), reward)[0], rtol=1e-12)
    equal = np.full((3, 4), 0.5)
    np.testing.assert_array_equal(apply(james_stein(), equal), 0)  # 0/0
    np.testing.assert_array_equal(apply(james_stein_deployed(smoothing=0.5), equal), 0)


def test_james_stein_is_unbiased_and_its_deployed_form_is_not():
    """Three prompts, so that λ of the others is neither 0 nor 1."""
    for table in tables(3, 2):
        np.testing.assert_allclose(expected_gradient(james_stein(), table, 2), table.gradient, rtol=1e-9, atol=1e-12)
    leaky = james_stein_deployed(smoothing=0.9)
    _, seen = step(leaky, leaky.init(), RAGGED)
    for state in (leaky.init(), seen):
        angles = [cosine(expected_gradient(leaky, table, 2, state), table.gradient) for table in tables(3, 2)]
        assert min(angles) < 1 - 1e-4


def test_deployed_james_stein_smooths_its_share_over_steps():
    batches = RNG.uniform(size=(3, 3, 4)) * np.array([1, 0.1, 2])[:, None, None]
    transform, shares = james_stein_deployed(smoothing=0.75), []
    state = transform.init()
    for reward in batches:
        u, s = np.mean(reward.var(axis=1, ddof=1) / 4), reward.mean(axis=1).var()
        now = u / (u + s)
        shares.append(0.75 * shares[-1] + 0.25 * now if shares else now)
        credit, state = step(transform, state, reward)
        expected = (1 - shares[-1]) * apply(leave_one_out(), reward) + shares[-1] * (reward - reward.mean())
        np.testing.assert_allclose(credit, expected, rtol=1e-6, atol=1e-7)
    _, after = step(transform, state, batches[0], np.zeros((3, 4), bool))
    np.testing.assert_array_equal(after, state)


# What is carried over steps: read before it is updated

DRIFT = {"drift": np.array([0.01, 0.2])}
CARRIED = {
    "moving average": moving_average(),
    "energy tracker": energy_tracker(decay=0.9),
    "Beta tracker": beta_tracker(minimum_decay=0.5, slots=4),
    "Kalman": kalman(process_variance=0.1, noise_variance=0.2, mean=0.5, variance=1.0, slots=4),
    "empirical Bayes": empirical_bayes(leave_one_out=True),
}


def after_batches(transform, batches=3):
    state = transform.init()
    for reward in np.random.default_rng(1).uniform(size=(batches, 2, 3)):
        _, state = step(transform, state, reward, energy=1 + reward, **DRIFT)
    return state


@pytest.mark.parametrize("name", CARRIED)
def test_a_tracker_is_unbiased_with_any_past_and_biased_if_read_after_its_update(name):
    transform = CARRIED[name]

    def leak(advantage, state, rollout):
        _, new = transform.update(advantage, state, rollout)
        return transform.update(advantage, new, rollout)[0], new

    state, leaky = after_batches(transform), transform._replace(update=leak)
    for table in tables(2, 3):
        mean = expected_gradient(transform, table, 2, state)
        np.testing.assert_allclose(mean, table.gradient, rtol=1e-9, atol=1e-12)
        off = np.abs(expected_gradient(leaky, table, 2, state) - table.gradient).max()
        assert off > 1e-3 * np.abs(table.gradient).max()


@pytest.mark.parametrize("name", CARRIED)
def test_a_step_without_a_valid_answer_leaves_a_tracker_as_it_is(name):
    state = after_batches(CARRIED[name])
    junk = {"energy": np.full((2, 3), np.nan), "drift": np.full(2, np.nan)}
    credit, after = step(CARRIED[name], state, np.full((2, 3), np.nan), np.zeros((2, 3), bool), **junk)
    np.testing.assert_array_equal(credit, 0)
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_the_beta_tracker_by_hand():
    """Answers one at a time, as published, with ρ at its floor, inside, and at its ceiling."""
    transform = beta_tracker(minimum_decay=0.875, slots=8)
    state, alpha, beta = transform.init(), 4.0, 4.0
    for reward, drift in ((1, 0.03), (0, 0.006), (1, 0.0), (1, 0.01)):
        credit, state = step(transform, state, [[reward]], drift=[drift])
        np.testing.assert_allclose(credit, [[reward - alpha / (alpha + beta)]], rtol=1e-6)
        rho = min(max(2 ** (-drift / 0.06), 0.875), 0.96)
        alpha, beta = rho * alpha + reward, rho * beta + 1 - reward
    np.testing.assert_allclose([x[0] for x in state], [alpha, beta], rtol=1e-6)
    np.testing.assert_array_equal([x[1] for x in state], [4, 4])
    start = (2 + 0.5) / (8 + 1)  # two of eight answers drawn beforehand were right
    state = beta_tracker(minimum_decay=0.875, slots=2, rate=start).init()
    np.testing.assert_allclose(state, [[2.5 / (9 * 0.125)] * 2, [6.5 / (9 * 0.125)] * 2], rtol=1e-6)


def test_the_beta_tracker_at_its_floor_is_worth_fifteen_answers():
    """Its weights on past answers have squares that add up to (1-ρ)/(1+ρ) = 1/15 for ρ = 7/8."""
    transform = beta_tracker(minimum_decay=0.875, slots=1)

    def last(rewards):
        def visit(state, reward):
            rollout = bare_rollout(reward[None, None], drift=jnp.ones(1))
            return transform.update(rollout.reward, state, rollout)[1], None

        (alpha, beta), _ = jax.lax.scan(visit, transform.init(), rewards)
        return (alpha / (alpha + beta))[0]

    base = last(jnp.zeros(200))
    weights = jax.vmap(lambda rewards: last(rewards) - base)(jnp.eye(200))
    np.testing.assert_allclose(jnp.sum(jnp.square(weights)), 1 / 15, rtol=1e-5)


def test_beta_trackers_of_equal_number_share_and_decay_once():
    transform = beta_tracker(minimum_decay=0.5, slots=4)
    reward, valid = [[1.0, 0.5], [0.0, 9.0], [1.0, 1.0]], [[True, True], [True, False], [False, False]]
    drifts = [0.06 * np.log2(1 / 0.8), 0.06 * np.log2(1 / 0.6), np.nan]
    credit, state = step(transform, transform.init(), reward, valid, prompt_id=[1, 5, 1], drift=drifts)
    np.testing.assert_allclose(credit, [[0.5, 0], [-0.5, 0], [0, 0]])
    # Both fall into slot 1, which decays by the smaller 0.6 and sees three answers that add up to 1.5.
    np.testing.assert_allclose(state, [[1, 0.6 + 1.5, 1, 1], [1, 0.6 + 1.5, 1, 1]], rtol=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"minimum_decay": 1.0, "maximum_decay": 1.0},
        {"minimum_decay": 0.97},
        {"minimum_decay": -0.1},
        {"minimum_decay": 0.5, "rate": 1.5},
    ],
)
def test_the_beta_tracker_refuses_what_has_no_prior(wrong):
    with pytest.raises(ValueError, match="must"):
        beta_tracker(**wrong)


def test_the_kalman_filter_without_drift_is_the_posterior_mean():
    transform = kalman(process_variance=0.0, noise_variance=0.25, mean=0.3, variance=2.0)
    state, answers = transform.init(), []
    for reward, valid in ((RAGGED, VALID), (RAGGED[::-1], VALID), (1 - RAGGED, VALID)):
        credit, state = step(transform, state, reward, valid)
        precision = 1 / 2 + len(answers) / 0.25
        x = (0.3 / 2 + np.sum(answers) / 0.25) / precision
        np.testing.assert_allclose(credit, np.where(valid, reward - x, 0), atol=1e-6)
        answers += list(reward[valid])
    np.testing.assert_allclose(state[1], [1 / (1 / 2 + len(answers) / 0.25)], rtol=1e-5)


def test_the_kalman_filter_by_hand_and_by_slot():
    transform = kalman(process_variance=0.5, noise_variance=1.0, mean=0.0, variance=0.5, slots=3)
    credit, state = step(transform, transform.init(), [[1.0, 0.5]], prompt_id=[4])
    np.testing.assert_allclose(credit, [[1, 0.5]])
    # v⁺ = 1, K = 1/(1 + 1/2) = 2/3, x = 2/3 · 0.75, v = 1/3
    np.testing.assert_allclose(state, [[0, 0.5, 0], [0.5, 1 / 3, 0.5]], rtol=1e-6)
    sure = kalman(process_variance=0.0, noise_variance=0.0, mean=0.4, variance=0.0)
    _, state = step(sure, sure.init(), [[1.0]])
    np.testing.assert_allclose(state, [[0.4], [0]], rtol=1e-6)  # 0/0
    follows = kalman(process_variance=1.0, noise_variance=0.0, mean=0.4, variance=0.0)
    _, state = step(follows, follows.init(), [[1.0, 0.5]])
    np.testing.assert_allclose(state, [[0.75], [0]], rtol=1e-6)


def test_the_energy_tracker_goes_to_the_best_constant():
    transform = energy_tracker(decay=1.0)
    state, arms = transform.init(), np.arange(4)
    # A batch that holds each arm in proportion to its probability: rewards and energies are scaled to that.
    for _ in range(3):
        energy = PROBS * ENERGY
        credit, state = step(transform, state, ARMS["A"][arms][None], energy=energy[arms][None])
    np.testing.assert_allclose(ARMS["A"] - credit[0], np.full(4, 0.40422281199457194), rtol=1e-6)
    fading = energy_tracker(decay=0.5)
    state = fading.init()
    for reward, energy in ((1.0, 2.0), (0.0, 1.0)):
        credit, state = step(fading, state, [[reward]], energy=[[energy]])
    np.testing.assert_allclose(credit, [[0 - 1]])  # b is read before the update
    np.testing.assert_allclose(step(fading, state, [[0.0]], energy=[[0.0]])[0], [[-1 / 2]])  # (0.5 · 2)/(0.5 · 2 + 1)
    silent = fading.init()
    for _ in range(2):
        credit, silent = step(fading, silent, [[1.0]], energy=[[0.0]])
    np.testing.assert_array_equal(credit, [[1.0]])  # no energy seen: no baseline


def test_empirical_bayes_by_hand():
    batches = [(RAGGED, VALID), (RAGGED[:, ::-1] ** 2, VALID), (1 - RAGGED, VALID[::-1])]
    for leave_out, plain in ((True, leave_one_out()), (False, group_mean())):
        transform = empirical_bayes(leave_one_out=leave_out)
        state, means, noises = transform.init(), [], []
        for reward, valid in batches:
            spread, noise = (np.var(means), np.mean(noises)) if means else (0, 0)
            share = 1 - min(noise / spread, 1) if spread > 0 else 1
            mu = np.mean(means) if means else 0
            expected = share * apply(plain, reward, valid) + (1 - share) * np.where(valid, reward - mu, 0)
            lone = valid.sum(axis=1, keepdims=True) == 1
            expected = np.where(lone & leave_out, np.where(valid, reward - mu, 0), expected)
            credit, state = step(transform, state, reward, valid)
            np.testing.assert_allclose(credit, expected, atol=1e-6)
            groups = [row[ok] for row, ok in zip(reward, valid, strict=True) if ok.any()]
            means += [g.mean() for g in groups]
            noises += [g.var(ddof=1) / len(g) for g in groups if len(g) > 1]
        assert 0 < share < 1


def test_empirical_bayes_with_the_own_answer_shrinks_by_its_weight():
    transform = empirical_bayes(leave_one_out=False)
    rng = np.random.default_rng(2)
    history = rng.uniform(size=(8, 1)) + 1.5 * rng.uniform(size=(8, 4))
    _, state = step(transform, transform.init(), history)
    share = 1 - np.mean(history.var(axis=1, ddof=1) / 4) / history.mean(axis=1).var()
    assert 0.2 < share < 0.95
    for table in tables(2, 2):
        for group in (2, 3):
            mean = expected_gradient(transform, table, group, state)
            np.testing.assert_allclose(mean, (1 - share / group) * table.gradient, rtol=1e-6)
            fresh = expected_gradient(transform, table, group)
            np.testing.assert_allclose(fresh, (1 - 1 / group) * table.gradient, rtol=1e-9)


def test_empirical_bayes_gives_a_group_of_failures_credit():
    transform = empirical_bayes(leave_one_out=True)
    _, state = step(transform, transform.init(), [[1.0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]])
    credit, _ = step(transform, state, [[0.0, 0, 0, 0]])
    assert np.all(credit < -0.1)


# Quantiles


def test_quantiles_take_the_rank_of_the_inverted_distribution():
    reward = [[0.4, 0.1, 0.5, 0.2, 0.3], [1, 1, 0, 0, 0]]
    for level, first, second in ((0.2, 0.1, 0), (0.21, 0.2, 0), (0.6, 0.3, 0), (0.61, 0.4, 1), (1.0, 0.5, 1)):
        baseline = np.array([[first], [second]])
        np.testing.assert_allclose(apply(group_quantile(level=level), reward), reward - baseline, atol=1e-15)
        expected = np.quantile(reward, level, axis=1, method="inverted_cdf", keepdims=True)
        np.testing.assert_allclose(baseline, expected)


def test_the_product_of_level_and_group_is_not_rounded_up():
    assert 0.07 * 100 > 7, "the case has lost its point"
    reward = np.arange(100.0)[None]
    np.testing.assert_array_equal(apply(group_quantile(level=0.07), reward), reward - 6)


def test_the_median_of_a_ragged_group():
    np.testing.assert_allclose(apply(group_median(), [[3.0, 1, 2]]), [[1, -1, 0]])
    np.testing.assert_allclose(apply(group_median(), [[4.0, 1, 2, 3]]), [[2, -1, 0, 1]])  # the lower of 2 and 3
    valid = [[True, True, False, True]]
    np.testing.assert_allclose(apply(group_median(), [[4.0, 1, np.nan, 3]], valid), [[1, -2, 0, 0]])


def test_a_quantile_gates_0_1_rewards():
    hard, easy = [1.0, 0, 0, 0, 0], [1.0, 1, 1, 1, 0]
    credit = apply(group_quantile(level=0.4), [hard, easy])  # hard: pass rate at most 1 - 0.4
    np.testing.assert_array_equal(credit, [[1, 0, 0, 0, 0], [0, 0, 0, 0, -1]])


@pytest.mark.parametrize(
    ("level", "group", "p", "weight"),
    [
        (0.4, 2, 0.05, 0.95),
        (0.4, 4, 0.25, 0.859375),
        (0.6, 4, 0.05, 0.864625),
        (0.6, 2, 0.9, 0.9),
    ],
)
def test_the_weight_that_a_quantile_puts_on_the_gradient_of_p(level, group, p, weight):
    transform = group_quantile(level=level)
    np.testing.assert_allclose(transform.traits.f_prime(p, group), weight, rtol=1e-12)
    table = Table(np.log([[p, 1 - p]]), np.array([[1.0, 0.0]]))
    np.testing.assert_allclose(expected_gradient(transform, table, group), weight * table.gradient, rtol=1e-9)


@pytest.mark.parametrize("level", [0.0, 1.01, -0.5, float("nan")])
def test_a_level_outside_0_and_1_is_refused(level):
    with pytest.raises(ValueError, match="level must be above 0"):
        group_quantile(level=level)


# Roles

ROLES = np.array([[0, 0, 1, 1, 2, 0], [1, 1, 1, 0, 0, 5]])


def test_one_role_is_the_group():
    role = np.zeros(RAGGED.shape, np.int32)
    several = VALID & (VALID.sum(axis=1, keepdims=True) > 1)
    for leave_out, plain in ((False, group_mean()), (True, leave_one_out())):
        credit = apply(role_mean(roles=1, leave_one_out=leave_out), RAGGED, VALID, role=role)
        np.testing.assert_allclose(credit[several], apply(plain, RAGGED, VALID)[several], rtol=1e-12, atol=1e-15)


def test_roles_by_hand():
    reward = [[1.0, 0, 0.5, 0, 0.3, 0.5], [1.0, 0, 0.5, 0.4, 0.2, 9]]
    valid = [[True] * 6, [True, True, False, True, True, True]]
    credit = apply(role_mean(roles=3, leave_one_out=False), reward, valid, role=ROLES)
    np.testing.assert_allclose(credit, [[0.5, -0.5, 0.25, -0.25, 0, 0], [0.5, -0.5, 0, 0.1, -0.1, 0]], atol=1e-15)
    credit = apply(role_mean(roles=3, leave_one_out=True), reward, valid, role=ROLES)
    # The only answer of role 2 keeps its reward; role 5 is none of the three.
    np.testing.assert_allclose(credit, [[0.75, -0.75, 0.5, -0.5, 0.3, 0], [1, -1, 0, 0.2, -0.2, 0]], atol=1e-15)


def test_a_shared_baseline_costs_a_quarter_of_the_squared_gap_between_agents():
    """Agents of means D apart: E[A²] with one baseline is that of their own baselines plus D²/4."""
    agents = RNG.uniform(size=(2, 4)) + np.array([[0.0], [0.6]])
    gap = np.diff(agents.mean(axis=1))[0]
    reward, own = agents.reshape(1, 8), np.repeat([[0, 1]], 4, axis=1).astype(np.int32)
    square = lambda role: np.mean(apply(role_mean(roles=2, leave_one_out=False), reward, role=role) ** 2)  # noqa: E731
    np.testing.assert_allclose(square(0 * own), square(own) + gap**2 / 4, rtol=1e-12)


def test_a_team_reward_makes_shared_and_own_baselines_one():
    team = np.repeat(RNG.uniform(size=(2, 3)), 2, axis=1)  # three rollouts of two agents that earn the same
    role = np.tile([[0, 1]], (2, 3)).astype(np.int32)
    transform = role_mean(roles=2, leave_one_out=False)
    np.testing.assert_allclose(
        apply(transform, team, role=role), apply(transform, team, role=0 * role), rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("group", [3, 4, 5])
def test_roles_keep_the_gradient_up_to_the_share_of_roles(group):
    for table in tables(1, 2):
        mean = expected_gradient(role_mean(roles=2, leave_one_out=False), table, group)
        np.testing.assert_allclose(mean, (1 - 2 / group) * table.gradient, rtol=1e-9)
        others = expected_gradient(role_mean(roles=2, leave_one_out=True), table, group)
        np.testing.assert_allclose(others, table.gradient, rtol=1e-9)


# Pools


def test_pools_by_hand():
    reward, pool = [[1.0, 0], [1.0, 1]], {"pool_mean": [0.25, 0.0], "pool_std": [0.5, 0.0]}
    np.testing.assert_allclose(apply(pool_mean(), reward, **pool), [[0.75, -0.25], [1, 1]])
    np.testing.assert_allclose(apply(pool_standard_score(eps=0.5), reward, **pool), [[0.75, -0.25], [2, 2]])
    np.testing.assert_allclose(apply(pool_standard_score(eps=0.0), reward, **pool), [[1.5, -0.5], [1, 1]])
    np.testing.assert_allclose(apply(pool_root_rate(eps=0.0), reward, **pool), [[1.5, -0.5], [1, 1]])
    np.testing.assert_allclose(apply(pool_root_rate(eps=0.24), reward, **pool)[0], np.array([0.75, -0.25]) / 0.7)
    np.testing.assert_allclose(apply(pool_mean(), RAGGED, pool_mean=RAGGED.mean(axis=1)), apply(group_mean(), RAGGED))


def weight_on_p(p, draws, keep, pool):
    """Weight on the gradient of p of r - mean of the pool, over 0/1 draws of which `keep(row)` are trained on."""
    rows = np.array(list(itertools.product([0.0, 1.0], repeat=draws)))
    chance = np.prod(np.where(rows == 1, p, 1 - p), axis=1)
    kept = np.array([row[keep(row)] for row in rows])
    credit = apply(pool_mean(), kept, pool_mean=pool(rows))
    return chance @ np.mean(credit * (kept - p), axis=1) / (p * (1 - p))


def first_of_each(row):
    return [int(np.argmax(row)), int(np.argmin(row))] if 0 < row.sum() < len(row) else [0, 1]


def test_trap_2_the_pool_of_a_balancing_sampler_is_biased():
    """In the limit of many draws by ((1-p)² + p²) / (2p(1-p)); here for as many as are drawn."""
    everyone = lambda rows: rows.mean(axis=1)  # noqa: E731
    for p in (0.1, 0.5):
        np.testing.assert_allclose(weight_on_p(p, 4, lambda row: slice(None), everyone), 1 - 1 / 4, rtol=1e-12)
        np.testing.assert_allclose(weight_on_p(p, 4, lambda row: slice(2), lambda rows: 0 * rows[:, 0] + 0.3), 1)
    hard, even = (weight_on_p(p, 8, first_of_each, everyone) for p in (0.1, 0.5))
    assert hard > 1.5 * even, "keeping one of each must weigh hard prompts up"
    for p, draws in ((0.5, 6), (0.3, 8)):
        mixed, rate = 1 - p**draws - (1 - p) ** draws, p - p**draws  # chance of both outcomes, and E[mean; both]
        exact = ((1 - p) * (mixed - rate) + p * rate) / (2 * p * (1 - p))
        np.testing.assert_allclose(weight_on_p(p, draws, first_of_each, everyone), exact, rtol=1e-12)


# Constants


@pytest.mark.parametrize(
    ("p", "none", "value", "pair", "quad"),
    [
        (0.1, 0.0729, 0.0576, 0.0369, 0.01575),
        (0.3, 0.1029, 0.0336, 0.0609, 0.01575),
        (0.5, 0.0625, 0.0, 0.0625, 0.010416666666666666),
    ],
)
def test_variances_of_a_coin(p, none, value, pair, quad):
    """Score 1-p or -p. The best constant is 1-p, not p, and leaves no variance; a pair may be worse than none."""

    def variance(transform, group):
        rows = np.array(list(itertools.product([0.0, 1.0], repeat=group)))
        chance = np.prod(np.where(rows == 1, p, 1 - p), axis=1)
        estimate = np.mean(apply(transform, rows, greedy_reward=np.ones(len(rows))) * (rows - p), axis=1)
        np.testing.assert_allclose(chance @ estimate, p * (1 - p), rtol=1e-12)
        return chance @ estimate**2 - (chance @ estimate) ** 2

    np.testing.assert_allclose(variance(no_baseline(), 1), none, rtol=1e-9)
    np.testing.assert_allclose(variance(constant(value=p), 1), value, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(variance(constant(value=1 - p), 1), 0, atol=1e-15)
    np.testing.assert_allclose(variance(leave_one_out(), 2), pair, rtol=1e-9)
    np.testing.assert_allclose(variance(shrunk_leave_one_out(factor=1.0), 4), quad, rtol=1e-9)
    if p == 0.5:  # a greedy answer that is right half the time is no better than no baseline
        np.testing.assert_allclose(variance(greedy(), 1), none, rtol=1e-9)


def test_a_constant_moves_the_coding_of_rewards():
    reward = np.array([[1.0, 0, 0]])
    np.testing.assert_allclose(2 * apply(constant(value=0.5), reward), apply(no_baseline(), 2 * reward - 1))
    np.testing.assert_array_equal(apply(constant(value=1.0), reward), [[0, -1, -1]])  # negatives only


def test_asymre_lowers_the_baseline():
    reward = np.array([[1.0, 0, 0, 0], [0, 0, 0, 0]])
    credit = apply(chain(group_mean(), shift(amount=0.1)), reward)
    np.testing.assert_allclose(credit, [[0.85, -0.15, -0.15, -0.15], [0.1, 0.1, 0.1, 0.1]])
    assert not chain(group_mean(), shift(amount=0.1)).traits.centred
    np.testing.assert_allclose(apply(shift(amount=0.3), reward), apply(constant(value=-0.3), reward))


def test_asymre_is_a_likelihood_penalty_that_vanishes_on_policy():
    """Σ (A + β) s = Σ A s + β Σ s, and E Σ s = 0."""
    plain = moments(group_mean(), ARMS["A"], 3)[0]
    np.testing.assert_allclose(moments(chain(group_mean(), shift(amount=0.4)), ARMS["A"], 3)[0], plain, atol=1e-14)


def test_the_greedy_reward_may_be_anything_where_no_answer_is_valid():
    credit = apply(greedy(), RAGGED, VALID, greedy_reward=[0.1, 0.2, 0.3, 0.4, np.nan])
    np.testing.assert_allclose(credit, np.where(VALID, RAGGED - [[0.1], [0.2], [0.3], [0.4], [0]], 0))
