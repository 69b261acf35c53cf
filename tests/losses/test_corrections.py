"""Corrections: goldens of other libraries, denominators of classes, choices by covariance, exact micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_surrogate import FIELDS, batch, row, slope_of
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_llm import losses
from jaxrl_llm.losses import Correction, Objective, bare_tokens, reinforce, token_mean
from jaxrl_llm.losses.selections import _covariance

CORRECTIONS = {
    "truncated_token": losses.truncated_token(maximum=1.2),
    "truncated_answer": losses.truncated_answer(maximum=1.2),
    "masked_outside_token": losses.masked_outside_token(low=0.7, high=1.4),
    "masked_outside_answer": losses.masked_outside_answer(low=0.5, high=2.0),
    "masked_outside_mean": losses.masked_outside_mean(low=0.8, high=1.2),
    "batch_normalised": losses.batch_normalised(losses.truncated_token(maximum=1.2)),
    "batch_normalised_answers": losses.batch_normalised_answers(losses.truncated_answer(maximum=1.2)),
    "self_normalised_group": losses.self_normalised_group(),
    "self_normalised_batch": losses.self_normalised_batch(),
    "clip_cov": losses.clip_cov(fraction=0.2, low=0.01, high=5.0),
    "kl_cov": losses.kl_cov(fraction=0.2).weight,
    "class_denominators": losses.class_denominators(positive=1.0, negative=0.5),
    "class_denominators_answers": losses.class_denominators_answers(positive=1.0, negative=0.5),
}
every_correction = pytest.mark.parametrize("name", CORRECTIONS)


def weight_of(correction, tokens):
    return np.asarray(correction.weight(tokens))


def sampled(ratio, **fields):
    """One answer of tokens whose π_old/μ are these; the current policy is somewhere else."""
    return row(policy_logp=np.log(ratio), behaviour_logp=0.0, logp=-1.7, **fields)


# Laws


@every_correction
def test_padding_is_not_seen(name):
    tokens = batch()
    expected = weight_of(CORRECTIONS[name], tokens)
    assert np.all(np.isfinite(expected))
    where = np.asarray(tokens.where)
    for junk in (np.nan, np.inf):
        dirty = {field: jnp.where(tokens.where, getattr(tokens, field), junk) for field in FIELDS}
        objective = Objective(surrogate=reinforce(), aggregate=token_mean(), corrections=(CORRECTIONS[name],))
        (actual,) = objective.prepare(dataclasses.replace(tokens, **dirty))
        np.testing.assert_array_equal(np.asarray(actual)[where], expected[where])
    wide = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), (0, 2), (0, 3))), tokens)
    np.testing.assert_allclose(weight_of(CORRECTIONS[name], wide)[:4, :3, :5][where], expected[where], rtol=1e-5)


@every_correction
def test_order_is_not_seen(name):
    tokens = batch()
    turned = jax.tree.map(lambda x: x[::-1, jnp.array([2, 0, 1])], tokens)
    expected = weight_of(CORRECTIONS[name], tokens)[::-1, [2, 0, 1]]
    np.testing.assert_allclose(weight_of(CORRECTIONS[name], turned), expected, rtol=1e-5, atol=1e-7)


@every_correction
def test_nothing_acted_is_finite_and_the_loss_exactly_0(name):
    none = jax.tree.map(jnp.zeros_like, batch())
    assert np.all(np.isfinite(weight_of(CORRECTIONS[name], none)))
    objective = Objective(surrogate=losses.clipped(), aggregate=token_mean(), corrections=(CORRECTIONS[name],))
    loss = lambda logp: objective.loss(token_mean()(none.where), dataclasses.replace(none, logp=logp))  # noqa: E731
    value, slope = jax.value_and_grad(loss)(none.logp)
    assert value == 0
    np.testing.assert_array_equal(slope, 0)


@every_correction
def test_infinite_ratios_give_finite_weights(name):
    tokens = batch()
    far = jnp.where(jnp.arange(5) == 1, -jnp.inf, tokens.behaviour_logp)
    assert np.all(np.isfinite(weight_of(CORRECTIONS[name], dataclasses.replace(tokens, behaviour_logp=far))))


@every_correction
def test_dtypes_are_kept(name):
    narrow = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(jnp.bfloat16), batch())
    assert jax.eval_shape(CORRECTIONS[name].weight, narrow).dtype == jnp.bfloat16


@every_correction
def test_parts_of_micro_batches_add_up(name):
    """Prepared from the whole batch; from the parts alone, what compares answers or prompts gives another gradient."""
    tokens = batch(seed=3, shape=(6, 3, 5))
    objective = Objective(
        surrogate=losses.proximal(losses.clipped()),
        aggregate=token_mean(),
        corrections=(CORRECTIONS[name], losses.truncated_token(maximum=2.0)),
        penalties=(losses.kl_cov(fraction=0.3), losses.kl(losses.k3, 0.1, "loss")),
    )
    weights, prepared = objective.aggregate(tokens.where), objective.prepare(tokens)

    def loss(logp, weights, tokens, prepared):
        return objective.loss(weights, dataclasses.replace(tokens, logp=logp), prepared)

    slope = jax.jit(jax.value_and_grad(loss))
    value, gradient = slope(tokens.logp, weights, tokens, prepared)
    parts = []
    for rows in ([0, 5], [3, 1], [2, 4]):
        cut = jax.tree.map(lambda x: x[jnp.array(rows)], (weights, tokens, prepared))  # noqa: B023
        part, local = slope(cut[1].logp, *cut)
        np.testing.assert_allclose(local, gradient[jnp.array(rows)], rtol=1e-6, atol=1e-8)
        parts.append(part)
    np.testing.assert_allclose(sum(parts), value, rtol=1e-5)


def test_those_that_read_the_current_policy_are_moving():
    """A correction that is not moving is computed once, with the policy that sampled."""
    tokens = batch()
    other = dataclasses.replace(tokens, logp=tokens.logp - 0.3 * jnp.arange(5.0)[None, None] * tokens.where)
    for name, correction in CORRECTIONS.items():
        same = np.array_equal(weight_of(correction, tokens), weight_of(correction, other))
        assert same == (not correction.moving), name
    assert losses.batch_normalised(losses.self_normalised_batch()).moving


# Rollout and training mismatch


def test_golden_of_icepop():
    """verl's vector: ratios 0.4, 0.8, 6 and bounds 0.5 and 5: weights 0, 0.8, 0 of standard deviation 0.3771236."""
    weight = weight_of(losses.masked_outside_token(low=0.5, high=5.0), sampled([0.4, 0.8, 6.0]))
    np.testing.assert_allclose(weight[0, 0], [0, 0.8, 0], rtol=1e-6)
    ess = losses.effective_sample_size(jnp.asarray(weight), jnp.ones((1, 1, 3), bool))
    np.testing.assert_allclose([ess, np.std(weight)], [1 / 3, 0.3771236], rtol=1e-6)


