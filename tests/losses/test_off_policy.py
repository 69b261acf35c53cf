"""Off-policy weights and divergences on all answers of a small policy: bias, variance and what a baseline does."""

import dataclasses
import functools
import itertools

import bigram
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm.losses import (
    Objective,
    answer_mean,
    answer_sum,
    cispo,
    clipped,
    effective_sample_size,
    fixed_divisor,
    gspo,
    k1,
    k2,
    k3,
    k3_unbiased,
    kl,
    per_decision_returns,
    prefix_ratio,
    rao_blackwell,
    reinforce,
    self_normalised_group,
    sequence_ratio,
    tapered,
    token_mean,
    token_ratio,
    topr,
    variance_reduced_length,
    vespo,
    with_score,
)
from jaxrl_llm.losses.ratios import answer_log_ratio
from jaxrl_llm.losses.surrogates.tapers import between


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@functools.cache
def truth():
    """Value and its gradient [9] under the policy."""
    with jax.enable_x64(True):
        value = lambda logits: jnp.sum(  # noqa: E731
            jnp.exp(jnp.sum(jnp.where(bigram.WHERE, bigram.logp_of(logits), 0), axis=-1)) * bigram.REWARD
        )
        number, slope = jax.value_and_grad(value)(jnp.asarray(bigram.LOGITS))
        return float(number), np.asarray(slope).ravel()


TRUNCATED = tapered(positive=between(0.0, 1.0), negative=between(0.0, 1.0), ratio=answer_log_ratio)
NEUTRAL = {"sequence_ratio": sequence_ratio(), "token_ratio": token_ratio(), "prefix_ratio": prefix_ratio()}
TAPERED = {
    "topr": topr(),
    "vespo": vespo(),
    "cispo": cispo(low=0.1, high=0.1),
    "clipped": clipped(low=0.1, high=0.1),
    "truncated": TRUNCATED,
}


def moments(surrogate, baseline, per_length=False):
    """Bias [9] and variance of the estimate from one answer of the sampler."""
    share = 1 / bigram.LENGTH if per_length else np.ones(15)

    def per_answer(logits):
        tokens = bigram.tokens_of(logits, bigram.REWARD - baseline)
        return jnp.sum(jnp.where(tokens.where, surrogate(tokens), 0), axis=(1, 2)) * share

    mean, variance = bigram.moments(bigram.gradients(per_answer), bigram.chance(bigram.BEHAVIOUR))
    return mean - truth()[1], variance


def test_the_policy_is_what_it_says():
    np.testing.assert_allclose(np.sum(bigram.chance(bigram.LOGITS)), 1, rtol=1e-12)
    np.testing.assert_allclose(truth()[0], 0.4180657122048766, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "bias", "variance"),
    [
        ("sequence_ratio", 0.0, 0.3581151725),
        ("token_ratio", 0.0459, 0.3092),
        ("prefix_ratio", 0.0383, 0.3400),
        ("topr", 0.0245, 0.2628688245),
        ("vespo", 0.0358, 0.2055),
        ("clipped", 0.2246, 0.1073),
    ],
)
def test_bias_and_variance_with_the_value_as_baseline(name, bias, variance):
    """Independently computed numbers, to the digits that were kept."""
    surrogate = {**NEUTRAL, **TAPERED}[name]
    actual_bias, actual = moments(surrogate, truth()[0])
    digits = 10 if variance in (0.3581151725, 0.2628688245) else 4
    np.testing.assert_allclose(np.linalg.norm(actual_bias), bias, atol=1e-12 if bias == 0 else 5.1e-5)
    np.testing.assert_allclose(actual, variance, atol=0.51 * 10.0**-digits)


@pytest.mark.parametrize("name", NEUTRAL)
def test_ratios_are_neutral_to_baselines(name):
    """E_μ[ρ_t s_t | prefix] = 0, so the bias is the same for every constant baseline; 0 for whole answers alone."""
    bias = [moments(NEUTRAL[name], b)[0] for b in (0.0, 0.5, 2.0)]
    np.testing.assert_allclose(bias[1:], [bias[0]] * 2, atol=1e-14)
    assert (np.linalg.norm(bias[0]) < 1e-14) == (name == "sequence_ratio")


