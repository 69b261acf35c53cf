"""What every advantage transform keeps. A law takes a transform and asserts; `LAWS` lists them by name."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_llm.advantages import bare_rollout

LAWS = {}
JUNK = (np.nan, np.inf, -np.inf, 1e30, 0.5)

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


def update(transform, reward, valid=None, state=None, jit=True):
    """(credit, state) of one batch."""
    reward = jnp.asarray(reward)
    state = transform.init() if state is None else state
    rollout = bare_rollout(reward, None if valid is None else jnp.asarray(valid))
    return (jax.jit(transform.update) if jit else transform.update)(reward, state, rollout)


def seasoned(transform, jit=True):
    """A state that has seen other batches."""
    state = transform.init()
    for reward in BATCHES if jax.tree.leaves(state) else ():
        state = update(transform, reward, VALID, state, jit)[1]
    return state


def close(actual, expected, rtol=1e-5):
    chex.assert_trees_all_close(actual, expected, rtol=rtol, atol=rtol / 10)


@law
def an_invalid_answer_changes_nothing(transform):
    state = seasoned(transform)
    expected = update(transform, np.where(VALID, REWARD, 0), VALID, state)
    np.testing.assert_array_equal(np.asarray(expected[0])[~VALID], 0)
    for junk in JUNK:
        chex.assert_trees_all_equal(update(transform, np.where(VALID, REWARD, junk), VALID, state), expected)


@law
def the_order_of_answers_is_irrelevant(transform):
    state = seasoned(transform)
    order = np.argsort(np.random.default_rng(1).uniform(size=REWARD.shape), axis=1)
    credit, after = update(transform, REWARD, VALID, state)
    shuffled = [np.take_along_axis(x, order, axis=1) for x in (REWARD, VALID)]
    moved = np.take_along_axis(np.asarray(credit), order.reshape(order.shape + (1,) * (credit.ndim - 2)), axis=1)
    close(update(transform, *shuffled, state), (moved, after))


@law
def the_order_of_prompts_is_irrelevant(transform):
    state = seasoned(transform)
    order = np.random.default_rng(2).permutation(len(REWARD))
    credit, after = update(transform, REWARD, VALID, state)
    close(update(transform, REWARD[order], VALID[order], state), (credit[order], after))


@law
def padding_the_group_changes_nothing(transform):
    state = seasoned(transform)
    credit, after = update(transform, REWARD, VALID, state)
    pad = np.full((len(REWARD), 3), np.nan, np.float32)
    wider = update(
        transform, np.concatenate([REWARD, pad], 1), np.concatenate([VALID, np.zeros(pad.shape, bool)], 1), state
    )
    close((wider[0][:, :4], wider[1]), (credit, after))
    np.testing.assert_array_equal(wider[0][:, 4:], 0)


@law
def padding_the_batch_changes_nothing(transform):
    state = seasoned(transform)
    credit, after = update(transform, REWARD, VALID, state)
    pad = np.full((5, 4), np.nan, np.float32)
    longer = update(transform, np.concatenate([REWARD, pad]), np.concatenate([VALID, np.zeros(pad.shape, bool)]), state)
    close((longer[0][:8], longer[1]), (credit, after))
    np.testing.assert_array_equal(longer[0][8:], 0)


@law
def eight_devices_agree_with_one(transform):
    state = seasoned(transform)
    expected = update(transform, REWARD, VALID, state)
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("prompts",), axis_types=(AxisType.Auto,))
    reward, rollout = jax.device_put(
        (jnp.asarray(REWARD), bare_rollout(jnp.asarray(REWARD), jnp.asarray(VALID))),
        NamedSharding(mesh, PartitionSpec("prompts")),
    )
    assert len(reward.sharding.device_set) == 8
    with jax.set_mesh(mesh):
        actual = jax.block_until_ready(jax.jit(transform.update)(reward, state, rollout))
    close(jax.device_get(actual), jax.device_get(jax.block_until_ready(expected)))


@law
def the_dtype_is_kept(transform):
    state = seasoned(transform)
    whole, after = update(transform, REWARD, VALID, state)
    for dtype, tolerance in ((jnp.bfloat16, 0.1), (jnp.float32, 1e-5), (jnp.float64, 1e-3)):
        with jax.enable_x64(dtype == jnp.float64):
            credit, moved = update(transform, jnp.asarray(REWARD, dtype), VALID, state)
            assert credit.dtype == dtype, f"{dtype.__name__} became {credit.dtype}"
            chex.assert_trees_all_equal_shapes_and_dtypes(moved, after)
            np.testing.assert_allclose(credit.astype(jnp.float32), whole, rtol=tolerance, atol=tolerance)


@law
def compiled_and_not_agree(transform):
    state = seasoned(transform)
    close(update(transform, REWARD, VALID, state, jit=False), update(transform, REWARD, VALID, state), rtol=1e-6)


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


@law
def credit_and_its_gradient_are_finite(transform):
    @jax.jit
    def gradient_of(reward, valid, slope, state):
        def weighted(reward):
            credit, after = transform.update(reward, state, bare_rollout(reward, valid))
            return jnp.sum(credit * slope.reshape(slope.shape + (1,) * (credit.ndim - 2))), (credit, after)

        return jax.grad(weighted, has_aux=True)(reward)

    state = seasoned(transform)
    for name, (reward, where) in DEGENERATE.items():
        valid = np.broadcast_to(where, reward.shape)
        slope = np.random.default_rng(3).normal(size=reward.shape).astype(np.float32)
        holed = np.where(valid, reward, np.nan).astype(np.float32)
        for earlier in (transform.init(), state)[: 1 + len(jax.tree.leaves(state))]:
            gradient, rest = gradient_of(holed, valid, slope, earlier)
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
        assert np.any(credit != 0), "not centred by its traits, yet every all-equal group got 0"


@law
def a_credit_of_0_stays_0_if_it_says_so(transform):
    state, rollout = seasoned(transform), bare_rollout(jnp.asarray(REWARD), jnp.asarray(VALID))
    credit = np.asarray(jax.jit(transform.update)(jnp.zeros(REWARD.shape), state, rollout)[0])
    assert transform.traits.keeps_zero == bool(np.all(credit == 0))


@law
def the_minimum_group_is_the_smallest_with_a_signal(transform):
    least = transform.traits.minimum_group
    for size in range(1, least + 1):
        reward = np.random.default_rng(4).uniform(size=(8, size)).astype(np.float32)
        credit, _ = update(transform, reward)
        assert np.any(np.asarray(credit) != 0) == (size == least), f"groups of {size}, minimum {least}"


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
    scanned, credits = jax.lax.scan(lambda carry, r: update(transform, r, VALID, carry)[::-1], first, BATCHES)
    close((scanned, credits), (state, jnp.stack(seen)))


@law
def seeds_can_be_vmapped(transform):
    states = [update(transform, reward, VALID)[1] for reward in BATCHES]
    one_by_one = [update(transform, r, VALID, s) for r, s in zip(BATCHES[::-1], states, strict=True)]
    stack = lambda *xs: jnp.stack(xs)  # noqa: E731
    together = jax.vmap(lambda r, s: update(transform, r, VALID, s))(BATCHES[::-1], jax.tree.map(stack, *states))
    close(together, jax.tree.map(stack, *one_by_one))
