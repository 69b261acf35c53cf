"""The Gram matrix of scores, and a pool of answers taken as a policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, least_hits

from jaxrl_llm.advantages import bare_rollout, chain, group_mean, group_std, leave_one_out, per_token
from jaxrl_llm.advantages.baselines.batch_leave_one_out import batch_leave_one_out
from jaxrl_llm.advantages.baselines.length_weighted import length_weighted
from jaxrl_llm.advantages.baselines.other_prompts_mean import other_prompts_mean
from jaxrl_llm.losses.aggregate import answer_mean
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.surrogates import reinforce
from jaxrl_llm.losses.tokens import bare_tokens
from jaxrl_llm.variance.credit import Estimator, segment_means, segment_of
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.gram import ScoreGram, gram_of, pool_moments
from jaxrl_llm.variance.tables import OutcomeTable

P, M, T, D = 2, 4, 3, 5
TRANSFORMS = {
    "rloo": leave_one_out(),
    "group mean": group_mean(),
    "grpo": chain(group_mean(), group_std(ddof=1, eps=1e-4)),
    "opo": length_weighted(leave_one_out=False),
    "batch": batch_leave_one_out(),
}

pytestmark = pytest.mark.usefixtures("float64")


def pool(seed=0):
    """Token scores [P M T D], rewards [P M] and lengths [P M] of random answers."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, T + 1, (P, M))
    lengths[:, 0] = T
    acted = np.arange(T) < lengths[..., None]
    scores = np.where(acted[..., None], rng.normal(size=(P, M, T, D)), 0)
    return scores, rng.normal(size=(P, M)), jnp.asarray(acted)


def tables(scores, rewards, acted):
    """The pool as finite policies: scores centred by prompt at each place of the answer."""
    centred = scores - scores.mean(axis=1, keepdims=True)
    return [OutcomeTable(np.full(M, 1 / M), centred[x].sum(axis=1), rewards[x], acted[x].sum(-1)) for x in range(P)]


def test_products_are_those_of_the_estimates_written_out():
    scores, _, _ = pool()
    gram = gram_of(jnp.asarray(scores))
    a, b = np.random.default_rng(1).normal(size=(2, 6, P, M, T))
    estimate = lambda c: np.einsum("npmt,pmtd->nd", c, scores)  # noqa: E731
    assert_close(gram.products(jnp.asarray(a), jnp.asarray(b)), estimate(a) @ estimate(b).T)
    assert_close(gram.squares(jnp.asarray(a)), np.sum(estimate(a) ** 2, axis=-1))
    parts = np.einsum("pmt,pmtd->pd", a[0], scores)
    assert_close(gram.prompt_blocks(jnp.asarray(a[0])), parts @ parts.T)
    assert_close(gram.energies, np.sum(scores.sum(axis=2) ** 2, axis=-1))
    centred = scores - scores.mean(axis=1, keepdims=True)
    assert_close(gram.centred().inner, gram_of(jnp.asarray(centred)).inner)
    some = gram.subset(jnp.asarray([1]), jnp.asarray([3, 0]))
    assert_close(some.inner, gram_of(jnp.asarray(scores[[1]][:, [3, 0]])).inner)
    assert isinstance(some, ScoreGram)
    assert some.sizes == (1, 2, T)


@pytest.mark.parametrize(("length", "segments"), [(7, 3), (3, 3), (2, 3), (1, 8), (0, 2)])
def test_segments_are_contiguous_and_nearly_equal(length, segments):
    acted = jnp.asarray([0] + [1] * length + [0], bool)
    at = np.asarray(segment_of(acted, segments))
    assert np.all(at[~np.asarray(acted)] == -1)
    inside = at[np.asarray(acted)]
    assert np.all(np.diff(inside) >= 0)
    counts = np.bincount(inside, minlength=segments) if length else np.zeros(segments)
    assert counts.max() - counts.min() <= 1
    assert np.sum(counts > 0) == min(length, segments)


def test_means_over_segments_are_exact_where_a_segment_is_a_token_and_say_so_where_not():
    acted = jnp.asarray([[[True, True, True], [True, False, False]]])
    credit = jnp.asarray([[[1.0, 2.0, 6.0], [5.0, 9.0, 9.0]]])
    means, left = segment_means(credit, acted, 3)
    np.testing.assert_array_equal(means, [[[1, 2, 6], [5, 0, 0]]])
    assert left == 0
    means, left = segment_means(credit, acted, 1)
    np.testing.assert_array_equal(means, [[[3], [5]]])
    np.testing.assert_allclose(left, (4 + 1 + 9) / (1 + 4 + 36 + 25))
    means, left = segment_means(jnp.asarray([[2.0, -1.0]]), acted, 2)
    np.testing.assert_array_equal(means, [[[2, 2], [-1, -1]]])
    assert left == 0


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_pool_agrees_with_enumeration_of_the_table_that_it_is(name):
    """Exact values within intervals of 99.9 percent, so that 25 of them hold together; fixed seed."""
    transform = TRANSFORMS[name]
    scores, rewards, acted = pool()
    group = 2 if name == "batch" else 3
    expected = moments(transform, tables(scores, rewards, acted), group, prompts=None)
    gram = gram_of(jnp.asarray(scores))
    rollout = bare_rollout(jnp.asarray(rewards), acted=acted)
    got = pool_moments(gram, Estimator(transform), rollout, group, key=jax.random.key(4), replicates=800, level=0.999)
    for field in ("trace_var", "mse", "cos", "scale", "mse_rescaled", "useful_snr", "bias_norm", "snr"):
        low, high = got.intervals[field]
        assert low - 1e-9 <= getattr(expected, field) <= high + 1e-9, field
    np.testing.assert_allclose(expected.useful_snr, expected.snr * expected.cos**2, rtol=1e-12)
    assert got.mean_grad is None
    assert expected.intervals == {}
    low, high = got.intervals["trace_var"]
    assert high - low < 0.8 * expected.trace_var


