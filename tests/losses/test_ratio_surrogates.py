"""Surrogates of tokens and answers by cases: what each weight is, which are equal, and numbers of other libraries."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_surrogate import batch, of_ratios, pulls, row, slope_of

from jaxrl_llm import losses
from jaxrl_llm.losses import answer_mean, answer_sum, bare_tokens, token_mean
from jaxrl_llm.losses.ratios import answer_log_ratio, mean_log_ratio, prefix_log_ratio, token_log_ratio
from jaxrl_llm.losses.surrogates.tapers import between

RATIOS = (0.3, 0.7, 0.9, 1.0, 1.1, 1.3, 3.5)
both_signs = pytest.mark.parametrize("advantage", [1.5, -1.5])


def trinity():
    """The batch of Trinity-RFT's policy_loss_test (1492a46): torch.manual_seed(42), five draws of torch.rand(5, 20).

    torch's generator is the Mersenne twister; a float32 is its low 24 bits.
    """
    bits = np.random.RandomState(42).randint(0, 2**32, size=500, dtype=np.uint32)
    u = ((bits & 0xFFFFFF) * 2.0**-24).reshape(5, 5, 1, 20)
    fields = {"logp": u[0], "behaviour_logp": u[1], "reference_logp": u[2], "advantage": u[4]}
    fields = {name: jnp.asarray(2 * x - 1, jnp.float32) for name, x in fields.items()}
    return bare_tokens(jnp.asarray(u[3] > 0.5), **fields)


@pytest.mark.parametrize(
    ("surrogate", "aggregate", "golden"),
    [
        (losses.clipped(), token_mean(), 0.28560468554),
        (losses.gspo(low=3e-4, high=4e-4), answer_mean(), 0.27235108614),
        (losses.opmd_early(temperature=1.0), token_mean(), -0.00958995),
    ],
)
def test_goldens_of_trinity(surrogate, aggregate, golden):
    tokens = trinity()
    objective = losses.Objective(surrogate=surrogate, aggregate=aggregate)
    np.testing.assert_allclose(objective.loss(aggregate(tokens.where), tokens), golden, rtol=1e-5)


# Tokens


@both_signs
def test_token_ratios_weigh_by_the_ratio_wherever_it_is(advantage):
    tokens = of_ratios(RATIOS, advantage)
    for surrogate in (losses.token_ratio(), losses.clipped(low=1.0, high=1e6)):
        np.testing.assert_allclose(slope_of(surrogate, tokens)[0, 0], advantage * np.array(RATIOS), rtol=1e-5)


@both_signs
def test_cispo_clips_the_weight_and_drops_no_token(advantage):
    slope = slope_of(losses.cispo(low=0.2, high=0.28), of_ratios(RATIOS, advantage))[0, 0]
    np.testing.assert_allclose(slope, advantage * np.clip(RATIOS, 0.8, 1.28), rtol=1e-5)


def test_the_absolute_bound_of_trl_is_verls_with_a_lower_bound_of_1():
    """TRL's epsilon_high 1.28 (no lower bound) against verl's clip to [1 - 1, 1 + 0.28]."""
    tokens = batch(spread=1.0)
    trl, verl = losses.cispo(low=None, high=1.28 - 1), losses.cispo(low=1.0, high=0.28)
    np.testing.assert_allclose(slope_of(trl, tokens), slope_of(verl, tokens), rtol=1e-6)
    assert not np.allclose(slope_of(trl, tokens), slope_of(losses.cispo(low=0.2, high=0.28), tokens))


def test_the_delta_of_trl_is_the_dual_clip():
    """TRL: min(min(ρ, delta) A, clip(ρ) A); verl: max(min(ρA, clip(ρ) A), c A) where A < 0. Values and gradients."""
    tokens, delta = batch(spread=1.5), 1.6

    def trl(t):
        ratio = jnp.exp(t.logp - t.behaviour_logp)
        return jnp.minimum(jnp.minimum(ratio, delta) * t.advantage, jnp.clip(ratio, 0.8, 1.2) * t.advantage)

    for ours, theirs in zip(pulls(losses.clipped(dual=delta), tokens), pulls(trl, tokens), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    assert not np.allclose(slope_of(losses.clipped(), tokens), slope_of(trl, tokens))


def test_log_ratio_clamped_is_ppo_inside_and_stops_outside():
    inside = batch(spread=1.0)
    ours = losses.log_ratio_clamped()
    for a, b in zip(pulls(ours, inside), pulls(losses.clipped(), inside), strict=True):
        np.testing.assert_array_equal(a, b)
    far = of_ratios((999.0, 1001.0, 1e4), -1.0)
    np.testing.assert_allclose(slope_of(ours, far)[0, 0], [-999, 0, 0], rtol=1e-5)
    np.testing.assert_allclose(slope_of(losses.clipped(), far)[0, 0], [-999, -1001, -1e4], rtol=1e-5)
    np.testing.assert_allclose(slope_of(losses.clipped(dual=3.0), far)[0, 0], 0)


def test_sapo_by_its_formula():
    for advantage, tau in ((1.5, 1.0), (-1.5, 1.05)):
        values, slope = pulls(losses.sapo(), of_ratios(RATIOS, advantage))
        gate = 1 / (1 + np.exp(-tau * (np.array(RATIOS) - 1)))
        np.testing.assert_allclose(values[0, 0], 4 / tau * gate * advantage, rtol=1e-5)
        np.testing.assert_allclose(slope[0, 0], 4 * np.array(RATIOS) * gate * (1 - gate) * advantage, rtol=1e-5)


@pytest.mark.parametrize("build", [lambda x: losses.sapo(positive=x), lambda x: losses.shaped_probability(offset=x)])
def test_parameters_that_must_be_above_0(build):
    with pytest.raises(ValueError, match="must be above 0"):
        build(0.0)


def test_dppo_bounds_the_change_of_the_probability():
    """From 0.5: 0.65 is within 0.2 of it and 0.75 is not; a token that falls is bounded for negative credit alone."""
    tokens = lambda a: row(logp=np.log([0.65, 0.75, 0.35, 0.25]), behaviour_logp=math.log(0.5), advantage=a)  # noqa: E731
    up, down = (slope_of(losses.dppo(low=0.2, high=0.2), tokens(a))[0, 0] for a in (1.0, -1.0))
    np.testing.assert_allclose(up, [1.3, 0, 0.7, 0.5], rtol=1e-5)
    np.testing.assert_allclose(down, [-1.3, -1.5, -0.7, 0], rtol=1e-5)
    rare = row(logp=math.log(0.05), behaviour_logp=math.log(0.001), advantage=1.0)
    np.testing.assert_allclose(slope_of(losses.dppo(low=0.2, high=0.2), rare), 20.0)  # ratio 50, held at 20


def test_proximal_is_the_ratio_to_the_policy_that_sampled():
    tokens = batch()
    moved = dataclasses.replace(tokens, behaviour_logp=tokens.policy_logp)
    ours = slope_of(losses.proximal(losses.clipped()), tokens)
    np.testing.assert_array_equal(ours, slope_of(losses.clipped(), moved))
    assert not np.array_equal(ours, slope_of(losses.clipped(), tokens))


def test_a_weight_on_positive_credit_is_a_factor_of_the_advantage():
    """`positive_learning_weight` of RLVR-Decomposed multiplies the positive part of the clipped loss."""
    tokens, weight = batch(spread=1.0), 0.1
    part = np.where(np.asarray(tokens.advantage) > 0, weight, 1) * slope_of(losses.clipped(), tokens)
    scaled = jnp.where(tokens.advantage > 0, weight * tokens.advantage, tokens.advantage)
    ours = slope_of(losses.clipped(), dataclasses.replace(tokens, advantage=scaled))
    np.testing.assert_allclose(ours, part, rtol=1e-5, atol=1e-7)


# Answers


def test_ratios_of_prefixes_and_answers():
    tokens = of_ratios((0.5, 3.0, 0.8), 1.0)
    np.testing.assert_allclose(np.exp(token_log_ratio(tokens))[0, 0], [0.5, 3.0, 0.8], rtol=1e-5)
    np.testing.assert_allclose(np.exp(prefix_log_ratio(tokens))[0, 0], [0.5, 1.5, 1.2], rtol=1e-5)
    np.testing.assert_allclose(np.exp(answer_log_ratio(tokens))[0, 0], [1.2] * 3, rtol=1e-5)
    np.testing.assert_allclose(np.exp(mean_log_ratio(tokens))[0, 0], [1.2 ** (1 / 3)] * 3, rtol=1e-5)


def test_sequence_and_prefix_ratios_weigh_the_score_of_each_token():
    tokens = of_ratios((0.5, 3.0, 0.8), -2.0)
    np.testing.assert_allclose(slope_of(losses.sequence_ratio(), tokens)[0, 0], [-2.4] * 3, rtol=1e-5)
    np.testing.assert_allclose(slope_of(losses.prefix_ratio(), tokens)[0, 0], [-1.0, -3.0, -2.4], rtol=1e-5)


def test_the_derivative_of_the_sequence_ratio_itself_is_the_same():
    """∇(w A) = w A Σ_t ∇log π_t: spread over the tokens with the weights of `answer_sum`, sample by sample."""
    tokens = batch()
    credit = jnp.broadcast_to(tokens.advantage[..., :1], tokens.where.shape)
    tokens = dataclasses.replace(tokens, advantage=jnp.where(tokens.where, credit, 0))
    weights = answer_sum()(tokens.where)

    def whole(logp):
        log_ratio = jnp.sum(jnp.where(tokens.where, logp - tokens.behaviour_logp, 0), axis=-1)
        answers = jnp.maximum(jnp.sum(jnp.any(tokens.where, axis=-1)), 1)
        return jnp.sum(jnp.exp(log_ratio) * tokens.advantage[..., 0]) / answers

    expected = jax.jit(jax.grad(whole))(tokens.logp)
    np.testing.assert_allclose(weights * slope_of(losses.sequence_ratio(), tokens), expected, rtol=1e-5, atol=1e-7)


def test_gspo_of_whole_answers_is_gspo_of_tokens():
    """min(sA, clip(s) A) per answer, differentiated through all tokens, is the token form under `answer_mean`."""
    tokens = batch()
    credit = jnp.broadcast_to(tokens.advantage[..., :1], tokens.where.shape)
    tokens = dataclasses.replace(tokens, advantage=jnp.where(tokens.where, credit, 0))
    weights = answer_mean()(tokens.where)

    def whole(logp):
        length = jnp.maximum(jnp.sum(tokens.where, axis=-1), 1)
        s = jnp.exp(jnp.sum(jnp.where(tokens.where, logp - tokens.behaviour_logp, 0), axis=-1) / length)
        a = tokens.advantage[..., 0]
        answers = jnp.sum(jnp.any(tokens.where, axis=-1))
        return jnp.sum(jnp.minimum(s * a, jnp.clip(s, 0.9, 1.1) * a)) / answers

    expected = jax.jit(jax.grad(whole))(tokens.logp)
    assert np.any(np.asarray(expected)[np.asarray(tokens.where)] == 0)
    ours = weights * slope_of(losses.gspo(low=0.1, high=0.1), tokens)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_the_clip_of_whole_answers_is_of_their_ratio():
    """min(wA, clip(w) A) per answer, differentiated through all tokens, under `answer_sum` (TRL's RLOO)."""
    tokens = batch(spread=0.2)
    credit = jnp.broadcast_to(tokens.advantage[..., :1], tokens.where.shape)
    tokens = dataclasses.replace(tokens, advantage=jnp.where(tokens.where, credit, 0))

    def whole(logp):
        w = jnp.exp(jnp.sum(jnp.where(tokens.where, logp - tokens.behaviour_logp, 0), axis=-1))
        a = tokens.advantage[..., 0]
        return jnp.sum(jnp.minimum(w * a, jnp.clip(w, 0.8, 1.2) * a)) / jnp.sum(jnp.any(tokens.where, axis=-1))

    expected = np.asarray(jax.jit(jax.grad(whole))(tokens.logp))
    live = expected[np.asarray(tokens.where)] != 0
    assert 0 < np.sum(live) < live.size
    ours = answer_sum()(tokens.where) * slope_of(losses.clipped_answer(), tokens)
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)


