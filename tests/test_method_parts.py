"""Parts of methods in the learning step: references that move, corrections, coefficients, choices, on any mesh."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from learners import assert_close, assert_same, compiled, distance, learner

from jaxrl_llm import anchors, companions, recipes
from jaxrl_llm.advantages import at_end, chain, group_mean, no_baseline, per_token
from jaxrl_llm.advantages.tokens.gae import gae
from jaxrl_llm.learner import Learner
from jaxrl_llm.losses import Objective, k3, kl, reinforce, token_mean
from jaxrl_llm.losses.corrections import self_normalised_group
from jaxrl_llm.losses.penalties import adaptive, rao_blackwell
from jaxrl_llm.losses.selections import clip_cov
from jaxrl_llm.rewards.controllers.gradient_influence import gradient_influence
from jaxrl_llm.sharding import MeshShape, by_prompt, fetch, make_mesh, place, replicated

POLICY, PARAMS = tiny.bigram()
REFERENCE = jax.tree.map(lambda x: 0.8 * x, PARAMS)
ROLLOUT = tiny.ragged(POLICY, PARAMS, noise=0.3)
WHERE = ROLLOUT.acted & ROLLOUT.valid[..., None]
GRPO = recipes.grpo(kl_coefficient=0.3)
NAN_REWARD = dataclasses.replace(ROLLOUT, reward=ROLLOUT.reward.at[0, 0].set(jnp.nan))


def walk(built, rollouts, reference=None):
    """All states, the first included, and the metrics of each step."""
    run, states, seen = compiled(built), [built.init(PARAMS)], []
    for rollout in rollouts:
        state, metrics, _ = run(states[-1], reference, rollout)
        states.append(state)
        seen.append(metrics)
    return states, seen


def between(old, new, share):
    return jax.tree.map(lambda a, b: (1 - share) * a + share * b, old, new)


# references that move


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_a_moving_average_by_hand(decay):
    states, _ = walk(learner(POLICY, GRPO, anchor=anchors.moving_average(decay=decay)), [ROLLOUT] * 3)
    assert_same(states[0].anchor, PARAMS)
    assert distance(states[3].params, states[2].params) > 1e-3
    for old, new in itertools.pairwise(states):
        assert_close(new.anchor, between(old.anchor, new.params, 1 - decay))
    if decay in (0, 1):
        assert_same(states[3].anchor, states[3].params if decay == 0 else PARAMS)


def test_a_reference_that_never_moves_is_the_fixed_one():
    """And whatever other reference is handed over is not looked at."""
    moving = learner(POLICY, GRPO, anchor=anchors.moving_average(decay=1.0))
    ours, seen = walk(moving, [ROLLOUT] * 3, REFERENCE)
    fixed, expected = walk(learner(POLICY, GRPO), [ROLLOUT] * 3, PARAMS)
    assert_close(ours[3].params, fixed[3].params)
    assert_close(seen, expected)
    assert distance(fixed[3].params, walk(learner(POLICY, GRPO), [ROLLOUT] * 3, REFERENCE)[0][3].params) > 1e-3


def test_a_reference_that_is_always_the_policy_holds_nothing_back():
    """k3 has no slope where the two are equal."""
    states, seen = walk(learner(POLICY, GRPO, anchor=anchors.moving_average(decay=0.0)), [ROLLOUT] * 3)
    free, _ = walk(learner(POLICY, recipes.grpo(kl_coefficient=0.0)), [ROLLOUT] * 3)
    assert_close(states[3].params, free[3].params)
    assert [float(metrics["kl"]) for metrics in seen] == [0, 0, 0]


@pytest.mark.parametrize("mixing", [0.6, 1.0])
def test_a_reference_is_refreshed_every_second_step(mixing):
    states, seen = walk(learner(POLICY, GRPO, anchor=anchors.refreshed(every=2, mixing=mixing)), [ROLLOUT] * 4)
    assert_same(states[1].anchor, PARAMS)
    assert_same(states[3].anchor, states[2].anchor)
    for step in (2, 4):
        assert_close(states[step].anchor, between(states[step - 1].anchor, states[step].params, mixing))
    divergences = [float(metrics["kl"]) for metrics in seen]
    assert divergences[0] == 0
    assert min(divergences[1], divergences[3]) > 1e-4
    if mixing == 1:
        assert_same(states[2].anchor, states[2].params)
        assert divergences[2] == 0, "the first update after a copy"
    else:
        assert divergences[2] > 1e-5


@pytest.mark.parametrize("anchor", [anchors.moving_average(decay=0.9), anchors.refreshed(every=2)])
def test_a_refused_step_leaves_the_reference_on_its_way_to_the_policy(anchor):
    """The policy stays, time goes on: a refresh that falls on such a step is not put off to the next one."""
    states, seen = walk(learner(POLICY, GRPO, anchor=anchor), [ROLLOUT, NAN_REWARD])
    assert int(seen[1]["nonfinite/skipped"]) == 1
    assert_same(states[2].params, states[1].params)
    assert_close(states[2].anchor, anchor(states[1].anchor, states[1].params, jnp.int32(2)))
    assert distance(states[2].anchor, states[1].anchor) > 1e-3


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_a_reference_keeps_its_type_and_what_fits_in_it(dtype):
    with jax.enable_x64(dtype == jnp.float64):
        trees = [{"w": jnp.asarray(np.random.default_rng(seed).normal(size=200), dtype)} for seed in (0, 1)]
        old, new = (np.asarray(tree["w"].astype(jnp.promote_types(dtype, jnp.float32)), np.float64) for tree in trees)
        rounding = 2**-8 if dtype == jnp.bfloat16 else 1e-15
        for anchor, share in (
            (anchors.moving_average(decay=0.9), 0.1),
            (anchors.refreshed(every=3, mixing=0.3), 0.3),
            (anchors.refreshed(every=3), 1.0),
        ):
            moved = anchor(*trees, jnp.int32(3))["w"]
            assert moved.dtype == dtype
            expected = (1 - share) * old + share * new
            gap = np.abs(np.asarray(moved.astype(jnp.promote_types(dtype, jnp.float32)), np.float64) - expected)
            assert np.all(gap <= rounding * np.abs(expected) + 1e-7 * rounding + 1e-16), "one rounding at the end"
        np.testing.assert_array_equal(moved, trees[1]["w"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: anchors.moving_average(decay=1.5), "decay"),
        (lambda: anchors.refreshed(every=0), "every"),
        (lambda: anchors.refreshed(every=1, mixing=0.0), "mixing"),
    ],
)
def test_shares_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# objectives


def plain(advantage=None, rate=1.0, accumulation=1, epochs=1, seed=0, parts=(), **objective):
    """REINFORCE without a baseline, token by token, and what is put on top."""
    return Learner(
        policy=POLICY,
        advantage=advantage or per_token(no_baseline()),
        objective=Objective(surrogate=reinforce(), aggregate=token_mean(), **objective),
        optimizer=optax.sgd(rate),
        learning_rate=lambda updates: rate,
        accumulation=accumulation,
        epochs=epochs,
        seed=seed,
        **dict(parts),
    )


def every_logp(params):
    """Of all tokens at all positions [P G T V]."""
    hidden = POLICY.score(params, POLICY.prefill(params, ROLLOUT.prompt, ROLLOUT.prompt_mask), ROLLOUT.answer)
    return jax.nn.log_softmax(POLICY.logits(params, hidden), axis=-1)


def test_an_adaptive_coefficient_moves_and_the_next_loss_has_it():
    theirs = jnp.sum(jax.nn.one_hot(ROLLOUT.answer, tiny.VOCAB) * every_logp(REFERENCE), axis=-1)
    r = np.asarray(theirs - ROLLOUT.policy_logp)[np.asarray(WHERE)]
    mean, answers = float(np.mean(np.expm1(r) - r)), int(np.sum(ROLLOUT.valid))
    penalty = adaptive(kl(k3, 0.3, "loss"), target=mean / 1.1, horizon=5.0)
    states, seen = walk(plain(penalties=(penalty,)), [ROLLOUT, ROLLOUT, NAN_REWARD], REFERENCE)
    assert float(seen[0]["kl"]) == pytest.approx(mean, rel=1e-4)
    expected = [0.3 * (1 + 0.1 * answers / 5) ** n for n in (0, 1, 2, 2)]
    assert [float(state.credit.coefficients[0]) for state in states] == pytest.approx(expected, rel=1e-4)
    again = []
    for coefficient in expected[:2]:
        fixed = plain(penalties=(kl(k3, coefficient, "loss"),))
        again.append(compiled(fixed)(fixed.init(states[1].params), REFERENCE, ROLLOUT)[0].params)
    assert_close(states[2].params, again[1])
    assert distance(states[2].params, again[0]) > 1e-3


def test_a_moving_correction_sees_the_policy_that_is_updated():
    """A fixed one that is built alike sees the policy that sampled, in the second update as in the first."""
    moving = self_normalised_group()
    ends = {}
    for name, correction in {"moving": moving, "fixed": moving._replace(moving=False)}.items():
        singles, _ = walk(plain(corrections=(correction,), rate=3.0), [ROLLOUT, ROLLOUT])
        both, _ = walk(plain(corrections=(correction,), rate=3.0, epochs=2), [ROLLOUT])
        assert_close(both[1].params, singles[2].params)
        ends[name] = singles
    assert_close(ends["moving"][1].params, ends["fixed"][1].params)
    assert distance(ends["moving"][2].params, ends["fixed"][2].params) > 1e-3


def divergence(params):
    mine = every_logp(params)
    return jnp.where(WHERE, jnp.sum(jnp.exp(mine) * (mine - every_logp(REFERENCE)), axis=-1), 0)


def test_the_exact_divergence_in_the_loss_has_its_value_and_its_gradient():
    silent = dataclasses.replace(ROLLOUT, reward=jnp.zeros_like(ROLLOUT.reward))
    states, seen = walk(plain(penalties=(rao_blackwell(0.3, "loss"),)), [silent], REFERENCE)
    value, grads = jax.value_and_grad(lambda p: 0.3 * jnp.sum(divergence(p)) / jnp.sum(WHERE))(PARAMS)
    assert float(seen[0]["loss"]) == pytest.approx(float(value), rel=1e-4)
    assert distance(states[1].params, PARAMS) > 1e-3
    assert_close(jax.tree.map(jnp.subtract, PARAMS, states[1].params), grads)


def test_the_exact_divergence_in_the_reward_is_taken_off_it():
    built = plain(penalties=(rao_blackwell(0.3, "reward"),))
    _, _, credit = compiled(built)(built.init(PARAMS), REFERENCE, ROLLOUT)
    expected = jnp.where(ROLLOUT.valid, ROLLOUT.reward - 0.3 * jnp.sum(divergence(PARAMS), axis=-1), 0)
    np.testing.assert_allclose(credit, expected, atol=1e-5)


# choices

CHOICE = clip_cov(fraction=0.3, low=-100.0, high=100.0)


def chosen_by(seed, rollout=ROLLOUT, steps_done=0):
    built = plain(corrections=(CHOICE,), seed=seed)
    state = dataclasses.replace(built.init(PARAMS), step=jnp.int32(steps_done))
    return compiled(built)(state, None, rollout)[0].params


def test_tokens_are_chosen_by_seed_and_step_and_not_by_the_order_of_the_batch():
    base = chosen_by(0)
    order = jnp.asarray([2, 0, 3, 1])
    assert_close(chosen_by(0, jax.tree.map(lambda x: x[order], ROLLOUT)), base)
    renamed = dataclasses.replace(ROLLOUT, prompt_id=ROLLOUT.prompt_id + 10)
    for other in (chosen_by(1), chosen_by(0, steps_done=1), chosen_by(0, renamed)):
        assert distance(other, base) > 1e-3


# memory and devices


def big():
    """32 prompts, some answers of each invalid, components that are no multiples of each other."""
    rollout = tiny.ragged(POLICY, PARAMS, prompts_of=32, answers=4, noise=0.3)
    valid = jnp.arange(4)[None] >= (jnp.arange(32) % 3)[:, None]
    components = jax.random.normal(jax.random.key(0), rollout.components.shape)
    return dataclasses.replace(rollout, valid=valid, components=components)


PARTS = {
    "self-normalised, moving reference, value": lambda accumulation: plain(
        advantage=chain(at_end(no_baseline()), gae(discount=1.0, decay=0.9)),
        corrections=(self_normalised_group(),),
        penalties=(kl(k3, 0.3, "loss"),),
        accumulation=accumulation,
        epochs=2,
        parts={
            "anchor": anchors.moving_average(decay=0.5),
            "companion": companions.value_network(POLICY, learning_rate=0.03, discount=1.0),
        },
    ),
    "covariance, exact divergence, influence": lambda accumulation: plain(
        advantage=per_token(group_mean()),
        corrections=(clip_cov(fraction=0.1, low=-100.0, high=100.0),),
        penalties=(adaptive(rao_blackwell(0.3, "loss"), target=0.1, horizon=100.0),),
        accumulation=accumulation,
        epochs=2,
        parts={"reward": gradient_influence((1.0, 1.0), learning_rate=1e-4)},
    ),
}


def two_steps(built, mesh=None):
    """State, metrics and credit on the host after two steps."""
    rollout, state = big(), built.init(PARAMS)
    reference = REFERENCE
    if mesh is not None:
        rollout = place(rollout, by_prompt(mesh))
        state, reference = place((state, reference), replicated(mesh))
    run = compiled(built)
    for _ in range(2):
        out = run(state, reference, rollout)
        jax.block_until_ready(out)  # programs in flight on several CPU "devices" deadlock in their all-reduce
        state = out[0]
    return fetch(out)


@pytest.mark.parametrize("name", PARTS)
def test_neither_accumulation_nor_devices_change_a_number(name):
    whole = two_steps(PARTS[name](1))
    assert distance(whole[0].params, PARAMS) > 1e-2
    assert int(whole[0].skipped) == 0
    assert_close(two_steps(PARTS[name](4)), whole, atol=1e-5, rtol=1e-4)
    assert_close(two_steps(PARTS[name](1), make_mesh(MeshShape())), whole, atol=1e-5, rtol=1e-4)