@pytest.mark.parametrize("name", TAPERED)
def test_truncation_breaks_baselines(name):
    """With another weight than the ratio, the bias moves with the baseline."""
    bias = [moments(TAPERED[name], b)[0] for b in (0.0, 0.5)]
    assert np.linalg.norm(bias[1] - bias[0]) > 1e-3


def test_gspo_estimates_another_scale():
    """Clip aside, its mean is neither the gradient nor, at length 3, a multiple of 1/L."""
    bias, _ = moments(gspo(low=1.0, high=1e6), truth()[0], per_length=True)
    mean = bias + truth()[1]
    assert np.linalg.norm(mean) < 0.7 * np.linalg.norm(truth()[1])
    assert mean @ truth()[1] > 0


def pairs_of(per_answer_tokens):
    first, second = np.asarray(list(itertools.product(range(15), repeat=2))).T
    pair = lambda x: jnp.stack([x[first, 0], x[second, 0]], axis=1)  # noqa: E731
    return jax.tree.map(pair, per_answer_tokens), first, second


def test_self_normalised_pairs():
    """Bias and variance of n w_i/Σw over all 225 groups of two; consistent, so biased here."""
    chance = bigram.chance(bigram.BEHAVIOUR)
    value = truth()[0]
    objective = Objective(surrogate=reinforce(), aggregate=answer_sum(), corrections=(self_normalised_group(),))
    tokens, first, second = pairs_of(bigram.tokens_of(bigram.LOGITS, bigram.REWARD - value))
    (weight,) = objective.prepare(tokens)
    np.testing.assert_allclose(np.sum(weight[:, :, 0], axis=1), 2, rtol=1e-12)
    score = bigram.gradients(lambda x: jnp.sum(jnp.where(bigram.WHERE, bigram.logp_of(x), 0), axis=-1))
    each = np.asarray(weight)[:, :, 0] * np.asarray(tokens.advantage)[:, :, 0] / 2
    gradient = each[:, :1] * score[first] + each[:, 1:] * score[second]
    mean, variance = bigram.moments(gradient, chance[first] * chance[second])
    np.testing.assert_allclose(np.linalg.norm(mean - truth()[1]), 0.0262, atol=5.1e-5)
    np.testing.assert_allclose(variance, 0.1726, atol=5.1e-5)


def test_effective_sample_size_is_1_over_1_and_chi_square():
    chance = bigram.chance(bigram.BEHAVIOUR)
    ratio = bigram.chance(bigram.LOGITS) / chance
    copies = np.round(chance * 200_000).astype(int)  # the sampler as a batch: every answer as often as it is drawn
    weight = jnp.asarray(np.repeat(ratio, copies))[:, None, None]
    actual = effective_sample_size(weight, jnp.ones(weight.shape, bool))
    # Whole numbers of copies: up to 0.5 / 200,000 of each of 15 chances, times ratios of up to 3 squared.
    np.testing.assert_allclose(actual, 0.923959251368274, rtol=1e-4)