def test_intervals_of_a_pool_hold_the_exact_values_at_their_rate():
    """200 times 100 draws, 2 estimators, 7 figures at 90 percent. The probability that a sound figure falls below the
    bound is 1e-3 over all of them. That intervals are not simply wide is seen on the spread: with probability 1e-3
    each, a sound one misses as seldom as the upper bound."""
    scores, rewards, acted = pool()
    gram, rollout, times = gram_of(jnp.asarray(scores)), bare_rollout(jnp.asarray(rewards), acted=acted), 200
    fields = ("trace_var", "mse", "cos", "scale", "mse_rescaled", "useful_snr", "snr")
    least = least_hits(times, 0.9, 1e-3 / 14)
    most = times - least_hits(times, 0.1, 1e-3)
    for name in ("rloo", "grpo"):
        exact = moments(TRANSFORMS[name], tables(scores, rewards, acted), 3, prompts=None)
        hits = dict.fromkeys(fields, 0)
        for key in jax.random.split(jax.random.key(0), times):
            got = pool_moments(gram, Estimator(TRANSFORMS[name]), rollout, 3, key=key, replicates=100, level=0.9)
            for f in fields:
                low, high = got.intervals[f]
                hits[f] += low - 1e-9 <= getattr(exact, f) <= high + 1e-9  # some are equal by construction
        assert {f: n for f, n in hits.items() if n < least} == {}, name
        assert hits["trace_var"] <= most, name


def test_a_pool_weighs_tokens_as_its_objective_does():
    """With a token a segment, an objective's estimate is the one of enumeration; on the wrong weights it is not."""
    _, rewards, _ = pool()
    acted = jnp.ones((P, M, T), bool)  # of a shorter answer a table would leave out the centred padding
    scores = np.random.default_rng(2).normal(size=(P, M, T, D))
    centred = scores - scores.mean(axis=1, keepdims=True)
    weights = jnp.asarray([[[0.0, 1.0, 2.0]]])
    late = Objective(surrogate=reinforce(), aggregate=lambda where: answer_mean()(where) * weights)
    transform = per_token(leave_one_out())
    logp = np.full((M, T), -np.log(M) / T)
    table = [
        OutcomeTable(np.full(M, 1 / M), c.sum(1), r, [T] * M, token_scores=c, logp=logp)
        for c, r in zip(centred, rewards, strict=True)
    ]
    expected = moments(transform, table, 2, prompts=None, objective=late)
    gram, rollout = gram_of(jnp.asarray(scores)), bare_rollout(jnp.asarray(rewards), acted=acted)
    tokens = bare_tokens(acted, logp=jnp.zeros(acted.shape))
    of = lambda objective: pool_moments(  # noqa: E731
        gram,
        Estimator(transform, objective),
        rollout,
        2,
        key=jax.random.key(4),
        replicates=800,
        level=0.999,
        tokens=tokens,
    )
    low, high = of(late).intervals["trace_var"]
    assert low < expected.trace_var < high
    low, high = of(Objective(surrogate=reinforce(), aggregate=answer_mean())).intervals["trace_var"]
    assert not low < expected.trace_var < high


def test_wrong_uses_of_a_pool_are_refused():
    scores, rewards, acted = pool()
    gram, rollout = gram_of(jnp.asarray(scores)), bare_rollout(jnp.asarray(rewards), acted=acted)
    with pytest.raises(ValueError, match="groups of 2 answers, not 1"):
        pool_moments(gram, Estimator(leave_one_out()), rollout, 1, key=jax.random.key(0))
    one = bare_rollout(rollout.reward[:1], acted=acted[:1])
    with pytest.raises(ValueError, match="compares prompts and needs 2, not 1"):
        pool_moments(gram, Estimator(other_prompts_mean()), one, 2, key=jax.random.key(0))
    with pytest.raises(ValueError, match="an interval needs at least 8 units, not 7"):
        pool_moments(gram, Estimator(leave_one_out()), rollout, 2, key=jax.random.key(0), replicates=7)
