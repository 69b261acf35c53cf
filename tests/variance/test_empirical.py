"""Scores of a neural policy: each back end against autodiff, and the sketch against what is known of its error."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.random import Stream, stream_key
from jaxrl_llm.sharding import MeshShape, by_prompt, make_mesh, place, state_shardings
from jaxrl_llm.variance.credit import segment_of
from jaxrl_llm.variance.empirical import numeric_floor, score_gram
from jaxrl_llm.variance.empirical_backends import (
    adapter,
    count_sketch,
    exact,
    last_layer,
    lora,
    matrices,
    sketch_bits,
    sketched,
)

SEED = 7


def assert_near(got, expected, rtol=2e-5):
    """To a fraction of the largest number."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(got, expected, rtol=0, atol=rtol * np.max(np.abs(expected)))


@functools.cache
def problem(tied=True, **changes):
    policy, params = tiny.decoder(tied=tied, **changes)
    return policy, params, tiny.ragged(policy, params, prompts_of=3, answers=3, length=5)


def token_scores(policy, params, rollout, of=lambda params: params):
    """[P M T D] ∇ of each token's log-probability in the leaves `of` the parameters, by the Jacobian; 0 where an
    answer is not valid."""
    logp = lambda params: answer_logp(  # noqa: E731
        policy, params, rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted
    )[0]
    rows = jax.tree.leaves(of(tiny.jit(jax.jacrev(logp))(params)))
    flat = np.concatenate([np.asarray(x).reshape(*rollout.acted.shape, -1) for x in rows], axis=-1)
    return flat * np.asarray(rollout.valid)[..., None, None]


def by_segment(scores, rollout, segments):
    member = np.asarray(segment_of(rollout.acted, segments))[..., None] == np.arange(segments)
    return np.einsum("pmtd,pmts->pmsd", scores, member)


def gram(rows):
    return np.einsum("pmad,qnbd->pmaqnb", rows, rows)


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_exact_scores_are_those_of_autodiff_token_by_token(segments):
    policy, params, rollout = problem()
    got = score_gram(policy, params, rollout, backend=exact(), segments=segments)
    assert_near(got.inner, gram(by_segment(token_scores(policy, params, rollout), rollout, segments)))
    assert float(jnp.max(jnp.where(rollout.valid, 0, got.energies))) == 0


def test_scores_are_scaled_by_a_preconditioner_and_several_may_be_taken_at_a_time():
    policy, params, rollout = problem()
    rng = np.random.default_rng(0)
    scale = jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.5, 2, x.shape), jnp.float32), params)
    flat = np.concatenate([np.asarray(x).ravel() for x in jax.tree.leaves(scale)])
    expected = gram(by_segment(token_scores(policy, params, rollout) * flat, rollout, 1))
    assert_near(score_gram(policy, params, rollout, backend=exact(batch=4), preconditioner=scale).inner, expected)
    head = score_gram(policy, params, rollout, backend=last_layer(), preconditioner=scale).inner
    plain = score_gram(policy, params, rollout, backend=last_layer()).inner
    assert np.max(np.abs(head - plain)) > 0.1 * np.max(np.abs(plain))


@pytest.mark.parametrize("cap", [0.0, 1.5])
def test_the_last_layer_is_the_exact_score_of_a_head_of_its_own(cap):
    policy, params, rollout = problem(tied=False, logit_cap=cap)
    of_head = token_scores(policy, params, rollout, of=lambda params: params["head"])
    got = score_gram(policy, params, rollout, backend=last_layer(), segments=2)
    assert_near(got.inner, gram(by_segment(of_head, rollout, 2)))


def test_of_a_tied_head_the_last_layer_is_the_part_through_the_output():
    policy, params, rollout = problem()
    apart, _ = tiny.decoder(tied=False)
    of_head = token_scores(apart, params | {"head": params["embedding"]}, rollout, of=lambda params: params["head"])
    got = score_gram(policy, params, rollout, backend=last_layer())
    assert_near(got.inner, gram(by_segment(of_head, rollout, 1)))
    whole = token_scores(policy, params, rollout, of=lambda params: params["embedding"])
    assert np.max(np.abs(gram(by_segment(whole, rollout, 1)) - got.inner)) > 0.01 * np.max(np.abs(got.inner))