def test_truncation_and_masks_by_cases():
    tokens = sampled([0.5, 4.0, 1.5])  # 3 as an answer, 3^(1/3) = 1.44 on average
    weigh = lambda correction: weight_of(correction, tokens)[0, 0]  # noqa: E731
    np.testing.assert_allclose(weigh(losses.truncated_token(maximum=2.0)), [0.5, 2.0, 1.5], rtol=1e-5)
    np.testing.assert_allclose(weigh(losses.truncated_answer(maximum=2.0)), [2.0] * 3, rtol=1e-5)
    np.testing.assert_allclose(weigh(losses.truncated_answer(maximum=5.0)), [3.0] * 3, rtol=1e-5)
    np.testing.assert_allclose(weigh(losses.masked_outside_answer(low=0.0, high=2.9)), [0] * 3)
    np.testing.assert_allclose(weigh(losses.masked_outside_answer(low=0.0, high=3.1)), [3.0] * 3, rtol=1e-5)
    np.testing.assert_allclose(weigh(losses.masked_outside_mean(low=0.5, high=1.5)), [0.5, 4.0, 1.5], rtol=1e-5)
    np.testing.assert_allclose(weigh(losses.masked_outside_mean(low=0.5, high=1.4)), [0] * 3)


def test_normalised_weights_have_mean_1_over_tokens_or_over_answers():
    tokens = batch()
    where = np.asarray(tokens.where)
    by_token = weight_of(CORRECTIONS["batch_normalised"], tokens)
    np.testing.assert_allclose(np.mean(by_token[where]), 1, rtol=1e-5)
    by_answer = weight_of(CORRECTIONS["batch_normalised_answers"], tokens)
    some = np.any(where, axis=-1)
    np.testing.assert_allclose(np.mean(by_answer[some][:, 0]), 1, rtol=1e-5)
    assert not np.isclose(np.mean(by_answer[where]), 1, rtol=1e-3)
    ratio = by_token / weight_of(CORRECTIONS["truncated_token"], tokens)
    np.testing.assert_allclose(ratio[where], ratio[where][0], rtol=1e-5)


