"""A draw, and the probability that is recorded with it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import tiny

from jaxrl_llm.rollouts import sampling
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules, draw, likeliest, restrict

LOGITS = np.asarray([1.5, 0.3, 2.0, -1.0, 0.31, -3.0, 1.0, 0.0])
DRAWS = 20_000
SIGNIFICANCE = 1e-4  # of each test; the seed is fixed, so that a pass stays a pass
RULES = {
    "all tokens": SamplingRules(),
    "cold": SamplingRules(temperature=0.5),
    "hot": SamplingRules(temperature=2.0),
    "top-k": SamplingRules(top_k=3),
    "top-p": SamplingRules(top_p=0.8),
    "cold top-k": SamplingRules(temperature=0.6, top_k=4),
    "hot top-p": SamplingRules(temperature=1.7, top_p=0.7),
    "top-k, then top-p": SamplingRules(top_k=5, top_p=0.6),
    "all three": SamplingRules(temperature=1.3, top_k=6, top_p=0.75),
}


def softmax(x):
    odds = np.exp(x - np.max(x))
    return odds / odds.sum()


def by_definition(rules):
    """Probabilities [V] of the restricted distribution, token by token from the likeliest on."""
    p = softmax(LOGITS / rules.temperature)
    order = np.argsort(-p)
    if rules.top_k:
        p[order[rules.top_k :]] = 0
        p /= p.sum()
    held, kept = 0.0, []
    for token in order:
        if held >= rules.top_p:
            break
        held += p[token]
        kept.append(token)
    p[[token for token in order if token not in kept]] = 0
    return p / p.sum()


@tiny.jit(static_argnums=(1, 2))
def draws(seed, count, rules):
    """Tokens and their two log-probabilities [draws], each with a key of its own."""
    keys = jax.random.split(jax.random.key(seed), (1, count))
    logits = jnp.broadcast_to(jnp.asarray(LOGITS, jnp.float32), (1, count, len(LOGITS)))
    return jax.tree.map(lambda x: x[0], draw(keys, logits, rules))


def chi_square_p(token, expected):
    """Significance of the counts of tokens, given probabilities of which some are 0."""
    seen = np.bincount(np.asarray(token), minlength=len(expected))
    support = expected > 0
    assert not np.any(seen[~support]), "a token outside the support was drawn"
    return scipy.stats.chisquare(seen[support], expected[support] / expected[support].sum() * len(token)).pvalue


@pytest.mark.parametrize("name", RULES)
def test_draws_match_the_recorded_probabilities(name):
    rules = RULES[name]
    expected = by_definition(rules)
    token, behaviour_logp, policy_logp = draws(0, DRAWS, rules)
    recorded = np.zeros(len(LOGITS))
    recorded[token] = np.exp(behaviour_logp)
    assert recorded.sum() == pytest.approx(1, abs=1e-5), "the recorded probabilities are those of a distribution"
    np.testing.assert_allclose(recorded, expected, atol=1e-6)
    np.testing.assert_allclose(behaviour_logp, np.log(expected[token]), atol=1e-5)
    np.testing.assert_allclose(policy_logp, np.log(softmax(LOGITS)[token]), atol=1e-5)
    assert chi_square_p(token, recorded) > SIGNIFICANCE


def test_the_distribution_test_catches_another_distribution():
    """Draws at temperature 1.1 are not those of temperature 1, and draws of all tokens leave the top three."""
    token, _, _ = draws(0, DRAWS, SamplingRules(temperature=1.1))
    assert chi_square_p(token, softmax(LOGITS)) < SIGNIFICANCE
    with pytest.raises(AssertionError, match="outside the support"):
        chi_square_p(token, by_definition(RULES["top-k"]))


@pytest.mark.parametrize("name", ["top-k", "top-p", "cold top-k", "hot top-p", "all three"])
def test_peer_defect_truncated_draw_with_untruncated_logp(name):
    """Tunix records the softmax over all tokens for a draw from some: the numbers are of no distribution at all."""
    rules = RULES[name]
    token, behaviour_logp, _ = draws(0, DRAWS, rules)
    theirs = jax.nn.log_softmax(jnp.asarray(LOGITS / rules.temperature))[token]
    kept = by_definition(rules) > 0
    mass = softmax(LOGITS / rules.temperature)[kept].sum()
    assert mass < 0.97
    np.testing.assert_allclose(behaviour_logp - theirs, -np.log(mass), atol=1e-5)
    support = np.unique(token)
    first = [int(np.argmax(np.asarray(token) == one)) for one in support]
    assert np.exp(behaviour_logp)[first].sum() == pytest.approx(1, abs=1e-5)
    assert np.exp(theirs)[first].sum() == pytest.approx(mass, abs=1e-5)


def test_a_token_depends_on_its_own_key_and_logits_alone():
    keys = jax.random.split(jax.random.key(3), (4, 5))
    logits = jax.random.normal(jax.random.key(4), (4, 5, 8)) * 2
    rules = SamplingRules(top_p=0.9)
    drawn = tiny.jit(draw, static_argnums=2)
    whole = drawn(keys, logits, rules)
    assert len(np.unique(whole[0])) > 3
    flipped = drawn(keys[::-1, ::-1], logits[::-1, ::-1], rules)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[::-1, ::-1]), whole, flipped)
    one = drawn(keys[2:3, 1:2], logits[2:3, 1:2], rules)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[2:3, 1:2], b), whole, one)


def support_of(logits, rules):
    return np.flatnonzero(np.isfinite(restrict(jnp.asarray(logits, jnp.float32)[None, None, :], rules)[0, 0])).tolist()


def test_tokens_tied_at_the_edge_are_all_kept():
    assert support_of([1, 2, 1, 0], SamplingRules(top_k=2)) == [0, 1, 2]
    assert support_of([1, 1, 1, 1], SamplingRules(top_k=1)) == [0, 1, 2, 3]
    assert support_of([0, 0, 9, 0], SamplingRules(top_p=0.9999)) == [0, 1, 2, 3]
    assert support_of([0, 0, 9, 0], SamplingRules(top_p=0.5)) == [2]


def test_edges_of_top_k_and_top_p():
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    assert support_of(logits, SamplingRules(top_k=4)) == support_of(logits, SamplingRules(top_k=9)) == [0, 1, 2, 3]
    assert support_of(logits, SamplingRules(top_k=1)) == support_of(logits, SamplingRules(top_p=1e-6)) == [0]
    assert support_of(logits, SamplingRules(top_p=0.49)) == [0]
    assert support_of(logits, SamplingRules(top_p=0.51)) == [0, 1]
    assert support_of(logits, SamplingRules(top_p=0.76)) == [0, 1, 2]


def test_greedy_is_the_lowest_likeliest_token_with_certainty():
    logits = jnp.asarray([[[0, 3, 1, 3], [5, 1, 1, 1]]], jnp.float32)
    token, behaviour_logp, policy_logp = draw(jax.random.split(jax.random.key(0), (1, 2)), logits, GREEDY)
    np.testing.assert_array_equal(token, jnp.argmax(logits, axis=-1))
    np.testing.assert_array_equal(behaviour_logp, np.zeros((1, 2)))
    np.testing.assert_allclose(policy_logp, jnp.max(jax.nn.log_softmax(logits), axis=-1), rtol=1e-6)


def by_sorting(logits, rules):
    """Which tokens [N V] are kept, by a sort of all of them."""
    logits = logits / rules.temperature
    if 0 < rules.top_k < logits.shape[-1]:
        edge = jnp.sort(logits, axis=-1)[..., -rules.top_k][..., None]
        logits = jnp.where(logits >= edge, logits, -jnp.inf)
    if rules.top_p < 1:
        ordered = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
        share = jax.nn.softmax(ordered, axis=-1)
        inside = jnp.cumsum(share, axis=-1) - share < rules.top_p
        edge = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= edge, logits, -jnp.inf)
    return np.isfinite(logits)


def adversarial():
    """Rows [N 64] of logits: random, narrow, wide, tied, of both zeros, mostly -inf, and one token alone."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(size=64) * scale for scale in (0.01, 1, 1, 1, 3, 3, 10, 100)]
    rows += [np.round(rng.normal(size=64)), np.repeat([1.0, 0.0, -1.0, -2.0], 16), np.zeros(64)]
    rows += [np.where(np.arange(64) % 2, 0.0, -0.0), np.where(np.arange(64) % 2, -0.0, -1.0)]
    rows += [np.where(rng.random(64) < 0.9, -np.inf, rng.normal(size=64)), np.where(np.arange(64) == 7, 0.5, -np.inf)]
    rows += [np.nextafter(np.float32(2), np.float32(3)) ** (np.arange(64) % 3 - 1), np.linspace(-1e30, 1e30, 64)]
    return jnp.asarray(np.stack(rows), jnp.float32)


