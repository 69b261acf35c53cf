"""Controllers: golden numbers and identities of the papers, defects of the released code, states that carry over."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import jit as compiled

from jaxrl_llm.advantages._base import bare_rollout
from jaxrl_llm.advantages._base import chain as credit_chain
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.scales.group_std import group_std
from jaxrl_llm.rewards.controllers._front import contribution, hypervolume
from jaxrl_llm.rewards.controllers.dynamic_hypervolume import dynamic_hypervolume
from jaxrl_llm.rewards.controllers.gradient_influence import gradient_influence
from jaxrl_llm.rewards.controllers.scale_schedule import scale_schedule, smooth_bounds, tool_bounds, two_stage_bounds

REWARD = [[1.0, 0, 0.5], [0.25, 2, -1]]


def graded(components=None, **extras):
    """Two groups of three; the components, where given, are the same for every answer."""
    rollout = bare_rollout(jnp.asarray(REWARD), **extras)
    parts = jnp.broadcast_to(jnp.asarray(components or [0.0], jnp.float32), (2, 3, len(components or [0])))
    return dataclasses.replace(rollout, components=parts)


def area(points, reference=(0.0, 0.0)):
    points = jnp.asarray(points, jnp.float32)
    return float(compiled(hypervolume)(points, jnp.ones(len(points), bool), jnp.asarray(reference)))


# Hypervolume. Golden numbers by hand; the release is yining610/dynamic-reward-weighting 238fe65.


def released(points, reference):
    """The slicing of the release: it does not cut points at the reference. Written anew from its description."""
    if len(reference) == 1:
        return max(p[0] for p in points) - reference[0]
    volume, position = 0.0, reference[0]
    points = sorted(points)
    while points:
        edge = points[0][0]
        if edge > position:
            volume += (edge - position) * released([p[1:] for p in points], reference[1:])
            position = edge
        points = [p for p in points if p[0] > edge]
    return volume


def test_hypervolume_golden():
    front = [(0.5, 0.2), (0.2, 0.6)]
    assert area(front) == pytest.approx(0.18, rel=1e-6)
    assert area([*front, (0.4, 0.4)]) == pytest.approx(0.22, rel=1e-6)
    gain = contribution(*map(jnp.asarray, ((0.4, 0.4), front, (True, True), (0.0, 0.0))))
    assert float(gain) == pytest.approx(0.04, rel=1e-5)
    assert float(contribution(*map(jnp.asarray, ((0.5, 0.2), front, (True, True), (0.0, 0.0))))) == 0
    assert area([(0.5, 0.2)], (0.1, 0.1)) == pytest.approx(0.04, rel=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_hypervolume_by_counting_cells(k):
    rng = np.random.default_rng(k)
    for _ in range(4):
        points = rng.integers(-2, 6, (6, k)).astype(np.float32)
        where = rng.uniform(size=6) < 0.8
        reference = rng.integers(-1, 2, k).astype(np.float32)
        cells = itertools.product(*[np.arange(reference[i], 6) + 0.5 for i in range(k)])
        alive = points[where & (points > reference).all(-1)]
        expected = sum(bool((np.array(cell) < alive).all(-1).any()) for cell in cells)
        inputs = jnp.asarray(points), jnp.asarray(where), jnp.asarray(reference)
        assert float(compiled(hypervolume)(*inputs)) == expected
        if len(alive):
            assert released([tuple(p) for p in alive], tuple(reference)) == expected
        point = jnp.asarray(rng.integers(-2, 7, k).astype(np.float32))
        more = float(compiled(hypervolume)(jnp.vstack([inputs[0], point]), jnp.append(inputs[1], True), inputs[2]))
        assert float(compiled(contribution)(point, *inputs)) == more - expected


def test_hypervolume_knows_three_objectives():
    with pytest.raises(ValueError, match="up to 3"):
        hypervolume(jnp.zeros((2, 4)), jnp.ones(2, bool), jnp.zeros(4))


def test_trap_9_released_hypervolume_can_be_negative_and_ours_cannot():
    low_last, low_first = (0.5, -0.2), (-0.2, 0.5)
    assert released([low_last], (0.0, 0.0)) == pytest.approx(-0.1)
    assert released([low_first], (0.0, 0.0)) == 0
    assert area([low_last]) == area([low_first]) == 0
    assert area([(0.5, 0.2), low_last]) == pytest.approx(0.1, rel=1e-6)


# Hypervolume as a controller.

POINTS = [(0.0, 0.0), (0.5, 0.2), (0.2, 0.6), (0.4, 0.4), (0.3, 0.3), (0.5, -0.2)]
GAINS = [None, 0.1, 0.08, 0.04, 0.0, 0.0]


def factors(transform, points, components=None):
    """The factor on the rewards of each step, and the last state."""
    state, found = transform.init(), []
    update = compiled(transform.update)
    for point in points:
        extras = {} if point is None else {"objective_point": jnp.asarray(point, jnp.float32)}
        rollout, state = update(graded(components, **extras), state)
        ratio = np.asarray(rollout.reward)[np.asarray(REWARD) != 0] / np.asarray(REWARD)[np.asarray(REWARD) != 0]
        np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
        found.append(ratio[0])
    return found, state


def test_dynamic_hypervolume_golden():
    found, state = factors(dynamic_hypervolume((True, True), capacity=4), POINTS)
    np.testing.assert_allclose(found, [1 if g is None else 0.5 + 1.5 * np.tanh(g) for g in GAINS], rtol=1e-5)
    assert found[3] == pytest.approx(0.5599680, abs=1e-6)
    assert found[4] == found[5] == 0.5  # dominated; below the reference in one objective
    assert int(state.used.sum()) == 3
    assert int(state.seen) == 6
    assert max(factors(dynamic_hypervolume((True,)), [(0.0,), (50.0,)])[0]) <= 2


def test_dynamic_hypervolume_directions():
    turned = [(a, -b) for a, b in POINTS]
    found, _ = factors(dynamic_hypervolume((True, False), capacity=4), turned)
    np.testing.assert_array_equal(found, factors(dynamic_hypervolume((True, True), capacity=4), POINTS)[0])


def kept(state):
    points = np.asarray(state.points, np.float64)[np.asarray(state.used)]
    return {tuple(point) for point in points.round(4).tolist()}


def test_dynamic_hypervolume_keeps_the_useful_points_when_slots_run_out():
    transform = dynamic_hypervolume((True, True), capacity=2)
    points = [(0.0, 0.0), (0.9, 0.3), (0.05, 0.9), (0.5, 0.5), (0.5, 0.5)]  # own volumes 0.12, 0.02, 0.09
    found, state = factors(transform, points)
    assert kept(state) == {(0.9, 0.3), (0.5, 0.5)}
    assert found[-1] == 0.5
    _, state = factors(transform, [(0.0, 0.0), (0.2, 0.1), (0.1, 0.2), (0.5, 0.5)])
    assert kept(state) == {(0.5, 0.5)}  # what the new point dominates leaves
    found, state = factors(transform, [(0.0, 0.0), (0.5, 0.1), (0.1, 0.5), (0.11, 0.11)])
    assert found[-1] == pytest.approx(0.5 + 1.5 * np.tanh(0.0001), abs=1e-6)
    assert kept(state) == {(0.5, 0.1), (0.1, 0.5)}  # the new point is the least useful of the three


def test_dynamic_hypervolume_full_of_ever_better_points_equals_one_with_room():
    rng = np.random.default_rng(0)
    points = [(0.0, 0.0, 0.0), *np.cumsum(rng.uniform(0, 0.2, (9, 3)), 0).tolist()]
    tight, room = (factors(dynamic_hypervolume((True,) * 3, capacity=c), points)[0] for c in (1, 12))
    np.testing.assert_allclose(tight, room, rtol=1e-6)


def test_dynamic_hypervolume_passes_over_points_that_are_not_finite():
    points = [(0.0, 0.0), (0.5, 0.2), (np.nan, 0.9), (np.inf, 1), (0.2, 0.6)]
    found, state = factors(dynamic_hypervolume((True, True), capacity=4), points)
    assert found[1] == found[2] == found[3] == pytest.approx(0.5 + 1.5 * np.tanh(0.1))
    assert found[4] == pytest.approx(0.5 + 1.5 * np.tanh(0.08), rel=1e-5)
    assert int(state.seen) == 3
    assert np.isfinite(np.asarray(state.points)).all()


def test_dynamic_hypervolume_without_a_validation_scales_the_next_batch():
    transform = dynamic_hypervolume((True, True), capacity=4)
    state, found = transform.init(), []
    for a, b in [(0.0, 0.0), (0.5, 0.2), (0.0, 0.0), (0.0, 0.0)]:
        rollout = graded([a, b])
        parts = rollout.components.at[0, 0, 0].add(0.25).at[1, 2, 0].add(-0.25)  # the mean stays
        rollout, state = compiled(transform.update)(dataclasses.replace(rollout, components=parts), state)
        found.append(float(rollout.reward[0, 0]))
    np.testing.assert_allclose(found, [1, 1, 0.5 + 1.5 * np.tanh(0.1), 0.5], rtol=1e-5)
    nothing = dataclasses.replace(graded([9.0, 9.0]), valid=jnp.zeros((2, 3), bool))
    _, after = compiled(transform.update)(nothing, state)
    jax.tree.map(np.testing.assert_array_equal, after, state)
    with pytest.raises(ValueError, match="objective_point"):
        transform.update(graded([1.0]), state)


def test_dynamic_hypervolume_refuses_four_objectives_and_no_room():
    for maximise, capacity in (((), 1), ((True,) * 4, 1), ((True,), 0)):
        with pytest.raises(ValueError, match=r"objectives|capacity"):
            dynamic_hypervolume(maximise, capacity)


def test_trap_9_the_multiplier_has_no_effect_under_a_group_std_and_has_one_without():
    transform = dynamic_hypervolume((True, True), capacity=4)
    _, state = compiled(transform.update)(graded(objective_point=jnp.zeros(2)), transform.init())
    scaled, _ = compiled(transform.update)(graded(objective_point=jnp.asarray([0.4, 0.1])), state)
    factor = float(0.5 + 1.5 * np.tanh(0.04))
    assert factor == pytest.approx(float(scaled.reward[0, 0]), rel=1e-6)

    def credit(chained, rollout):
        return np.asarray(compiled(chained.update)(rollout.reward, chained.init(), rollout)[0])

    normalised, plain = credit_chain(group_mean(), group_std(ddof=1, eps=0.0)), group_mean()
    np.testing.assert_allclose(credit(normalised, scaled), credit(normalised, graded()), rtol=1e-5)
    np.testing.assert_allclose(credit(plain, scaled), factor * credit(plain, graded()), rtol=1e-5)


# Gradient influence: w <- softmax(log w + lr I / mu), I summed over all components, itself included.


def weights(transform, *influences, components=(1.0, 10.0, 100.0)):
    """w after the last influence, read off the rewards, which are all Σ w c."""
    state, k = transform.init(), transform.components
    for influence in influences:
        rollout, state = compiled(transform.update)(
            graded(list(components[:k]), component_influence=jnp.asarray(influence, jnp.float32)), state
        )
        w = np.exp(np.asarray(state))
        np.testing.assert_allclose(np.asarray(rollout.reward), w @ np.array(components[:k]), rtol=1e-6)
    assert w.sum() == pytest.approx(1, rel=1e-6)
    return w


def softmax(x):
    return np.exp(x) / np.exp(x).sum()


def test_gradient_influence_golden():
    influence = np.array([[4.0, 1, 0], [1, 2, -1], [0, -1, 1]])
    start = np.array([0.5, 0.3, 0.2])
    expected = softmax(np.log(start) + 0.1 * np.array([5.0, 2, 0]))
    transform = gradient_influence((0.5, 0.3, 0.2))
    np.testing.assert_allclose(weights(transform, influence), expected, rtol=1e-5)
    again = softmax(np.log(expected) + 0.1 * np.array([5.0, 2, 0]))
    np.testing.assert_allclose(weights(transform, influence, influence), again, rtol=1e-5)
    np.testing.assert_allclose(weights(gradient_influence((5, 3, 2)), influence), expected, rtol=1e-5)


def test_gradient_influence_counts_the_component_itself():
    larger = weights(gradient_influence((1, 1)), np.diag([4.0, 1.0]))
    assert larger[0] > larger[1]


def test_gradient_influence_unchanged():
    transform = gradient_influence((0.5, 0.3, 0.2))
    start = np.exp(np.asarray(transform.init()))
    of_equal_size_and_orthogonal = 7 * np.eye(3)
    for influence in (of_equal_size_and_orthogonal, np.zeros((3, 3)), np.full((3, 3), np.nan), np.diag([np.inf, 1, 1])):
        np.testing.assert_array_equal(weights(transform, influence), start)


def test_gradient_influence_of_one_component_is_one():
    assert weights(gradient_influence((3,)), [[17.0]], [[-4.0]]) == 1


def test_gradient_influence_ignores_a_constant_added_to_every_influence():
    influence = np.array([[4.0, 1, 0], [1, 2, -1], [0, -1, 1]])
    one = weights(gradient_influence((1, 1, 1)), influence)
    other = weights(gradient_influence((1, 1, 1)), influence + np.eye(3) * 8)
    np.testing.assert_allclose(one, other, rtol=1e-5)


def test_gradient_influence_a_weight_that_sank_comes_back():
    away, back = np.diag([1e6, 0.0]), np.diag([0.0, 200.0])
    sunk = weights(gradient_influence((1, 1)), away)
    assert sunk[1] == pytest.approx(1e-6, rel=1e-5)
    assert weights(gradient_influence((1, 1)), away, back)[1] > 0.99
    w = np.array([1.0, 0.0])  # as released: log 0 stays
    with np.errstate(divide="ignore"):
        assert softmax(np.log(w) + 0.1 * np.array([0, 200.0]))[1] == 0


def test_gradient_influence_refuses_weights_and_floors_that_make_no_sense():
    for bad in ((), (1, 0), (1, -1)):
        with pytest.raises(ValueError, match="positive weights"):
            gradient_influence(bad)
    for floor in (0.0, 0.5):
        with pytest.raises(ValueError, match="floor"):
            gradient_influence((1, 1), floor=floor)


# ToolRL scales, released code 8cee13e: (format low, high), (correctness low, high) by step.


@pytest.mark.parametrize(
    ("bounds", "step", "expected"),
    [
        (tool_bounds(), 99, [[0, 1], [-3, 3]]),
        (tool_bounds(1), 0, [[0, 1], [-1, 1]]),
        (two_stage_bounds(), 29, [[0, 1], [-1, 1]]),
        (two_stage_bounds(), 30, [[0, 0.5], [-3, 3]]),
        (smooth_bounds(), 0, [[-2, 2], [-2, 2]]),
        (smooth_bounds(), 30, [[-1.6, 1.8], [-2.2, 2.2]]),
        (smooth_bounds(), 75, [[-1, 1.5], [-2.5, 2.5]]),
        (smooth_bounds(), 150, [[-1, 1], [-3, 3]]),
        (smooth_bounds(), 999, [[-1, 1], [-3, 3]]),
    ],
)
def test_scale_bounds_golden(bounds, step, expected):
    np.testing.assert_allclose(bounds(jnp.asarray(step)), expected, rtol=1e-6)


def test_scale_schedule_counts_its_steps():
    transform = scale_schedule(two_stage_bounds(2))
    state, found = transform.init(), []
    for _ in range(4):
        rollout, state = compiled(transform.update)(graded([1.0, 0.75]), state)
        found.append(float(rollout.reward[0, 0]))
    assert found == [1.5, 1.5, 2, 2]
    assert int(state) == 4
    neutral, _ = scale_schedule(tool_bounds()).update(graded([0.0, 0.5]), jnp.asarray(0))
    assert (np.asarray(neutral.reward) == 0).all()


def test_scale_of_the_parts_matters_under_a_std_and_scale_of_the_whole_does_not():
    parts = jnp.asarray([[[1.0, 0.2], [0, 0.9], [1, 0.4]], [[0, 0], [1, 1], [0, 0.5]]])
    rollout = dataclasses.replace(graded(), components=parts)

    def credit(rollout):
        normalised = credit_chain(group_mean(), group_std(ddof=1, eps=0.0))
        return np.asarray(compiled(normalised.update)(rollout.reward, normalised.init(), rollout)[0])

    three, one = (scale_schedule(tool_bounds(c)).update(rollout, jnp.asarray(0))[0] for c in (3, 1))
    assert np.abs(credit(three) - credit(one)).max() > 0.1
    doubled = dataclasses.replace(three, reward=2 * three.reward + 7)
    np.testing.assert_allclose(credit(doubled), credit(three), rtol=1e-5)
