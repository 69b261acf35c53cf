"""Reward transforms: laws that all keep, golden numbers and identities of the papers, traps of the released code."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reward_rollouts import by_answer, padded, sample, with_junk
from tiny import jit as compiled

from jaxrl_llm.advantages._base import bare_rollout
from jaxrl_llm.advantages._base import chain as credit_chain
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.baselines.leave_one_out import leave_one_out
from jaxrl_llm.advantages.scales.group_std import group_std
from jaxrl_llm.rewards._base import chain, identity
from jaxrl_llm.rewards.controllers.dynamic_hypervolume import dynamic_hypervolume
from jaxrl_llm.rewards.controllers.gradient_influence import gradient_influence
from jaxrl_llm.rewards.controllers.scale_schedule import scale_schedule, smooth_bounds
from jaxrl_llm.rewards.transforms.box import box_reward, harmonic_box, hit, overlap
from jaxrl_llm.rewards.transforms.conciseness import conciseness
from jaxrl_llm.rewards.transforms.cosine_length import cosine_length
from jaxrl_llm.rewards.transforms.diagnostics import (
    format_only,
    inverted,
    mean_log_probability,
    random_reward,
)
from jaxrl_llm.rewards.transforms.formats import (
    additive_format,
    consistent_result,
    gated_format,
    simplerl_independent,
)
from jaxrl_llm.rewards.transforms.gap_reward import antisymmetric, gap_reward
from jaxrl_llm.rewards.transforms.length_target import length_target, length_target_schedule
from jaxrl_llm.rewards.transforms.log_sigmoid_centred import (
    log_sigmoid_centred,
    log_sigmoid_conjunction,
)
from jaxrl_llm.rewards.transforms.majority_vote import majority_vote
from jaxrl_llm.rewards.transforms.overlong_penalty import overlong_penalty
from jaxrl_llm.rewards.transforms.partial_credit import partial_credit
from jaxrl_llm.rewards.transforms.reference_rewards import gaussian_reference, quantile_reference
from jaxrl_llm.rewards.transforms.shortest_correct import shortest_correct_bonus, shortest_correct_bonus_released
from jaxrl_llm.rewards.transforms.verifier_shaped import verifier_shaped
from jaxrl_llm.rewards.transforms.weighted_components import weighted_components

TRANSFORMS = {
    "identity": identity(),
    "weighted_components": weighted_components((0.5, -2, 0.25)),
    "log_sigmoid_centred": log_sigmoid_centred(),
    "log_sigmoid_centred(0.5)": log_sigmoid_centred(0.5),
    "log_sigmoid_conjunction": log_sigmoid_conjunction((0.0, 1, -1)),
    "verifier_shaped": verifier_shaped(model=2, verifier=0),
    "gap_reward": gap_reward(),
    "overlong_penalty": overlong_penalty(140, 40),
    "overlong_penalty(hard)": overlong_penalty(140, 0, factor=2),
    "shortest_correct_bonus": shortest_correct_bonus(),
    "shortest_correct_bonus(among)": shortest_correct_bonus(0.3, 0, among=0),
    "shortest_correct_bonus_released": shortest_correct_bonus_released(),
    "cosine_length": cosine_length(140),
    "length_target": length_target(130, scale=0.5),
    "length_target_schedule": length_target_schedule(100, 200, 5),
    "conciseness": conciseness(),
    "conciseness, weighted": chain(conciseness(), weighted_components((1, 0.5, 0, 0.25))),
    "additive_format": additive_format(0.3),
    "gated_format": gated_format(),
    "simplerl_independent": simplerl_independent(),
    "consistent_result": consistent_result(format=1, result=0, consistency=2),
    "partial_credit": partial_credit(solved=0, score=2, marks=1),
    "random_reward": random_reward(format=1),
    "inverted": inverted(format=1),
    "format_only": format_only(),
    "majority_vote": majority_vote(format=None),
    "mean_log_probability": mean_log_probability(),
    "dynamic_hypervolume": dynamic_hypervolume((True, False), capacity=2),
    "gradient_influence": gradient_influence((1, 2, 1)),
    "scale_schedule": scale_schedule(smooth_bounds(5), format=1, correctness=0),
}
ORDERED = {"shortest_correct_bonus_released"}  # the order of the answers matters

everyone = pytest.mark.parametrize("name", TRANSFORMS)


@functools.cache
def compiled_update(name):
    return compiled(TRANSFORMS[name].update)


def results(name, change=lambda rollout: rollout, jit=True, dtype=np.float32, optional=()):
    """Rewards, components and states of three steps, each step's rollout changed by `change`."""
    transform = TRANSFORMS[name]
    update = compiled_update(name) if jit else transform.update
    state, seen = transform.init(), []
    for seed in range(3):
        rollout, state = update(change(sample(seed, dtype, optional)), state)
        seen.append((rollout.reward, rollout.components, state))
    return seen


