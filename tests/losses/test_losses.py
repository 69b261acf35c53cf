"""Aggregations, surrogates and the objective: goldens of peers, gradients by cases, exact micro-batches."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_llm import losses
from jaxrl_llm.losses import (
    Objective,
    Tokens,
    answer_mean,
    answer_sum,
    bare_tokens,
    clipped,
    cross_entropy,
    entropy_bonus,
    fixed_divisor,
    k3,
    kl,
    prompt_answer_sum,
    prompt_mean,
    reinforce,
    token_mean,
    variance_reduced_length,
)

AGGREGATES = {
    "token_mean": token_mean(),
    "answer_mean": answer_mean(),
    "answer_sum": answer_sum(),
    "fixed_divisor": fixed_divisor(divisor=4.0),
    "prompt_answer_sum": prompt_answer_sum(),
    "prompt_mean": prompt_mean(),
    "variance_reduced_length": variance_reduced_length(alpha=1.0),
}
every_aggregate = pytest.mark.parametrize("name", AGGREGATES)

# Losses 1..12 of three answers with 4, 2 and 0 acted tokens, as answers of three prompts and of one.
LOSSES = np.arange(1.0, 13).reshape(3, 4)
MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], bool)

FIELDS = ("logp", "behaviour_logp", "advantage", "reference_logp", "entropy")


def random_batch(seed=0, prompts=8, group=3, length=5):
    """where, and FIELDS, each [P G T]; padding holds numbers."""
    rng = np.random.default_rng(seed)
    shape = (prompts, group, length)
    where = np.arange(length) < rng.integers(0, length + 1, size=(prompts, group, 1))
    logp, behaviour, reference = -rng.exponential(size=(3, *shape)).astype(np.float32)
    advantage, entropy = rng.normal(size=(2, *shape)).astype(np.float32)
    return where, (logp, behaviour, advantage, reference, np.abs(entropy))


# Aggregations


@every_aggregate
@pytest.mark.parametrize("shape", [(3, 1, 4), (1, 3, 4)])
def test_goldens_of_peers_that_drop_fully_masked_rows(name, shape):
    golden = {"token_mean": 3.5, "answer_mean": 4.0, "answer_sum": 10.5, "fixed_divisor": 2.625}
    golden |= {"prompt_answer_sum": 10.5}
    # Of three prompts, and of one: lengths 4 and 2 weigh 1/4 and 1/2, by their mean 3/8 and by 2 answers 1/3 and 2/3.
    golden |= {"prompt_mean": 4.0, "variance_reduced_length": 10.5} if shape[0] == 3 else {}
    golden |= {"prompt_mean": 3.5, "variance_reduced_length": 10 / 3 + 11 * 2 / 3} if shape[0] == 1 else {}
    weights = AGGREGATES[name](jnp.asarray(MASK.reshape(shape)))
    assert weights.shape == shape
    assert weights.dtype == jnp.float32
    np.testing.assert_allclose(np.sum(weights * LOSSES.reshape(shape)), golden[name], rtol=1e-6)


@pytest.mark.parametrize(("name", "golden"), [("answer_mean", 8 / 3), ("fixed_divisor", 1.75)])
def test_peers_that_count_fully_masked_rows_have_two_thirds_of_the_loss(name, golden):
    """SkyRL, TRL and oat divide by 3 rows where 2 have a token, so empty rows shrink their step."""
    weights = AGGREGATES[name](jnp.asarray(MASK[:, None]))
    answers, rows = np.sum(np.any(MASK, axis=-1)), len(MASK)
    np.testing.assert_allclose(np.sum(weights * LOSSES[:, None]) * answers / rows, golden, rtol=1e-6)


def test_trap_the_fixed_divisor_of_peers_is_not_divided_by_the_answers():
    """verl in January 2026 and the trainers of HPT, ReLIFT and Critique-GRPO: a sum by a constant, which grows with the
    rows of a micro-batch. Ours is that number by the two answers, and twice the batch is the same estimate."""
    one = fixed_divisor(divisor=4.0)(jnp.asarray(MASK[:, None]))
    peer = np.sum(np.where(MASK, LOSSES, 0)) / 4.0
    assert peer == 5.25
    np.testing.assert_allclose(np.sum(one * LOSSES[:, None]), peer / 2, rtol=1e-6)
    twice = fixed_divisor(divisor=4.0)(jnp.asarray(np.concatenate([MASK] * 2)[:, None]))
    np.testing.assert_allclose(np.sum(twice * np.concatenate([LOSSES] * 2)[:, None]), peer / 2, rtol=1e-6)


def test_trap_the_bnpo_of_trl_is_a_token_mean():
    """loss_type="bnpo" divides by the active tokens; it is an aggregation and no Beta normalisation of credit."""
    peer = np.sum(LOSSES * MASK) / np.sum(MASK)
    np.testing.assert_allclose(np.sum(token_mean()(jnp.asarray(MASK[:, None])) * LOSSES[:, None]), peer, rtol=1e-6)


def test_prompts_of_unequal_numbers_of_answers_weigh_the_same():
    """Two answers, one, and none: 1/4 and 1/2 of an answer's sum, where `answer_sum` gives each answer a third."""
    answers = np.array([[1, 1], [0, 1], [0, 0]], bool)
    where = jnp.asarray(np.repeat(answers[..., None], 3, axis=-1))
    weights = np.asarray(prompt_answer_sum()(where))
    np.testing.assert_allclose(weights[..., 0], [[1 / 4, 1 / 4], [0, 1 / 2], [0, 0]], rtol=1e-7)
    np.testing.assert_array_equal(prompt_answer_sum()(where[:1]), answer_sum()(where[:1]))