def holds(logits, rules):
    kept = np.isfinite(restrict(logits[None], rules)[0])
    return np.all(kept == by_sorting(logits, rules), axis=-1)


@pytest.mark.parametrize("top_k", [0, 7, 63])
@pytest.mark.parametrize("small", [64, 0], ids=["top_k", "search"])
def test_the_search_keeps_what_a_sort_would(top_k, small, monkeypatch):
    monkeypatch.setattr(sampling, "SMALL_K", small)
    for top_p in (1.0, 0.9, 0.43, 1e-6):
        assert holds(adversarial(), SamplingRules(top_k=top_k, top_p=top_p, temperature=0.7)).all()


def test_a_search_that_takes_zeros_for_two_numbers_is_caught(monkeypatch):
    broken = lambda x: (b := jax.lax.bitcast_convert_type(x, jnp.int32)) ^ ((b >> 31) & jnp.int32(0x7FFFFFFF))  # noqa: E731
    monkeypatch.setattr(sampling, "_image", broken)
    assert not holds(adversarial(), SamplingRules(top_p=0.43)).all()


def test_a_large_vocabulary_is_searched_as_it_would_be_sorted():
    """At 50,000 tokens sums round: sort and search may part on a token that is within rounding of top_p."""
    logits = 3 * jax.random.normal(jax.random.key(0), (2, 50_000))
    for rules in (SamplingRules(top_k=1000), SamplingRules(top_p=0.9), SamplingRules(top_k=1000, top_p=0.9)):
        kept = np.isfinite(restrict(logits[None], rules)[0])
        assert np.all(np.abs(kept.sum(-1) - by_sorting(logits, rules).sum(-1)) <= (rules.top_p < 1))


def test_the_likeliest_token_is_the_argmax():
    logits = adversarial()[None]
    np.testing.assert_array_equal(likeliest(logits), jnp.argmax(logits, axis=-1))
    assert 0 <= int(likeliest(jnp.full((1, 1, 5), jnp.nan))[0, 0]) < 5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", float("nan")),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
    ],
)
def test_bad_rules_are_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^{field} must be .*{value}"):
        SamplingRules(**{field: value})