def test_weights_that_are_all_0_stay_0():
    nothing = Correction(lambda tokens: jnp.zeros_like(tokens.logp))
    for wrap in (losses.batch_normalised, losses.batch_normalised_answers):
        np.testing.assert_array_equal(weight_of(wrap(nothing), batch()), 0)
    zero = jnp.zeros((1, 1, 3))
    assert losses.effective_sample_size(zero, jnp.ones((1, 1, 3), bool)) == 0
    assert losses.effective_sample_size(zero, jnp.zeros((1, 1, 3), bool)) == 0


def test_effective_sample_size_is_between_1_and_all():
    where = jnp.ones((1, 1, 4), bool)
    ess = lambda *w: float(losses.effective_sample_size(jnp.asarray(w).reshape(1, 1, 4), where))  # noqa: E731
    assert ess(2.0, 2.0, 2.0, 2.0) == 1
    assert ess(0.0, 0.0, 7.0, 0.0) == 0.25
    np.testing.assert_allclose(ess(1e30, 1e30, 0.0, 0.0), 0.5)  # squares beyond float32


def test_self_normalised_weights_of_groups_and_of_the_batch():
    """Ratios 2 and 6 in one group, 1 and 1 in the other."""
    logp = jnp.log(jnp.array([[2.0, 6.0], [1.0, 1.0]]))[..., None]
    tokens = bare_tokens(jnp.ones((2, 2, 1), bool), logp=logp)
    group = weight_of(losses.self_normalised_group(), tokens)[..., 0]
    np.testing.assert_allclose(group, [[0.5, 1.5], [1, 1]], rtol=1e-5)
    whole = weight_of(losses.self_normalised_batch(), tokens)[..., 0]
    np.testing.assert_allclose(whole, [[0.8, 2.4], [0.4, 0.4]], rtol=1e-5)
    np.testing.assert_array_equal(weight_of(losses.self_normalised_group(), batch(shape=(4, 1, 5)))[:, 0, 0] <= 1, True)


# Classes


def test_classes_are_means_of_their_own():
    """Three positive tokens, one negative, one without credit: OREAL's sums by 3 and by 1, not by 5."""
    tokens = row(logp=-1.0, advantage=[2.0, 1.0, 3.0, -4.0, 0.0])
    objective = Objective(
        surrogate=reinforce(),
        aggregate=token_mean(),
        corrections=(losses.class_denominators(positive=1.0, negative=0.5),),
    )
    loss = objective.loss(token_mean()(tokens.where), tokens)
    np.testing.assert_allclose(loss, (2 + 1 + 3) / 3 - 0.5 * 4 / 1, rtol=1e-6)