@functools.cache
def plain(name, **options):
    return results(name, **options)


def rewards(seen):
    return np.stack([np.asarray(reward) for reward, _, _ in seen])


def valid():
    return np.stack([np.asarray(sample(seed).valid) for seed in range(3)])


def same_states(one, other):
    for (_, _, a), (_, _, b) in zip(one, other, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


@everyone
def test_invalid_answers_get_zero_and_change_nothing(name):
    base = plain(name)
    assert (rewards(base)[~valid()] == 0).all()
    for junk in (np.nan, np.inf, -np.inf, 1e30):
        other = results(name, lambda rollout, junk=junk: with_junk(rollout, junk))
        np.testing.assert_array_equal(rewards(base), rewards(other))
        same_states(base, other)


@everyone
def test_padding_with_invalid_answers_changes_nothing(name):
    base, more = plain(name), results(name, padded)
    np.testing.assert_allclose(rewards(more)[:, :-1, 1:-1], rewards(base), rtol=1e-6)
    assert (rewards(more)[:, -1] == 0).all()
    same_states(base, more)


@everyone
def test_answers_and_prompts_may_be_permuted(name):
    base, order = plain(name), np.array([3, 0, 4, 1, 2])
    if name not in ORDERED:
        turned = results(name, lambda rollout: by_answer(rollout, lambda _, array: array[:, order]))
        np.testing.assert_allclose(rewards(turned), rewards(base)[:, :, order], rtol=1e-6)
        same_states(base, turned)
    rows = np.array([2, 0, 3, 1])
    turned = results(name, lambda r: by_answer(r, lambda _, array: array[rows], lambda _, array: array[rows]))
    np.testing.assert_allclose(rewards(turned), rewards(base)[:, rows], rtol=1e-6)
    same_states(base, turned)


@everyone
def test_compiled_or_not_and_batched_over_runs(name):
    base = plain(name)
    np.testing.assert_allclose(rewards(plain(name, jit=False)), rewards(base), rtol=1e-6, atol=1e-7)
    transform = TRANSFORMS[name]
    pair = jax.tree.map(lambda *leaves: jnp.stack(leaves), sample(0), sample(1))
    states = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), transform.init())
    together, _ = compiled(jax.vmap(transform.update))(pair, states)
    for seed in range(2):
        alone, _ = compiled_update(name)(sample(seed), transform.init())
        np.testing.assert_allclose(together.reward[seed], alone.reward, rtol=1e-6, atol=1e-7)


@everyone
def test_dtypes_are_kept_and_states_too(name):
    transform = TRANSFORMS[name]
    start = jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), transform.init())
    for dtype in (np.float32, jnp.bfloat16):
        for reward, components, state in plain(name, dtype=dtype):
            assert reward.dtype == components.dtype == dtype
            assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), state) == start
    with jax.enable_x64(True):
        assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), transform.init()) == start
        for reward, components, state in plain(name, dtype=np.float64):
            assert reward.dtype == components.dtype == np.float64
            assert jax.tree.map(lambda leaf: (leaf.dtype, leaf.shape), state) == start


@everyone
def test_needs_and_components_are_the_truth(name):
    transform = TRANSFORMS[name]
    rollout = sample()
    extras = {key: rollout.extras[key] for key in transform.needs}
    bare = dataclasses.replace(rollout, extras=extras, components=rollout.components[..., : transform.components])
    if not name.startswith("dynamic"):
        transform.update(bare, transform.init())
    for key in transform.needs:
        less = dataclasses.replace(bare, extras={k: v for k, v in extras.items() if k != key})
        with pytest.raises(KeyError, match=key):
            transform.update(less, transform.init())
    if transform.components:
        less = dataclasses.replace(bare, components=bare.components[..., :-1])
        with pytest.raises(ValueError, match="components"):
            transform.update(less, transform.init())


def test_every_valid_reward_is_finite_and_no_transform_is_the_identity():
    base = rewards(plain("identity"))
    for name in TRANSFORMS:
        found = rewards(plain(name))
        assert np.isfinite(found).all()
        assert (found != base).any() == (name not in ("identity", "conciseness"))