def test_per_decision_returns_are_unbiased_and_not_always_better():
    """The credit of token t is the sum of later rewards, each with the ratio of the tokens up to it."""
    chance = bigram.chance(bigram.BEHAVIOUR)
    total = np.sum(bigram.DENSE, axis=-1)
    score = bigram.gradients(lambda x: jnp.sum(jnp.where(bigram.WHERE, bigram.logp_of(x), 0), axis=-1))
    to_go = np.cumsum(bigram.DENSE[:, ::-1], axis=-1)[:, ::-1].copy()
    expected = (bigram.chance(bigram.LOGITS) * total) @ score

    def per_decision(logits):
        tokens = bigram.tokens_of(logits, 0.0)
        returns = per_decision_returns(tokens, jnp.asarray(bigram.DENSE)[:, None])
        values = reinforce()(dataclasses.replace(tokens, advantage=returns))
        return jnp.sum(jnp.where(tokens.where, values, 0), axis=(1, 2))

    def whole(logits):
        tokens = bigram.tokens_of(logits, to_go)
        return jnp.sum(jnp.where(tokens.where, sequence_ratio()(tokens), 0), axis=(1, 2))

    mean, variance = bigram.moments(bigram.gradients(per_decision), chance)
    np.testing.assert_allclose(mean, expected, atol=1e-14)
    mean, other = bigram.moments(bigram.gradients(whole), chance)
    np.testing.assert_allclose(mean, expected, atol=1e-14)
    np.testing.assert_allclose([variance, other], [0.6633, 0.6432], atol=5.1e-5)


def test_per_decision_returns_of_a_reward_at_the_end_are_the_sequence_ratio():
    tokens = bigram.tokens_of(bigram.LOGITS, 0.0)
    last = jnp.asarray(np.arange(3) == bigram.LENGTH[:, None] - 1)[:, None]
    returns = per_decision_returns(tokens, jnp.where(last, jnp.asarray(bigram.REWARD)[:, None, None], 0))
    ratio = jnp.exp(answer_log_ratio(tokens))
    expected = jnp.where(tokens.where, ratio * jnp.asarray(bigram.REWARD)[:, None, None], 0)
    np.testing.assert_allclose(returns, expected, rtol=1e-12)


# Divergences, on-policy


def divergence_gradient():
    def divergence(logits):
        chance = jnp.exp(jnp.sum(jnp.where(bigram.WHERE, bigram.logp_of(logits), 0), axis=-1))
        return jnp.sum(chance * jnp.sum(jnp.where(bigram.WHERE, bigram.exact_kl_of(logits), 0), axis=-1))

    return np.asarray(jax.grad(divergence)(jnp.asarray(bigram.LOGITS))).ravel()


def penalty_moments(*penalties):
    """Mean [9] and variance of the gradient of the cost, by one answer of the policy; no reward but the penalty's."""
    objective = Objective(surrogate=reinforce(), aggregate=answer_sum(), penalties=penalties)

    def per_answer(logits):
        tokens = bigram.tokens_of(logits, 0.0, sampler=bigram.LOGITS)
        shaped = jax.lax.stop_gradient(objective.shaped_reward(jnp.zeros((15, 1), logits.dtype), tokens))
        tokens = dataclasses.replace(tokens, advantage=jnp.broadcast_to(shaped[..., None], tokens.logp.shape))
        one = lambda rows: objective.loss(jnp.ones((1, 1, 3)), jax.tree.map(lambda x: x[None], rows))  # noqa: E731
        return jax.vmap(one)(tokens)

    return bigram.moments(bigram.gradients(per_answer), bigram.chance(bigram.LOGITS))


def test_k1_in_the_reward_has_the_gradient_of_the_divergence():
    mean, variance = penalty_moments(kl(k1, 1.0, "reward"))
    np.testing.assert_allclose(mean, divergence_gradient(), atol=1e-14)
    np.testing.assert_allclose(variance, 0.449, atol=5.1e-4)


def test_k1_in_the_loss_has_a_gradient_of_0():
    np.testing.assert_allclose(penalty_moments(kl(k1, 1.0, "loss"))[0], 0, atol=1e-14)


@pytest.mark.parametrize(("estimator", "bias"), [(k2, 0.0244), (k3, 0.0478)])
def test_costs_of_tokens_in_the_loss_leave_out_the_divergence_of_later_tokens(estimator, bias):
    mean, _ = penalty_moments(kl(estimator, 1.0, "loss"))
    np.testing.assert_allclose(np.linalg.norm(mean - divergence_gradient()), bias, atol=5.1e-5)