def test_adapters_have_the_scores_of_a_policy_that_is_parametrised_by_them():
    policy, params, rollout = problem()
    rank, key = 3, stream_key(SEED, Stream.VARIANCE)
    flat = matrices(params["blocks"])
    a = {name: adapter(key, name, x.shape[:2], rank) for name, x in flat.items()}

    def adapted(b):
        added = {name: jnp.einsum("lir,lro->lio", a[name], b[name]).reshape(params["blocks"][name].shape) for name in b}
        blocks = {name: x + added[name] if name in added else x for name, x in params["blocks"].items()}
        return params | {"blocks": blocks}

    def logp(b):
        inputs = (rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted)
        return answer_logp(policy, adapted(b), *inputs)[0]

    zero = {name: jnp.zeros((len(x), rank, x.shape[2])) for name, x in flat.items()}
    rows = jax.tree.leaves(tiny.jit(jax.jacrev(logp))(zero))
    scores = np.concatenate([np.asarray(x).reshape(*rollout.acted.shape, -1) for x in rows], axis=-1)
    scores = scores * np.asarray(rollout.valid)[..., None, None]
    got = score_gram(policy, params, rollout, backend=lora(rank=rank), segments=2, seed=SEED)
    assert_near(got.inner, gram(by_segment(scores, rollout, 2)))
    assert lora(rank=rank).source.size(policy) == scores.shape[-1]


def test_adapters_keep_inner_products_on_average():
    """E[A Aᵀ] = 1; 2000 keys, 5 standard errors of entries of variance at most 2/rank."""
    keys = jax.random.split(jax.random.key(0), 2000)
    a = jax.vmap(lambda key: adapter(key, "query", (2, 4), 3))(keys)
    mean = jnp.einsum("klir,kljr->lij", a, a) / len(keys)
    np.testing.assert_allclose(mean, np.broadcast_to(np.eye(4), (2, 4, 4)), atol=5 * (2 / 3 / len(keys)) ** 0.5, rtol=0)
    assert not np.allclose(adapter(keys[0], "query", (2, 4), 3), adapter(keys[0], "key", (2, 4), 3))


SEEDS, SIZE = 4000, 16


def test_a_sketch_is_unbiased_with_the_stated_error_and_without_its_signs_it_is_not():
    """Mean over seeds within 4 standard errors; the variance is (|a|²|b|² + <a,b>² - 2Σa²b²)/k, within 4 standard
    errors of the sample variance of 4000 draws."""
    rng = np.random.default_rng(1)
    rows = {"first": rng.normal(size=(2, 3, 5)) + 1, "second": rng.normal(size=(2, 3, 5)) + 1}
    tree = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), rows)
    flat = np.concatenate([x.reshape(2, -1) for x in jax.tree.leaves(rows)], axis=1)
    (aa, ab), (_, bb) = flat @ flat.T
    formula = (aa * bb + ab**2 - 2 * np.sum(np.prod(flat**2, axis=0))) / SIZE
    assert formula <= 2 * aa * bb / SIZE

    @jax.jit
    @jax.vmap
    def both(key):
        bits = sketch_bits(tree, key)
        a, b = sketched(tree, bits, SIZE)
        c, d = sketched(tree, jax.tree.map(lambda x: x & 0x7FFFFFFF, bits), SIZE)
        return a @ b, c @ d

    signed, unsigned = (np.asarray(x, float) for x in both(jax.random.split(jax.random.key(0), SEEDS)))
    error = lambda x, expected: abs(x.mean() - expected) / (x.std() / SEEDS**0.5)  # noqa: E731
    assert error(signed, ab) < 4
    assert error(unsigned, ab) > 20
    squares = (signed - signed.mean()) ** 2
    assert error(squares, formula) < 4