def test_gradients_are_finite_at_invalid_answers():
    rollout = with_junk(sample(), np.nan)
    for name in ("log_sigmoid_centred", "verifier_shaped", "gap_reward", "weighted_components", "cosine_length"):
        transform = TRANSFORMS[name]

        def loss(reward, components, transform=transform):
            changed = dataclasses.replace(rollout, reward=reward, components=components)
            return jnp.sum(transform.update(changed, transform.init())[0].reward)

        for gradient in compiled(jax.grad(loss, (0, 1)))(rollout.reward, rollout.components):
            assert np.isfinite(np.asarray(gradient)).all()
            assert (np.asarray(gradient)[~np.asarray(rollout.valid)] == 0).all()


def test_chain_names_what_it_needs():
    together = chain(gap_reward(), conciseness(), weighted_components((1, 1, 1)), random_reward(format=0), gap_reward())
    assert together.needs == ("reference_reward", "noise")
    assert (together.components, together.added) == (2, 1)
    assert (chain().components, chain().needs) == (0, ())
    rollout = sample()
    first, _ = identity().update(rollout, ())
    np.testing.assert_array_equal(chain().update(first, ())[0].reward, first.reward)
    one, _ = chain(overlong_penalty(140, 40), gap_reward()).update(rollout, ((), ()))
    other, _ = gap_reward().update(overlong_penalty(140, 40).update(rollout, ())[0], ())
    np.testing.assert_array_equal(one.reward, other.reward)


# Golden numbers and identities.


def graded(components=None, reward=None, length=None, valid=None, **extras):
    """A rollout of one or more groups from plain lists."""
    components = None if components is None else jnp.asarray(components, jnp.float32)
    reward = components[..., 0] if reward is None else jnp.asarray(reward, jnp.float32)
    rollout = bare_rollout(reward, None if valid is None else jnp.asarray(valid), **extras)
    if components is not None:
        rollout = dataclasses.replace(rollout, components=components)
    if length is not None:
        length = jnp.asarray(length)
        acted = jnp.arange(int(length.max()) + 1)[None, None] < length[..., None]
        zeros = jnp.zeros(acted.shape)
        rollout = dataclasses.replace(
            rollout, acted=acted, answer=zeros.astype(int), behaviour_logp=zeros, policy_logp=zeros
        )
    return rollout


def shaped(transform, **fields):
    rollout = fields.pop("rollout", None) or graded(**fields)
    return np.asarray(compiled(transform.update)(rollout, transform.init())[0].reward)


def credit(transform, reward, **fields):
    rollout = graded(reward=reward, **fields)
    return np.asarray(compiled(transform.update)(rollout.reward, transform.init(), rollout)[0])


GRPO = credit_chain(group_mean(), group_std(ddof=1, eps=0.0))


def test_log_sigmoid_golden():
    # By hand from log sigmoid: components 10 and -10 tie with 0 and 0 in a sum, and lose by 8.6 here.
    tied = [[[10, -10], [0, 0]]]
    u = shaped(log_sigmoid_conjunction((0, 0)), components=tied)
    np.testing.assert_allclose(u, [[-10.00009, -1.38629]], atol=5e-6)
    np.testing.assert_array_equal(shaped(weighted_components((1, 1)), components=tied), [[0, 0]])
    assert u[0, 1] - u[0, 0] == pytest.approx(8.61380, abs=1e-5)
    by_prompt = jnp.asarray([[0.0, 0.0]])
    again = shaped(log_sigmoid_conjunction(), components=tied, reference_reward=by_prompt)
    np.testing.assert_array_equal(again, u)


def test_log_sigmoid_identities():
    reward = np.linspace(-4, 4, 9, dtype=np.float32)[None]
    np.testing.assert_allclose(shaped(log_sigmoid_centred(1.5), reward=[[1.5]]), -np.log(2), rtol=1e-6)
    far = shaped(log_sigmoid_centred(40.0), reward=reward)
    np.testing.assert_allclose(far, reward - 40, rtol=1e-6)
    np.testing.assert_allclose(credit(group_mean(), far), credit(group_mean(), reward), atol=1e-5)
    u = shaped(log_sigmoid_centred(0.0), reward=reward)
    assert (u <= 0).all()
    assert (np.diff(u[0]) > 0).all()
    assert (np.diff(u[0], 2) < 0).all()
    extreme = shaped(log_sigmoid_centred(0), reward=[[-1e4, 1e4]])
    np.testing.assert_array_equal(extreme, [[-1e4, 0]])  # log(sigmoid) would be -inf
    slope = jax.vmap(jax.grad(lambda r: jax.nn.log_sigmoid(r - 0.7)))(jnp.asarray(reward[0]))
    through = jax.grad(lambda r: jnp.sum(log_sigmoid_centred(0.7).update(bare_rollout(r), ())[0].reward))(
        jnp.asarray(reward)
    )
    np.testing.assert_allclose(slope, jax.nn.sigmoid(0.7 - jnp.asarray(reward[0])), rtol=1e-5)
    np.testing.assert_allclose(through[0], slope, rtol=1e-6)