def test_the_weights_of_lengths():
    """α = 0 is `answer_sum`; so is a group of equal lengths, whatever α: the mean is of the group."""
    where = random_batch()[0]
    zero = variance_reduced_length(alpha=0.0)(jnp.asarray(where))
    np.testing.assert_allclose(zero, answer_sum()(jnp.asarray(where)), rtol=1e-6)
    lengths = np.array([[4, 4], [2, 2], [1, 3]])[..., None]
    weights = np.asarray(variance_reduced_length(alpha=0.5)(jnp.asarray(np.arange(4) < lengths)))[..., 0]
    power = np.array([1, 3.0]) ** -0.5
    np.testing.assert_allclose(weights, [[1 / 6] * 2, [1 / 6] * 2, power / np.mean(power) / 6], rtol=1e-6)


@every_aggregate
def test_weights_depend_on_masks_alone(name):
    assert list(inspect.signature(AGGREGATES[name]).parameters) == ["where"]


@every_aggregate
def test_no_token_gives_0_and_a_finite_gradient(name):
    where, arrays = random_batch()
    weights = AGGREGATES[name](jnp.zeros(where.shape, bool))
    np.testing.assert_array_equal(weights, 0)
    value, gradient = slope_of("clipped, k3 and entropy")(weights, jnp.zeros(where.shape, bool), *arrays)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@every_aggregate
def test_padding_tokens_answers_or_prompts_changes_no_weight(name):
    where, _ = random_batch()
    weights = AGGREGATES[name](jnp.asarray(where))
    padded = AGGREGATES[name](jnp.asarray(np.pad(where, ((0, 5), (0, 2), (0, 3)))))
    np.testing.assert_allclose(padded[:8, :3, :5], weights, rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(padded)[np.pad(~where, ((0, 5), (0, 2), (0, 3)), constant_values=True)], 0)


@every_aggregate
def test_eight_devices_give_the_weights_of_one(name):
    where, _ = random_batch()
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("prompts",), axis_types=(AxisType.Auto,))
    split = jax.device_put(jnp.asarray(where), NamedSharding(mesh, PartitionSpec("prompts")))
    actual = jax.block_until_ready(jax.jit(AGGREGATES[name])(split))
    np.testing.assert_allclose(actual, jax.block_until_ready(AGGREGATES[name](jnp.asarray(where))), rtol=1e-6)


@pytest.mark.parametrize("divisor", [0.0, -1.0, float("nan")])
def test_a_divisor_that_is_not_above_0_is_refused(divisor):
    with pytest.raises(ValueError, match="divisor must be above 0"):
        fixed_divisor(divisor=divisor)


@every_aggregate
def test_peer_defect_extra_division_by_the_batch(name):
    """Twice the same batch is the same estimate: the gradient of what makes the tokens is unchanged."""
    where, arrays = random_batch()

    def gradient(copies, aggregate):
        acted, *twice = [np.concatenate([x] * copies) for x in (where, *arrays)]
        weights = aggregate(jnp.asarray(acted))
        _, slope = slope_of("clipped, k3 and entropy")(weights, acted, *twice)
        return np.sum(slope * np.cos(twice[0]))  # of one parameter, on which every log-probability depends

    honest = AGGREGATES[name]
    np.testing.assert_allclose(gradient(2, honest), gradient(1, honest), rtol=1e-5)
    again = lambda where: honest(where) / where.shape[0]  # noqa: E731
    assert not np.isclose(gradient(2, again), gradient(1, again), rtol=0.1)