@pytest.mark.parametrize("estimator", [k3_unbiased, with_score(k1)])
def test_the_score_term_gives_an_estimator_the_gradient_of_k2(estimator):
    expected, _ = penalty_moments(kl(k2, 1.0, "loss"))
    np.testing.assert_allclose(penalty_moments(kl(estimator, 1.0, "loss"))[0], expected, atol=1e-14)
    assert np.linalg.norm(penalty_moments(kl(k3, 1.0, "loss"))[0] - expected) > 1e-2


def test_rao_blackwell_in_the_loss_has_the_mean_of_k2_and_less_variance():
    expected, noisy = penalty_moments(kl(k2, 1.0, "loss"))
    mean, variance = penalty_moments(rao_blackwell(1.0, "loss"))
    np.testing.assert_allclose(mean, expected, atol=1e-14)
    assert variance < noisy


def test_rao_blackwell_needs_both_placements():
    """What a token does to its own divergence is in the loss, what it does to that of later tokens in the reward."""
    both, _ = penalty_moments(rao_blackwell(1.0, "reward"), rao_blackwell(1.0, "loss"))
    np.testing.assert_allclose(both, divergence_gradient(), atol=1e-14)
    for placement in ("reward", "loss"):
        alone, _ = penalty_moments(rao_blackwell(1.0, placement))
        assert np.linalg.norm(alone - divergence_gradient()) > 1e-2


def test_values_of_the_estimators():
    """Means and variances of the sums over an answer, computed independently."""
    tokens = bigram.tokens_of(bigram.LOGITS, 0.0, sampler=bigram.LOGITS)
    chance = bigram.chance(bigram.LOGITS)
    table = {
        k1: (0.1370480499600973, 0.2575165217914461),
        k2: (0.1279174469924899, 0.00948109022939),
        k3: (0.1370480499600971, 0.01470096492457426),
        rao_blackwell(1.0, "loss").cost: (0.13704804996009726, 0.003023011583257487),
    }
    for cost, (mean, variance) in table.items():
        x = np.sum(np.where(bigram.WHERE, cost(tokens)[:, 0], 0), axis=-1)
        np.testing.assert_allclose([chance @ x, chance @ x**2 - (chance @ x) ** 2], [mean, variance], rtol=1e-9)


# Lengths, on-policy


@pytest.mark.parametrize(
    ("aggregate", "bias", "variance"),
    [
        (answer_sum(), 0.0, 0.35680255149535245),
        (answer_mean(), 0.0625771547787394, 0.08292322849194943),
        (token_mean(), 0.07366335075391506, 0.0679007981198646),
        (fixed_divisor(divisor=3.0), 0.0977469232871039, 0.03964472794392806),
        (variance_reduced_length(alpha=1.0), 0.03325611920244937, 0.3486355765907435),
        (variance_reduced_length(alpha=0.75), 0.025621325220042727, 0.3473921504527776),
    ],
)
def test_aggregations_of_pairs_with_the_other_answer_as_baseline(aggregate, bias, variance):
    """Each of the 225 groups of two as a batch of its own; numbers computed independently. Only the sum is unbiased."""
    chance = bigram.chance(bigram.LOGITS)
    tokens, first, second = pairs_of(bigram.tokens_of(bigram.LOGITS, bigram.REWARD, sampler=bigram.LOGITS))
    weights = jax.vmap(lambda where: aggregate(where[None])[0])(tokens.where)
    credit = bigram.REWARD[first] - bigram.REWARD[second]
    per_token = np.asarray(weights) * np.stack([credit, -credit], axis=1)[..., None]  # [225 2 3]
    score = bigram.scores()  # [15 3 9]
    gradient = np.einsum("nt,ntd->nd", per_token[:, 0], score[first])
    gradient += np.einsum("nt,ntd->nd", per_token[:, 1], score[second])
    mean, actual = bigram.moments(gradient, chance[first] * chance[second])
    np.testing.assert_allclose(np.linalg.norm(mean - truth()[1]), bias, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(actual, variance, rtol=1e-9)