def test_log_sigmoid_is_not_undone_by_a_std_but_an_affine_map_is():
    reward = np.array([[0.0, 1, 4, 9]], np.float32)
    base = credit(GRPO, reward)
    np.testing.assert_allclose(credit(GRPO, 3 * reward - 5), base, rtol=1e-5)
    assert np.abs(credit(GRPO, shaped(log_sigmoid_centred(4.0), reward=reward)) - base).max() > 0.1


def test_reference_rewards():
    rng = np.random.default_rng(0)
    reward, where = rng.normal(size=(4, 9)).astype(np.float32), rng.uniform(size=(4, 9)) < 0.7
    where[2], where[3] = False, np.arange(9) == 4
    holes = jnp.asarray(np.where(where, reward, np.nan))
    for q in (0.0, 0.5, 0.85, 1.0):
        found = compiled(functools.partial(quantile_reference, quantile=q))(holes, jnp.asarray(where))
        for row in (0, 1, 3):
            np.testing.assert_allclose(found[row], np.quantile(reward[row][where[row]], q), rtol=1e-5)
        assert found[2] == 0
    found = gaussian_reference(holes, jnp.asarray(where), ddof=1)
    expected = [reward[i][where[i]].mean() + 1.0364 * reward[i][where[i]].std(ddof=1) for i in range(2)]
    np.testing.assert_allclose(found, [*expected, 0, reward[3, 4]], rtol=1e-5)
    normal = 2 + 3 * jax.scipy.special.ndtri((jnp.arange(2001.0) + 0.5) / 2001)[None]  # quantiles of N(2, 9)
    everything = jnp.ones(normal.shape, bool)
    both = gaussian_reference(normal, everything, ddof=0), quantile_reference(normal, everything)
    # Between two of the 2001 values at the 0.85 quantile lie 3 / (2001 · φ(1.036)) = 0.0064.
    np.testing.assert_allclose(*both, atol=0.0065)
    assert quantile_reference(normal.astype(jnp.bfloat16), everything).dtype == jnp.bfloat16


def test_verifier_shaped_golden():
    # Qwen2.5-Math, arXiv 2409.12122: alpha 0.5, logits -2, 0, 3.
    logits = [-2.0, 0, 3]
    right, wrong = ([[[m, v] for m in logits]] for v in (1, 0))
    shape = verifier_shaped(model=0, verifier=1)
    np.testing.assert_allclose(shaped(shape, components=right), [[0.26894, 0.5, 0.81757]], atol=5e-6)
    np.testing.assert_allclose(shaped(shape, components=wrong), [[-0.73106, -0.5, -0.18243]], atol=5e-6)
    mixed = [[[3, 0], [-2, 1], [0, 1], [0, 0]]]
    alone = shaped(verifier_shaped(0, model=0, verifier=1), components=mixed)
    np.testing.assert_array_equal(alone, [[-0.5, 0.5, 0.5, -0.5]])
    assert shaped(shape, components=[[[-9, 1], [9, 0]]])[0, 0] > shaped(shape, components=[[[-9, 1], [9, 0]]])[0, 1]


def test_verifier_shaped_groups_of_one_class_keep_a_signal():
    wrong = [[[-2.0, 0], [0, 0], [3, 0]]]
    tied = [[[1.0, 1], [1, 0], [1, 0]]]
    shape = verifier_shaped(model=0, verifier=1)
    assert np.abs(credit(GRPO, shaped(shape, components=wrong))).max() > 1
    np.testing.assert_array_equal(credit(GRPO, [[0, 0, 0]]), [[0, 0, 0]])
    verifier = credit(GRPO, [[1.0, 0, 0]])
    np.testing.assert_allclose(credit(GRPO, shaped(shape, components=tied)), verifier, rtol=1e-5)
    # A std normalisation makes a unit signal of any spread, here but for the bend of the sigmoid.
    narrow = [[[0.0, 0], [0.01, 0], [0.02, 0]]]
    np.testing.assert_allclose(np.abs(credit(GRPO, shaped(shape, components=narrow))).max(), 1, rtol=2e-5)