def test_gspo_of_single_tokens_is_ppo():
    tokens = batch(shape=(4, 3, 1), spread=1.0)
    for a, b in zip(pulls(losses.gspo(low=0.2, high=0.2), tokens), pulls(losses.clipped(), tokens), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@both_signs
def test_geo_mean_by_its_formula(advantage):
    """Log-ratios held on the harmful side alone; a held token has no gradient but stays in the weight."""
    ratios, low, high = np.array([0.5, 1.1, 2.0]), 0.4, 0.3
    x = np.log(ratios)
    held = np.minimum(x, high) if advantage > 0 else np.maximum(x, -low)
    weight = np.exp(np.mean(held))
    values, slope = pulls(losses.geo_mean(low=low, high=high), of_ratios(ratios, advantage))
    np.testing.assert_allclose(values[0, 0], [weight * advantage] * 3, rtol=1e-5)
    np.testing.assert_allclose(slope[0, 0], weight * advantage * (held == x), rtol=1e-5)
    assert 0 in slope


# Tapers


def test_topr_by_cases():
    """w = 0.6 or 1.5 at both tokens: right answers keep 1, wrong ones min(w, 1)."""
    for w, advantage, weight in ((0.6, 1.0, 1.0), (1.5, 1.0, 1.0), (0.6, -1.0, 0.6), (1.5, -1.0, 1.0)):
        slope = slope_of(losses.topr(), of_ratios((2.0, w / 2), advantage))[0, 0]
        np.testing.assert_allclose(slope, [weight * advantage] * 2, rtol=1e-5)


def test_trap_topr_is_of_answers_in_the_paper_and_of_tokens_in_a_port():
    tokens = of_ratios((2.0, 0.3), -1.0)
    np.testing.assert_allclose(slope_of(losses.topr(), tokens)[0, 0], [-0.6, -0.6], rtol=1e-5)
    np.testing.assert_allclose(slope_of(losses.topr_token(), tokens)[0, 0], [-1.0, -0.3], rtol=1e-5)
    single = batch(shape=(4, 3, 1))
    np.testing.assert_allclose(slope_of(losses.topr(), single), slope_of(losses.topr_token(), single), rtol=1e-6)


@pytest.mark.parametrize(
    ("positive", "negative", "same"),
    [
        ((1.0, 1.0), (1.0, 1.0), losses.reinforce()),
        ((0.0, math.inf), (0.0, math.inf), losses.sequence_ratio()),
    ],
)
def test_bounds_of_topr_that_are_other_estimators(positive, negative, same):
    tokens = batch(spread=0.7)
    where = np.asarray(tokens.where)
    ours = slope_of(losses.topr(positive=positive, negative=negative), tokens)
    np.testing.assert_allclose(ours[where], slope_of(same, tokens)[where], rtol=1e-5)
    assert not np.allclose(ours[where], slope_of(losses.topr(), tokens)[where], rtol=1e-2)


def test_positives_alone_are_weighted_imitation():
    tokens = batch()
    slope = slope_of(losses.topr(negative=(0.0, 0.0)), tokens)
    np.testing.assert_allclose(slope, np.maximum(tokens.advantage, 0), rtol=1e-6)


def test_truncation_at_1_of_both_classes():
    tokens = of_ratios((1.6, 0.5), 1.0)
    taper = between(0.0, 1.0)
    surrogate = losses.tapered(positive=taper, negative=taper, ratio=prefix_log_ratio)
    np.testing.assert_allclose(slope_of(surrogate, tokens)[0, 0], [1.0, 0.8], rtol=1e-5)


@pytest.mark.parametrize(("advantage", "power", "rate"), [(1.5, 2.0, 3.0), (-1.5, 3.0, 2.0)])
def test_vespo_by_its_formula(advantage, power, rate):
    for w in (0.2, 1.0, 1.7, 5.0):
        weight = math.exp(rate) * w**power * math.exp(-rate * w)
        slope = slope_of(losses.vespo(), of_ratios((2.0, w / 2), advantage))[0, 0]
        np.testing.assert_allclose(slope, [weight * advantage] * 2, rtol=1e-5)


@pytest.mark.parametrize(
    ("rate", "baseline", "share"),
    [(0.3, 0.0, 0.3), (0.3, -1.0, 1.0), (0.5, 0.5, 0.25), (0.8, 0.8, 4 / 13), (0.3, 1, 0)],
)
def test_effective_share_of_positives(rate, baseline, share):
    ours = losses.effective_positives(jnp.asarray([rate]), baseline)
    np.testing.assert_allclose(ours, share, atol=1e-6)
    n = 1000
    credit = np.where(np.arange(n) < rate * n, 1, -1) - baseline
    np.testing.assert_allclose(ours, np.sum(np.abs(credit[: round(rate * n)])) / np.sum(np.abs(credit)), rtol=1e-5)


def test_effective_share_of_no_credit_is_0():
    np.testing.assert_array_equal(losses.effective_positives(jnp.asarray([1.0]), 1.0), 0)
    np.testing.assert_array_equal(losses.effective_positives(jnp.asarray([0.0]), -1.0), 0)