@pytest.mark.parametrize("advantage", [[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
def test_an_empty_class_adds_nothing(advantage):
    weight = weight_of(losses.class_denominators(), row(logp=-1.0, advantage=advantage))
    np.testing.assert_array_equal(weight[0, 0], [float(a != 0) for a in advantage])


def test_trap_deleted_rows_change_the_denominator():
    """Deleting the rows of a class is a factor of 0 with the denominator of those that stay; keeping them divides the
    same sum by all tokens. The ratio of the two steps is the share of the class."""
    tokens = batch()
    sign = jnp.where(jnp.arange(3) == 0, 1.0, -1.0)[None, :, None]
    tokens = dataclasses.replace(tokens, advantage=jnp.where(tokens.where, sign, 0))
    where = np.asarray(tokens.where)
    positives = where & (np.asarray(tokens.advantage) > 0)

    def slope(*corrections):
        objective = Objective(surrogate=reinforce(), aggregate=token_mean(), corrections=corrections)
        loss = lambda x: objective.loss(token_mean()(tokens.where), dataclasses.replace(tokens, logp=x))  # noqa: E731
        return np.asarray(jax.grad(loss)(tokens.logp))

    deleted = slope(losses.class_denominators(negative=0.0))
    np.testing.assert_allclose(deleted[positives], -1 / np.sum(positives), rtol=1e-6)
    np.testing.assert_array_equal(deleted[~positives], 0)
    share = np.sum(positives) / np.sum(where)
    np.testing.assert_allclose(slope()[positives], deleted[positives] * share, rtol=1e-6)


def test_classes_of_answers():
    tokens = bare_tokens(
        jnp.asarray(np.arange(4) < np.array([[[4], [1]], [[2], [0]]])[..., 0][..., None]),
        advantage=jnp.broadcast_to(jnp.array([[1.0, 1.0], [-1.0, 5.0]])[..., None], (2, 2, 4)),
    )
    weight = weight_of(losses.class_denominators_answers(positive=1.0, negative=0.5), tokens)[..., 0]
    np.testing.assert_allclose(weight, [[1.5, 1.5], [1.5, 0.0]], rtol=1e-6)


def test_trap_rewards_of_plus_minus_1_double_the_credit():
    """OREAL's rewards ±1 double every centred credit; the classes, and so the denominators, stay."""
    tokens = row(logp=-1.0, advantage=[0.5, -0.25, -0.25])
    double = dataclasses.replace(tokens, advantage=2 * tokens.advantage)
    weight = losses.class_denominators()
    np.testing.assert_array_equal(weight_of(weight, tokens), weight_of(weight, double))
    np.testing.assert_allclose(slope_of(reinforce(), double), 2 * slope_of(reinforce(), tokens))


# Covariance


def covariance(tokens):
    where = np.asarray(tokens.where)
    a, x = np.asarray(tokens.advantage, np.float64), np.asarray(tokens.logp, np.float64)
    return np.where(where, (a - a[where].mean()) * (x - x[where].mean()), 0)


def test_kl_cov_takes_the_tokens_of_largest_covariance():
    tokens = batch(shape=(6, 4, 8))
    where = np.asarray(tokens.where)
    k = int(0.1 * np.sum(where))
    chosen = weight_of(losses.kl_cov(fraction=0.1).weight, tokens) == 1
    assert np.sum(chosen) == k > 3
    cov = covariance(tokens)
    assert np.min(cov[chosen]) >= np.max(cov[where & ~chosen])


def test_kl_cov_takes_one_token_at_least_and_no_more_where_all_are_equal():
    tokens = batch()
    flat = dataclasses.replace(tokens, advantage=jnp.where(tokens.where, 1.0, 0))
    for each in (tokens, flat):
        weight = weight_of(losses.kl_cov(fraction=1e-6).weight, each)
        assert np.sum(weight) == 1
        assert not np.any(weight[~np.asarray(tokens.where)])
    noise = np.where(tokens.where, tokens.noise, 1.0)
    assert np.argmax(weight) == np.argmin(noise)  # of the equal ones, the same on any mesh and in any order


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.9, 1.0])
def test_kl_cov_breaks_ties_by_noise_and_then_by_place(fraction):
    """A few values of credit and noise, so that both tie; the order is that of a sort by (-cov, noise, place)."""
    tokens = batch(shape=(6, 4, 8))
    coarse = {
        "advantage": jnp.sign(tokens.advantage),
        "logp": jnp.full_like(tokens.logp, -1.0).at[:, :, ::3].set(-2.0),
        "noise": jnp.floor(2 * tokens.noise) / 2,
    }
    tokens = dataclasses.replace(tokens, **coarse)
    where = np.asarray(tokens.where).ravel()
    cov, noise = _covariance(tokens).ravel(), np.asarray(tokens.noise).ravel()
    order = sorted(np.flatnonzero(where), key=lambda i: (-float(cov[i]), float(noise[i]), i))
    expected = np.isin(np.arange(where.size), order[: max(int(np.float32(fraction) * where.sum()), 1)])
    assert len(set(zip(np.asarray(cov)[where], noise[where], strict=True))) < where.sum() / 4
    np.testing.assert_array_equal(weight_of(losses.kl_cov(fraction=fraction).weight, tokens).ravel() == 1, expected)


def test_kl_cov_costs_the_distance_to_the_policy_that_sampled():
    penalty = losses.kl_cov(fraction=1.0, coefficient=2.0)
    tokens = row(logp=[-1.0, -2.0, -1.5], behaviour_logp=-1.5)
    np.testing.assert_allclose(penalty.cost(tokens)[0, 0], [0.5, 0.5, 0.0])
    np.testing.assert_array_equal(slope_of(penalty.cost, tokens)[0, 0], [1, -1, 0])
    assert (penalty.coefficient, penalty.uses_reference, penalty.placement) == (2.0, False, "loss")


def test_clip_cov_leaves_out_random_tokens_of_the_band():
    tokens = batch(shape=(6, 4, 8))
    where, cov = np.asarray(tokens.where), covariance(tokens)
    ratio = np.exp(np.asarray(tokens.logp - tokens.behaviour_logp, np.float64))
    a = np.asarray(tokens.advantage)
    stopped = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
    band = where & (cov > 0.05) & (cov < 0.8) & ~stopped
    k = int(0.05 * np.sum(where))
    assert np.sum(band) > k > 3
    out = weight_of(losses.clip_cov(fraction=0.05, low=0.05, high=0.8), tokens) == 0
    assert np.sum(out) == k
    assert not np.any(out & ~band)
    assert np.max(np.asarray(tokens.noise)[out]) < np.min(np.asarray(tokens.noise)[band & ~out])


def test_clip_cov_is_the_same_every_time_and_another_with_other_noise():
    """In other libraries the choice is drawn anew on every call."""
    tokens, correction = batch(shape=(6, 4, 8)), losses.clip_cov(fraction=0.05, low=0.05, high=0.8)
    again = dataclasses.replace(tokens, noise=(tokens.noise + 0.5) % 1.0)
    np.testing.assert_array_equal(weight_of(correction, tokens), weight_of(correction, tokens))
    assert not np.array_equal(weight_of(correction, again), weight_of(correction, tokens))


def test_clip_cov_with_a_small_band_takes_what_there_is():
    tokens = batch()
    np.testing.assert_array_equal(weight_of(losses.clip_cov(fraction=0.9, low=50.0, high=60.0), tokens), 1)
    cov = np.sort(covariance(tokens).ravel())
    low = float(cov[-1] + cov[-2]) / 2
    correction = losses.clip_cov(fraction=0.9, low=low, high=60.0, clip_low=1.0, clip_high=1e6)
    assert np.sum(weight_of(correction, tokens) == 0) == 1


def test_eight_devices_give_the_weights_of_one():
    tokens = batch(shape=(8, 3, 5))
    every = jax.jit(lambda t: {name: correction.weight(t) for name, correction in CORRECTIONS.items()})
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("prompts",), axis_types=(AxisType.Auto,))
    split = jax.device_put(tokens, NamedSharding(mesh, PartitionSpec("prompts")))
    actual = jax.block_until_ready(every(split))
    expected = jax.block_until_ready(every(tokens))
    for name in CORRECTIONS:
        np.testing.assert_allclose(actual[name], expected[name], rtol=1e-5, atol=1e-7, err_msg=name)