def test_gap_reward_is_a_baseline_of_its_prompt():
    reward = [[1.0, 2, 4], [0, 0, 1]]
    reference = jnp.asarray([3.0, -7])
    gap = shaped(gap_reward(), reward=reward, reference_reward=reference)
    np.testing.assert_array_equal(gap, [[-2, -1, 1], [7, 7, 8]])
    for comparison in (group_mean(), leave_one_out(), GRPO):
        np.testing.assert_allclose(credit(comparison, gap), credit(comparison, reward), rtol=1e-6, atol=1e-6)


def test_gap_antisymmetry():
    a, b = jnp.asarray([1.0, 2.0]), jnp.asarray([0.5, 5.0])
    crooked = antisymmetric(lambda x, y: x**2 * y + x - 3)
    np.testing.assert_array_equal(crooked(a, b), -crooked(b, a))
    np.testing.assert_array_equal(crooked(a, a), [0, 0])
    np.testing.assert_array_equal(antisymmetric(jnp.subtract)(a, b), a - b)


@pytest.mark.parametrize(
    ("length", "penalty"), [(0, 0), (100, 0), (101, -0.05), (110, -0.5), (119, -0.95), (120, -1), (150, -1)]
)
def test_overlong_penalty_golden(length, penalty):
    # DAPO eq. 13 with L_max 120, L_cache 20; verl 1dda039 up to the limit.
    soft = shaped(overlong_penalty(120, 20), reward=[[1.0]], length=[[length]])
    np.testing.assert_allclose(soft, 1 + penalty, rtol=1e-6)
    hard = shaped(overlong_penalty(120, 0, factor=3), reward=[[1.0]], length=[[length]])
    assert hard == (-2 if length > 120 else 1)


def test_overlong_penalty_refuses_a_buffer_longer_than_the_limit():
    for buffer in (-1, 121):
        with pytest.raises(ValueError, match="buffer"):
            overlong_penalty(120, buffer)


def test_shortest_correct_bonus_golden():
    # Observe-R1, released code f09c1e4: d = mean trunc(r), A = 4 sigma d (1-d) (r - mean) / (std + 1e-9), sigma 1.8.
    reward, length = np.array([[1.5, 1.5, 0.5, 0]], np.float32), [[300, 200, 150, 90]]
    for bonus in (shortest_correct_bonus(), shortest_correct_bonus_released()):
        r = shaped(bonus, reward=reward, length=length)
        np.testing.assert_allclose(r, [[1.5, 1.7, 0.5, 0]], rtol=1e-6)
        a = 4 * 1.8 * 0.25 * (r - r.mean()) / (r.std(ddof=1) + 1e-9)
        np.testing.assert_allclose(a, [[1.27803753, 1.72257232, -0.94463643, -2.05597341]], rtol=1e-6)