# The objective

OBJECTIVES = {
    "clipped, k3 and entropy": Objective(
        surrogate=clipped(low=0.2, high=0.28, dual=3.0),
        aggregate=token_mean(),
        penalties=(kl(k3, 0.1, "loss"), entropy_bonus(0.01)),
    ),
    "reinforce": Objective(surrogate=reinforce(), aggregate=answer_mean()),
    "imitation": Objective(surrogate=cross_entropy, aggregate=answer_sum()),
}


@functools.cache
def slope_of(name):
    """Compiled loss of (weights, where, *FIELDS) and its gradient in logp. Fields reach it as they are, unmasked."""

    def loss(weights, where, *fields):
        rest = {each: jnp.zeros(where.shape, jnp.float32) for each in ("policy_logp", "exact_kl", "noise")}
        tokens = Tokens(where=where, **dict(zip(FIELDS, fields, strict=True)), **rest)
        return OBJECTIVES[name].loss(weights, tokens)

    return jax.jit(jax.value_and_grad(loss, argnums=2))


every_objective = pytest.mark.parametrize("name", OBJECTIVES)


@every_objective
def test_parts_of_micro_batches_add_up_to_the_whole(name):
    objective = OBJECTIVES[name]
    where, arrays = random_batch()
    weights = objective.aggregate(jnp.asarray(where))
    value, gradient = slope_of(name)(weights, where, *arrays)
    for cut in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[7, 0], [2, 4], [1, 3], [5, 6]]):
        parts = [slope_of(name)(*(np.asarray(x)[rows] for x in (weights, where, *arrays))) for rows in cut]
        np.testing.assert_allclose(sum(part for part, _ in parts), value, rtol=1e-5)
        for rows, (_, part) in zip(cut, parts, strict=True):
            np.testing.assert_array_equal(part, np.asarray(gradient)[rows])


def test_peer_defect_accumulation_changes_the_loss():
    """A denominator of each micro-batch's own, averaged: another loss as soon as lengths differ."""
    objective = OBJECTIVES["clipped, k3 and entropy"]
    where, arrays = random_batch()
    loss = lambda rows: slope_of("clipped, k3 and entropy")(  # noqa: E731
        objective.aggregate(jnp.asarray(where[rows])), where[rows], *(x[rows] for x in arrays)
    )[0]
    whole, local = loss(slice(0, 8)), [loss(slice(0, 4)), loss(slice(4, 8))]
    assert not np.isclose(np.mean(local), whole, rtol=1e-2)


@every_objective
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_what_padding_holds_leaks_into_neither_loss_nor_gradient(name, junk):
    objective = OBJECTIVES[name]
    where, arrays = random_batch()
    weights = objective.aggregate(jnp.asarray(where))
    expected = slope_of(name)(weights, where, *(np.where(where, x, np.float32(0)) for x in arrays))
    actual = slope_of(name)(weights, where, *(np.where(where, x, np.float32(junk)) for x in arrays))
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert np.isfinite(expected[0])


def test_the_loss_is_minus_the_weighted_surrogate_less_penalties():
    where, arrays = random_batch()
    objective = OBJECTIVES["clipped, k3 and entropy"]
    actual, _ = slope_of("clipped, k3 and entropy")(objective.aggregate(jnp.asarray(where)), where, *arrays)
    tokens = bare_tokens(jnp.asarray(where), **dict(zip(FIELDS, map(jnp.asarray, arrays), strict=True)))
    terms = clipped(low=0.2, high=0.28, dual=3.0)(tokens) - 0.1 * k3(tokens) + 0.01 * tokens.entropy
    np.testing.assert_allclose(actual, -np.mean(np.asarray(terms)[where]), rtol=1e-5)


def test_imitation_is_the_usual_cross_entropy():
    where, arrays = random_batch()
    actual, _ = slope_of("imitation")(token_mean()(jnp.asarray(where)), where, *arrays)
    np.testing.assert_allclose(actual, -np.mean(arrays[0][where]), rtol=1e-6)


def test_losses_exports_what_it_lists():
    assert losses.__all__ == sorted(losses.__all__)
    assert all(hasattr(losses, name) for name in losses.__all__)
