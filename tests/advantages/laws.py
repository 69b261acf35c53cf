"""What every advantage transform keeps. A law takes a transform and asserts; `LAWS` lists them by name."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import tiny
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_llm.advantages import bare_rollout

LAWS = {}
JUNK = (np.nan, np.inf, -np.inf, 1e30, 0.5)
T = 4

# Eight prompts: mixed, with ties, all equal at 0, at 1 and between, with one valid answer, with none.
REWARD = np.array(
    [
        [1, 0, 0, 0],
        [1, 1, 1, 0],
        [0.2, 0.5, 0.9, 0.4],
        [0, 0, 0, 0],
        [1, 1, 1, 1],
        [0.1, 0.1, 0.1, 0.1],
        [0, 1, 0, 0],
        [0.3, 0.3, 0.6, 0],
    ],
    np.float32,
)
VALID = np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 1, 1], *[[1, 1, 1, 1]] * 3, [0, 1, 0, 0], [0, 0, 0, 0]], bool)

BATCHES = np.random.default_rng(0).uniform(size=(3, *REWARD.shape)).astype(np.float32)


def law(fn):
    LAWS[fn.__name__] = fn
    return fn


def world(reward, valid=None, dtype=None, seed=5):
    """A rollout around rewards that carries everything a transform may read: answers of 0 to T tokens, some with a
    hole, and all extras."""
    reward = np.asarray(reward)
    dtype = dtype or reward.dtype
    (p, g), rng = reward.shape, np.random.default_rng(seed)
    acted = np.arange(T) < rng.integers(1, T + 1, (p, g, 1))
    if g > 2:
        acted[0, 1] = False  # an answer without a token
        acted[1, 2] = [True, False, True, True]  # a token that the policy did not choose stands between its own
    # Sixteenths, which every type can hold: a choice must not depend on how its grounds were rounded.
    draw = lambda low, high, *shape: jnp.asarray(np.ceil(16 * rng.uniform(low, high, shape)) / 16, dtype)  # noqa: E731
    tokens = functools.partial(draw, 0.0, 1.0, p, g, T)
    rollout = bare_rollout(
        jnp.asarray(reward, dtype),
        None if valid is None else jnp.asarray(valid),
        jnp.asarray(acted),
        greedy_reward=draw(0, 1, p),
        difficulty=draw(0.5, 2, p),
        pool_mean=draw(0.2, 0.8, p),
        pool_std=draw(0.2, 0.5, p),
        drift=draw(0, 0.1, p),
        energy=draw(0.2, 2, p, g),
        duration=draw(1, 4, p, g),
        noise=draw(0, 1, p, g),
        role=jnp.asarray(rng.integers(0, 2, (p, g)), jnp.int32),
        selected=jnp.asarray(rng.integers(0, 2, (p, g)), bool),
        **{name: tokens() for name in ("token_energy", "value", "token_reward", "entropy")},
        **{name: tokens() - 0.5 for name in ("process_score", "token_score")},
    )
    logp = -2 * tokens()
    components = jnp.stack([rollout.reward, draw(0, 1, p, g)], axis=-1)
    return dataclasses.replace(
        rollout, components=components, policy_logp=logp, behaviour_logp=logp + 0.1 * tokens(), prompt_id=jnp.arange(p)
    )


WORLD = world(REWARD, VALID)


def spoiled(rollout, junk):
    """The same rollout with something else in every field of its invalid answers."""

    def spoil(x):
        if x.ndim < 2 or x.shape[:2] != rollout.valid.shape or x is rollout.valid:
            return x
        where = rollout.valid.reshape(rollout.valid.shape + (1,) * (x.ndim - 2))
        other = jnp.asarray(junk, x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.asarray(True, x.dtype)
        return jnp.where(where, x, other)

    return jax.tree.map(spoil, rollout)


def reordered(rollout, prompts=None, answers=None):
    """The rollout with its prompts [P], or the answers of each prompt [P G], in another order."""
    if prompts is not None:
        rollout = jax.tree.map(lambda x: x[prompts], rollout)
    if answers is not None:
        rows = np.arange(len(answers))[:, None]
        both = lambda x: x.ndim >= 2 and x.shape[:2] == answers.shape and x is not rollout.prompt  # noqa: E731
        rollout = jax.tree.map(lambda x: x[rows, answers] if both(x) else x, rollout)
    return rollout


def padded(rollout, prompts=0, answers=0):
    """The rollout with invalid answers, or prompts without a valid answer, behind it."""
    p, g = rollout.valid.shape

    def pad(x):
        behind = [(0, prompts)] + [(0, 0)] * (x.ndim - 1)
        if x.ndim >= 2 and x.shape[:2] == (p, g) and x is not rollout.prompt:
            behind[1] = (0, answers)
        fill = jnp.nan if jnp.issubdtype(x.dtype, jnp.inexact) else x.dtype != bool or x is not rollout.valid
        return jnp.pad(x, behind, constant_values=fill)

    return jax.tree.map(pad, rollout)


@functools.lru_cache(maxsize=4)
def compiled(update):
    return tiny.jit(update)


def of(transform, rollout, state=None, jit=True):
    """(credit, state) of one rollout."""
    state = transform.init() if state is None else state
    return (compiled(transform.update) if jit else transform.update)(rollout.reward, state, rollout)


def update(transform, reward, valid=None, state=None, jit=True):
    """(credit, state) of a rollout around these rewards."""
    return of(transform, world(reward, valid), state, jit)


def seasoned(transform, jit=True):
    """A state that has seen other batches."""
    state = transform.init()
    for reward in BATCHES if jax.tree.leaves(state) else ():
        state = update(transform, reward, VALID, state, jit)[1]
    return state


def assert_close(actual, expected, rtol=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=rtol / 10)


def like(credit, x):
    """x [P G] with as many axes as the credit."""
    return x.reshape(x.shape + (1,) * (credit.ndim - 2))


@law
def an_invalid_answer_changes_nothing(transform):
    state = seasoned(transform)
    expected = of(transform, spoiled(WORLD, 0.0), state)
    np.testing.assert_array_equal(np.asarray(expected[0])[~VALID], 0)
    for junk in JUNK:
        chex.assert_trees_all_equal(of(transform, spoiled(WORLD, junk), state), expected)


@law
def the_order_of_answers_is_irrelevant(transform):
    state = seasoned(transform)
    order = np.argsort(np.random.default_rng(1).uniform(size=REWARD.shape), axis=1)
    credit, after = of(transform, WORLD, state)
    moved = np.take_along_axis(np.asarray(credit), like(credit, order), axis=1)
    assert_close(of(transform, reordered(WORLD, answers=order), state), (moved, after))


@law
def the_order_of_prompts_is_irrelevant(transform):
    state = seasoned(transform)
    order = np.random.default_rng(2).permutation(len(REWARD))
    credit, after = of(transform, WORLD, state)
    assert_close(of(transform, reordered(WORLD, prompts=order), state), (credit[order], after))


@law
def padding_the_group_changes_nothing(transform):
    state = seasoned(transform)
    credit, after = of(transform, WORLD, state)
    wider = of(transform, padded(WORLD, answers=3), state)
    assert_close((wider[0][:, :4], wider[1]), (credit, after))
    np.testing.assert_array_equal(wider[0][:, 4:], 0)


@law
def padding_the_batch_changes_nothing(transform):
    state = seasoned(transform)
    credit, after = of(transform, WORLD, state)
    longer = of(transform, padded(WORLD, prompts=5), state)
    assert_close((longer[0][:8], longer[1]), (credit, after))
    np.testing.assert_array_equal(longer[0][8:], 0)


@law
def a_token_that_was_not_chosen_gets_nothing(transform):
    credit, _ = of(transform, WORLD, seasoned(transform))
    if credit.ndim == 3:
        np.testing.assert_array_equal(np.asarray(credit)[~np.asarray(WORLD.acted)], 0)


@law
def eight_devices_agree_with_one(transform):
    state = seasoned(transform)
    expected = of(transform, WORLD, state)
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("prompts",), axis_types=(AxisType.Auto,))
    split = jax.device_put(WORLD, NamedSharding(mesh, PartitionSpec("prompts")))
    assert len(split.reward.sharding.device_set) == 8
    with jax.set_mesh(mesh):
        actual = jax.block_until_ready(tiny.jit(transform.update)(split.reward, state, split))
    assert_close(jax.device_get(actual), jax.device_get(jax.block_until_ready(expected)))


@law
def the_dtype_is_kept(transform):
    """The value only tells whether the same was computed: bfloat16 has 8 bits, and a deviation costs some."""
    state = seasoned(transform)
    whole, after = of(transform, WORLD, state)
    for dtype, tolerance in ((jnp.bfloat16, 0.1), (jnp.float32, 1e-5), (jnp.float64, 1e-4)):
        with jax.enable_x64(dtype == jnp.float64):
            credit, moved = of(transform, world(REWARD, VALID, dtype), state)
            assert credit.dtype == dtype, f"{dtype.__name__} became {credit.dtype}"
            chex.assert_trees_all_equal_shapes_and_dtypes(moved, after)
            np.testing.assert_allclose(credit.astype(jnp.float32), whole, rtol=tolerance, atol=tolerance)


@law
def compiled_and_not_agree(transform):
    state = seasoned(transform)
    assert_close(of(transform, WORLD, state, jit=False), of(transform, WORLD, state))


# Rewards and validity at the edges: what is undefined, tied, tied but for rounding, or far away from the rest.
ROWS = np.arange(16)[:, None]
DEGENERATE = {
    "all 0": (np.zeros((16, 4)), True),
    "all 1": (np.ones((16, 4)), True),
    "all 0.1": (np.full((16, 4), 0.1), True),
    "no valid answer": (np.tile(REWARD, (2, 1)), False),
    "one valid answer": (np.tile(REWARD, (2, 1)), np.arange(64).reshape(16, 4) == 13),
    "one prompt": (np.tile(REWARD, (2, 1)), ROWS == 2),
    "near ties": (np.array([[1, 1 + 2e-7, 1, 1], [1e-20, 0, 0, 0], [3e-19, 0, 0, 0], [0, 0, 0, 0]] * 4), True),
    "means equal but for rounding": (np.stack([np.roll([0.2, 0.5, 0.9, 0.4], i) for i in range(16)]), True),
    "an outlier": (np.where(ROWS == 0, [4e-20, 0, 0, 0], [1, 1, 0, 0]), True),
    "one answer each": (ROWS % 3 / 2, True),
}


def without_weight(rollout):
    """The same rollout with 0 in every extra: weights, energies, deviations, values."""
    return dataclasses.replace(rollout, extras=jax.tree.map(jnp.zeros_like, dict(rollout.extras)))


@law
def credit_and_its_gradient_are_finite(transform):
    @tiny.jit
    def gradient_of(reward, rollout, slope, state):
        def weighted(reward):
            components = jnp.stack([reward, reward], axis=-1)
            credit, after = transform.update(
                reward, state, dataclasses.replace(rollout, reward=reward, components=components)
            )
            return jnp.sum(credit * like(credit, slope)), (credit, after)

        return jax.grad(weighted, has_aux=True)(reward)

    state = seasoned(transform)
    for name, (reward, where) in DEGENERATE.items():
        valid = np.broadcast_to(where, reward.shape)
        slope = np.random.default_rng(3).normal(size=reward.shape).astype(np.float32)
        rollout = world(np.where(valid, reward, np.nan).astype(np.float32), valid)
        for case in (rollout, without_weight(rollout)):
            for earlier in (transform.init(), state)[: 1 + len(jax.tree.leaves(state))]:
                gradient, rest = gradient_of(case.reward, case, slope, earlier)
                assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((gradient, rest))), name
                np.testing.assert_array_equal(np.asarray(gradient)[~valid], 0, err_msg=name)


@law
def an_all_equal_group_gets_0_if_centred(transform, jit=True):
    state = seasoned(transform, jit)
    values = np.array([0, 1, 0.1, 0.3, 1 / 3, 0.7, 1e-3, 1e6], np.float32)
    sizes = np.arange(1, 8)
    equal = np.broadcast_to(np.repeat(values, 7)[:, None], (56, 7))
    others = np.linspace(0, 1, 21, dtype=np.float32).reshape(3, 7)
    valid = np.concatenate([np.tile(sizes[:, None] > np.arange(7), (8, 1)), np.ones((3, 7), bool)])
    credit = np.asarray(update(transform, np.concatenate([equal, others]), valid, state, jit)[0])[:56]
    if transform.traits.centred:
        np.testing.assert_array_equal(credit, 0)
    else:
        small = np.concatenate([equal[:49], others])
        credit = np.asarray(update(transform, small, np.delete(valid, range(49, 56), axis=0), state, jit)[0])[:49]
        assert np.any(credit != 0), "not centred by its traits, yet every all-equal group got 0"


@law
def a_credit_of_0_stays_0_if_it_says_so(transform):
    """Groups whose credit is 0, beside groups whose credit is not."""
    rollout = world(BATCHES[0], VALID)
    dead = np.arange(len(REWARD)) % 2 == 0
    credit, _ = transform.update(jnp.where(dead[:, None], 0, rollout.reward), seasoned(transform), rollout)
    assert np.all(np.asarray(credit)[dead] == 0) == transform.traits.keeps_zero


@law
def the_minimum_group_is_the_smallest_with_a_signal(transform):
    """A signal: the credit depends on the rewards."""
    least, rng = transform.traits.minimum_group, np.random.default_rng(4)
    for size in range(1, least + 1):
        rewards = rng.uniform(size=(2, 8, size)).astype(np.float32)
        rewards = np.round(rewards) if transform.traits.domain == "binary" else rewards
        rewards[1, 0] = 0  # what divides by the mean of one reward sees only whether there is any
        one, other = (np.asarray(update(transform, reward)[0]) for reward in rewards)
        assert np.any(one != other) == (size == least), f"groups of {size}, minimum {least}"


@law
def other_prompts_are_read_if_it_says_so(transform):
    """The credit of the first prompt, with other rewards, answers and extras at all other prompts."""
    rewards = np.round(BATCHES[:2]) if transform.traits.domain == "binary" else BATCHES[:2]
    here, there = (world(reward, seed=seed) for seed, reward in enumerate(rewards))
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:1], b[1:]]), here, there)
    state = seasoned(transform)
    one, other = (np.asarray(of(transform, rollout, state)[0])[0] for rollout in (here, mixed))
    assert np.any(one != other) == transform.traits.batch_wide


@law
def the_state_is_stable(transform):
    chex.assert_trees_all_equal(transform.init(), transform.init())
    first = state = seasoned(transform)
    before = jax.tree.map(np.array, first)
    seen = []
    for reward in BATCHES:
        credit, after = update(transform, reward, VALID, state)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, transform.init())
        state = after
        seen.append(credit)
    chex.assert_trees_all_equal(jax.tree.map(np.array, first), before)
    batches = jax.tree.map(lambda *xs: jnp.stack(xs), *(world(reward, VALID) for reward in BATCHES))
    scanned, credits = tiny.jit(lambda c, ws: jax.lax.scan(lambda c, w: transform.update(w.reward, c, w)[::-1], c, ws))(
        first, batches
    )
    assert_close((scanned, credits), (state, jnp.stack(seen)))


@law
def seeds_can_be_vmapped(transform):
    states = [update(transform, reward, VALID)[1] for reward in BATCHES]
    worlds = [world(reward, VALID) for reward in BATCHES[::-1]]
    one_by_one = [of(transform, w, s) for w, s in zip(worlds, states, strict=True)]
    stack = lambda *xs: jnp.stack(xs)  # noqa: E731
    many = tiny.jit(jax.vmap(lambda w, s: transform.update(w.reward, s, w)))
    together = many(jax.tree.map(stack, *worlds), jax.tree.map(stack, *states))
    assert_close(together, jax.tree.map(stack, *one_by_one))