def test_shortest_correct_bonus_cases():
    bonus = shortest_correct_bonus()
    tie = shaped(bonus, reward=[[1.0, 1, 1, 0]], length=[[150, 200, 150, 120]])
    np.testing.assert_allclose(tie, [[1.1, 1, 1.1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(shaped(bonus, reward=[[1.0, 1]], length=[[100, 200]]), [[1, 1]])  # not longer
    np.testing.assert_allclose(shaped(bonus, reward=[[1.0, 1]], length=[[101, 200]]), [[1.2, 1]], rtol=1e-6)
    by_component = shaped(shortest_correct_bonus(among=1), components=[[[0.2, 1], [0.9, 0]]], length=[[150, 120]])
    np.testing.assert_allclose(by_component, [[0.4, 0.9]], rtol=1e-6)
    alone = shaped(bonus, reward=[[1.0, 1]], length=[[120, 150]], valid=[[False, True]])
    np.testing.assert_allclose(alone, [[0, 1.2]], rtol=1e-6)


def test_trap_10_released_bonus_goes_to_the_first_answer_of_an_all_wrong_group():
    reward, length = [[0.5, 0.5, 0.5, 0.5]], [[50, 40, 30, 20]]
    released = shaped(shortest_correct_bonus_released(), reward=reward, length=length)
    np.testing.assert_allclose(released, [[0.7, 0.5, 0.5, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(credit(GRPO, released), [[1.5, -0.5, -0.5, -0.5]], rtol=1e-5)
    np.testing.assert_array_equal(shaped(shortest_correct_bonus(), reward=reward, length=length), reward)
    hole = shaped(shortest_correct_bonus_released(), reward=reward, length=length, valid=[[False, True, True, True]])
    np.testing.assert_allclose(hole, [[0, 0.7, 0.5, 0.5]], rtol=1e-6)
    first = shaped(shortest_correct_bonus_released(), reward=[[1.0, 1, 0]], length=[[150, 150, 10]])
    np.testing.assert_allclose(first, [[1.2, 1, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("score", "length", "expected"),
    [(1.0, 0, 0), (1.0, 50, 1), (1.1, 50, 1.1), (1.0, 25, 1 - np.sqrt(0.5)), (0.2, 50, 0.2), (0.19, 50, -0.5),
     (0.0, 0, 0), (0.0, 75, -(1 + np.sqrt(0.5)) / 2), (1.0, 100, -2), (0.0, 130, -2)],
)  # fmt: skip
def test_cosine_length_golden(score, length, expected):
    # Light-IF, released code 01e9003 with a limit of 100 tokens.
    found = shaped(cosine_length(100), reward=[[score]], length=[[length]])
    np.testing.assert_allclose(found, [[expected]], rtol=1e-6, atol=1e-7)


def test_length_target():
    length = [[0, 128, 256, 512, 700]]
    found = shaped(length_target(scale=2), reward=[[1.0] * 5], length=length)
    np.testing.assert_allclose(found, [[1, 1.5, 2, 3, 3]], rtol=1e-6)
    schedule = length_target_schedule()
    state = schedule.init()
    for step, target in enumerate([384, 384 + 256 / 105, 384 + 512 / 105]):
        rollout, state = compiled(schedule.update)(graded(reward=[[0.0] * 5], length=length), state)
        np.testing.assert_allclose(rollout.reward, np.minimum(np.array(length) / target, 1), rtol=1e-6)
        assert state == step + 1


def test_conciseness_against_the_batch_mean():
    found, _ = compiled(conciseness().update)(graded(reward=[[1.0, 2], [3, 4]], length=[[10, 20], [30, 60]]), ())
    np.testing.assert_array_equal(found.components[..., -1], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(found.components[..., 0], [[1, 2], [3, 4]])
    np.testing.assert_array_equal(found.reward, [[1, 2], [3, 4]])
    equal, _ = compiled(conciseness().update)(graded(reward=[[0.0] * 3], length=[[7] * 3]), ())
    np.testing.assert_array_equal(equal.components[..., -1], [[0, 0, 0]])
    valid = [[True, True], [True, False]]  # the mean is 19.3; 14.5 with the invalid answer as one of length 0
    found, _ = compiled(conciseness().update)(
        graded(reward=[[0.0] * 2] * 2, length=[[10, 18], [30, 900]], valid=valid), ()
    )
    np.testing.assert_array_equal(found.components[..., -1], [[1, 1], [0, 0]])


TABLE = [[[1, 1], [1, 0], [0, 1], [0, 0]]]  # accuracy, format


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (additive_format(0.5), [1.5, 1, 0.5, 0]),
        (gated_format(), [1, 0, 0, 0]),
        (simplerl_independent(), [1, 0.5, -0.5, -1]),
        (inverted(format=1), [0, 0, 1, 0]),
        (inverted(format=None), [0, 0, 1, 1]),
        (format_only(), [1, 0, 1, 0]),
        (weighted_components((0.5, 0.5)), [1, 0.5, 0.5, 0]),
    ],
)
def test_format_tables(transform, expected):
    np.testing.assert_array_equal(shaped(transform, components=TABLE), [expected])


def test_simplerl_independent_is_an_additive_format_under_a_std():
    one, other = shaped(simplerl_independent(), components=TABLE), shaped(additive_format(1 / 3), components=TABLE)
    np.testing.assert_allclose(credit(GRPO, one), credit(GRPO, other), rtol=1e-5)


def test_format_signal_of_an_all_wrong_group():
    # A std normalisation makes the same unit signal of any weight; without it the signal is linear in the weight.
    wrong = [[[0, 1], [0, 0], [0, 0], [0, 1], [0, 0]]]
    small, large = (shaped(additive_format(w), components=wrong) for w in (0.01, 5.0))
    np.testing.assert_allclose(credit(GRPO, small), credit(GRPO, large), rtol=1e-5)
    assert np.abs(credit(GRPO, small)).max() > 1
    np.testing.assert_allclose(500 * credit(group_mean(), small), credit(group_mean(), large), rtol=1e-5)
    gated = shaped(gated_format(), components=wrong)
    np.testing.assert_array_equal(credit(GRPO, gated), np.zeros((1, 5)))


def test_format_variances_of_independent_bits():
    p, q, a = 0.3, 0.6, 0.5
    weight = np.array([p * q, p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)])

    def variance(transform):
        r = shaped(transform, components=TABLE)[0]
        return weight @ r**2 - (weight @ r) ** 2

    assert variance(additive_format(a)) == pytest.approx(q * (1 - q) * a**2 + p * (1 - p), rel=1e-6)
    assert variance(gated_format()) == pytest.approx(p * q * (1 - p * q), rel=1e-6)


def test_consistent_result_golden_and_trap_6_a_verifier_that_raises_pays_nothing():
    # R1-Reward, released code 3693413.
    grades = [[[1, 1, 1], [1, 1, -1], [0, 1, 0], [1, 0, 1], [0, 0, -1]]]
    np.testing.assert_array_equal(shaped(consistent_result(), components=grades), [[2, 1, 1, 0.5, 0]])
    failed = [[[1, np.nan, 1], [1, 1, 1]]]
    found = shaped(consistent_result(), components=failed, reward=[[0.0, 0]], valid=[[False, True]])
    np.testing.assert_array_equal(found, [[0, 2]])  # released: 0.5 + 1 * 1.5 for the first


def test_partial_credit_ladder():
    grades = [[[0, np.nan, 0], [0, -5, 7], [1, 0.8, 7], [1, -0.3, 2]]]
    found = shaped(partial_credit(), components=grades)
    np.testing.assert_allclose(found, [[-10, -9.3, 0.8, -0.3]], rtol=1e-6)


def test_random_reward():
    noise = jnp.asarray([[0.0, 0.49, 0.5, 0.9]])
    table = dict(components=[[[0, 1], [1, 0], [1, 1], [0, 1]]], noise=noise)
    np.testing.assert_array_equal(shaped(random_reward(format=None), **table), [[1, 1, 0, 0]])
    np.testing.assert_array_equal(shaped(random_reward(0.95, format=1), **table), [[1, 0, 1, 1]])
    np.testing.assert_array_equal(shaped(random_reward(0.0, format=None), **table), [[0, 0, 0, 0]])


def exact_gradient(transform, components, probs):
    """Σ_y π(y) r(y) ∇ log π(y) of a softmax over outcomes with these components, the reward not differentiated."""
    reward = shaped(transform, components=[components])[0]
    return probs * (reward - probs @ reward)


def test_inverted_gradient_is_minus_that_of_the_accuracy_where_the_format_is_constant():
    probs = np.array([0.1, 0.2, 0.3, 0.4])
    constant = [[1, 1], [0, 1], [1, 1], [0, 1]]
    accuracy = exact_gradient(weighted_components((1,)), constant, probs)
    assert np.abs(accuracy).max() > 0.01
    np.testing.assert_allclose(exact_gradient(inverted(format=1), constant, probs), -accuracy, rtol=1e-6)
    varying = [[1, 1], [0, 0], [1, 1], [0, 1]]
    assert np.abs(exact_gradient(inverted(format=1), varying, probs) + accuracy).max() > 0.01


@pytest.mark.parametrize("clip", [None, 0.2])
def test_random_reward_gradient_is_zero_without_clipping_and_not_with_it(clip):
    """E over answers and coin of r · ∇ surrogate, old policy b, new policy π: exact over all outcomes.

    Without clipping r ∇ρ sums to ∇ Σ π E[r] = 0. With it the terms with ρ beyond 1 + clip are gone and a sum is left.
    """
    b, logits = np.array([0.5, 0.3, 0.2], np.float32), jnp.log(jnp.asarray([0.3, 0.3, 0.4]))
    coins = [[(1.0 if (bits >> y) & 1 else 0.0) for y in range(3)] for bits in range(8)]
    noise = jnp.asarray([[0.25 if c else 0.75 for c in coin] for coin in coins])
    reward = shaped(random_reward(format=None), reward=np.zeros((8, 3)), noise=noise)
    np.testing.assert_array_equal(reward, coins)

    def objective(logits):
        ratio = jax.nn.softmax(logits) / b
        kept = ratio if clip is None else jnp.minimum(ratio, jnp.clip(ratio, 1 - clip, 1 + clip))
        return jnp.mean(jnp.sum(b[None] * reward * kept[None], axis=-1))

    gradient = np.abs(compiled(jax.grad(objective))(logits)).max()
    assert gradient < 1e-7 if clip is None else gradient > 0.05


def test_majority_vote():
    keys = jnp.asarray([[4, 4, 7, 4], [1, 2, 1, 2], [-1, -1, -1, 3], [-1, -2, -1, -1], [5, 6, 7, 8]])
    found = shaped(majority_vote(format=None), reward=np.zeros((5, 4)), answer_key=keys)
    expected = [[1, 1, 0, 1], [0.5] * 4, [0, 0, 0, 1], [0] * 4, [0.25] * 4]
    np.testing.assert_array_equal(found, expected)
    valid = [[True, True, True, True], [False, True, True, True], *[[False] * 4] * 3]
    found = shaped(majority_vote(format=None), reward=np.zeros((5, 4)), answer_key=keys, valid=valid)
    np.testing.assert_array_equal(found, [[1, 1, 0, 1], [0, 1, 0, 1], *[[0] * 4] * 3])
    gated = shaped(majority_vote(format=1), components=TABLE, answer_key=jnp.asarray([[3, 3, 3, 1]]))
    np.testing.assert_array_equal(gated, [[1, 0, 1, 0]])


@pytest.mark.parametrize(("probability", "agrees"), [((0.5, 0.3, 0.2), True), ((0.3, 0.5, 0.2), False)])
def test_majority_vote_is_the_true_reward_in_a_large_group_iff_the_right_answer_is_the_mode(probability, agrees):
    key = np.random.default_rng(0).choice(3, p=probability, size=(1, 600))  # 0 is right
    vote = shaped(majority_vote(format=None), reward=np.zeros((1, 600)), answer_key=jnp.asarray(key))
    assert ((vote == (key == 0)).all()) == agrees
    assert (vote == (key == np.argmax(probability))).all()


def test_mean_log_probability():
    rollout = graded(components=[[[0.0, 1], [0, 0], [0, 1]]], length=[[2, 4, 0]])
    logp = jnp.where(rollout.acted, jnp.asarray([-1.0, -3, -2, -6, -9])[None, None], 0)
    rollout = dataclasses.replace(rollout, policy_logp=logp)
    np.testing.assert_allclose(shaped(mean_log_probability(), rollout=rollout), [[-2, -3, 0]])
    np.testing.assert_allclose(shaped(mean_log_probability(format=1), rollout=rollout), [[-2, 0, 0]])


def test_weighted_components():
    found = shaped(weighted_components((0.25, 0, -1)), components=[[[4, np.nan, 1, 9], [0, 1, 0, 9]]])
    np.testing.assert_array_equal(found, [[0, 0]])
    assert weighted_components((0.25, 0)).components == 2
    with pytest.raises(ValueError, match="at least one"):
        weighted_components(())


def test_box_golden():
    # GUI-G1: x = (.99, 1, .99, .96), Box = 4 / sum 1/x.
    prediction, target = jnp.asarray([10.0, 20, 110, 220]), jnp.asarray([20.0, 20, 100, 200])
    size = jnp.asarray([1000.0, 500.0])
    assert float(compiled(harmonic_box)(prediction, target, size)) == pytest.approx(0.984768, abs=5e-7)
    inside = 81 * 181 / (101 * 201)
    assert float(compiled(overlap)(prediction, target)) == pytest.approx(inside, rel=1e-6)
    assert bool(compiled(hit)(prediction, target))
    total = compiled(box_reward)
    assert float(total(prediction, target, size)) == pytest.approx(1 + 0.25 * inside + 0.125 * 0.984768, rel=1e-6)
    assert float(total(target, target, size)) == pytest.approx(1.375)


def test_box_edges():
    size = jnp.asarray([[100.0, 100.0]] * 4)
    target = jnp.asarray([[0.0, 0, 10, 10]] * 4)
    prediction = jnp.asarray([[100.0, 0, 100, 10], [20, 20, 10, 10], [10, 10, 10, 10], [11, 11, 12, 12]])
    shares, boxes = compiled(overlap)(prediction, target), compiled(harmonic_box)(prediction, target, size)
    np.testing.assert_array_equal(boxes[0], 0)  # x = 0 at the first coordinate
    assert (np.asarray(shares)[[0, 1, 3]] == 0).all()
    assert shares[2] == pytest.approx(1 / 121)  # a pixel that both hold
    np.testing.assert_array_equal(compiled(hit)(prediction, target), [False, False, True, False])
    empty = jnp.asarray([[5.0, 5, 1, 1]])
    assert compiled(overlap)(empty, empty)[0] == 0
    gradient = compiled(jax.grad(lambda x: jnp.sum(harmonic_box(x, target, size))))(prediction)
    assert np.isfinite(np.asarray(gradient)).all()