def test_a_sketch_of_scores_has_the_inner_products_of_the_scores_on_average():
    """Over 40 seeds, all pairs: chi-square of the errors against the bound on their variance."""
    policy, params, rollout = problem()
    expected = score_gram(policy, params, rollout, backend=exact()).matrix
    size, seeds = 512, 40
    got = [score_gram(policy, params, rollout, backend=count_sketch(size=size), seed=s).matrix for s in range(seeds)]
    norms = np.sqrt(np.diagonal(expected))
    real = norms > 0
    bound = np.sqrt(2 / size / seeds) * np.outer(norms, norms)[real][:, real]
    worst = np.abs(np.mean(got, axis=0) - expected)[real][:, real] / bound
    assert worst.max() < 4
    assert not np.allclose(got[0], got[1])


@pytest.mark.parametrize("mesh", [pytest.param("1x8x1", marks=pytest.mark.long), "2x2x2"])
def test_sharded_sketches_are_the_unsharded_ones(mesh):
    policy, params = tiny.decoder()
    rollout = tiny.ragged(policy, params, prompts_of=8, answers=2, length=3)
    backend = count_sketch(size=256)
    alone = score_gram(policy, params, rollout, backend=backend, seed=SEED)
    sizes = map(int, mesh.split("x"))
    devices = make_mesh(MeshShape(**dict(zip(("data", "fsdp", "tensor"), sizes, strict=True))))
    shardings = nn.unbox(state_shardings(devices, policy.init, jax.random.key(0)))
    there = place(params, shardings)
    assert any(not x.sharding.is_fully_replicated for x in jax.tree.leaves(there))
    spread = score_gram(policy, there, place(rollout, by_prompt(devices)), backend=backend, seed=SEED)
    assert_near(spread.inner, alone.inner, rtol=1e-5)


def test_the_numeric_floor_is_rounding_and_scales_with_the_square_of_the_credit():
    policy, params, rollout = problem()
    credit = jnp.asarray(np.random.default_rng(0).normal(size=rollout.acted.shape), jnp.float32) * rollout.acted
    floor = numeric_floor(policy, params, rollout, jnp.stack([credit, 2 * credit, 0 * credit]))
    some, twice, none = floor.order
    flat = token_scores(policy, params, rollout)
    size = np.sum(np.einsum("pmt,pmtd->d", np.asarray(credit), flat) ** 2)
    assert 0 < some < 1e-10 * size
    assert twice == 4 * some
    assert none == 0
    some, twice, none = floor.precision
    assert 1e-7 * size < some < 1e-2 * size, "bfloat16 has 8 bits, and a square twice as many"
    assert twice == 4 * some
    assert none == 0


@pytest.mark.parametrize(("segments", "answers"), [(1, 4), pytest.param(2, 1, marks=pytest.mark.long)])
def test_scores_that_do_not_fit_together_are_made_block_by_block(segments, answers):
    policy, params, rollout = problem()
    each = 4 * policy.parameter_count() * segments
    whole = score_gram(policy, params, rollout, segments=segments, backend=exact())
    room = 2 * answers * each
    assert rollout.reward.size % answers or answers == 1
    assert room < each * rollout.reward.size, "all rows must not fit"
    parts = score_gram(policy, params, rollout, segments=segments, backend=exact(max_bytes=room))
    assert_near(parts.inner, whole.inner)
    np.testing.assert_array_equal(parts.matrix, parts.matrix.T)


def test_wrong_uses_are_refused():
    policy, params, rollout = problem()
    with pytest.raises(ValueError, match=r"more than max_bytes=1000: take count_sketch"):
        score_gram(policy, params, rollout, backend=exact(max_bytes=1000))
    with pytest.raises(ValueError, match="segments must be at least 1, not 0"):
        score_gram(policy, params, rollout, segments=0)
    with pytest.raises(ValueError, match="size must be at least 1"):
        count_sketch(size=0)
    with pytest.raises(ValueError, match="rank must be at least 1"):
        lora(rank=0)
