"""The unified estimator: a mask, a denominator and a credit give the gradients of the surrogates with names."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from every_surrogate import batch, slope_of

from jaxrl_llm import losses
from jaxrl_llm.losses.surrogates import rec_pieces as rec
from jaxrl_llm.losses.surrogates import unified_pieces as u

# name: (surrogate with a name, mask, denominator, credit)
SAME = {
    "imitation": (losses.cross_entropy, rec.no_mask, u.over_current, u.ones),
    "REINFORCE": (losses.reinforce(), rec.no_mask, u.over_current, u.credit),
    "AsymRE": (losses.asymmetric_reinforce(coefficient=0.1), rec.no_mask, u.over_current, u.raised(by=0.1)),
    "token ratios": (losses.token_ratio(), rec.no_mask, u.over_behaviour, u.credit),
    "PPO": (losses.clipped(low=0.2, high=0.28), u.stable(low=0.2, high=0.28), u.over_behaviour, u.credit),
    "dual clip": (losses.clipped(dual=1.5), u.stable(dual=1.5), u.over_behaviour, u.credit),
    "CISPO": (losses.cispo(low=0.2, high=0.28), rec.no_mask, u.over_clipped(low=0.2, high=0.28), u.credit),
    "CISPO, no lower bound": (
        losses.cispo(low=None, high=0.1),
        rec.no_mask,
        u.over_clipped(low=None, high=0.1),
        u.credit,
    ),
    "GSPO": (losses.gspo(low=0.1, high=0.1), rec.gspo_one_side(low=0.1, high=0.1), u.over_mean, u.credit),
    "sequence ratios": (losses.sequence_ratio(), rec.no_mask, u.over_answer, u.credit),
    "prefix ratios": (losses.prefix_ratio(), rec.no_mask, u.over_prefix, u.credit),
    "probability": (losses.probability(), rec.no_mask, u.over_one, u.credit),
    "LUFFY": (losses.shaped_probability(offset=0.1), rec.no_mask, u.over_shaped(offset=0.1), u.credit),
    "REC two side": (
        losses.rec(mask=rec.two_side(), weight=rec.no_weight, regulariser=rec.no_regulariser),
        rec.two_side(),
        u.over_current,
        u.credit,
    ),
    "REC ring": (
        losses.rec(mask=rec.ring(), weight=rec.importance, regulariser=rec.no_regulariser),
        rec.ring(),
        u.over_behaviour,
        u.credit,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_parts_give_the_gradient_of_the_name(name):
    named, mask, denominator, advantage = SAME[name]
    tokens = batch(spread=0.6)
    expected = np.where(tokens.where, slope_of(named, tokens), 0)
    parts = losses.unified(mask=mask, denominator=denominator, advantage=advantage)
    np.testing.assert_allclose(np.where(tokens.where, slope_of(parts, tokens), 0), expected, rtol=1e-5, atol=1e-6)


def test_the_names_differ_from_each_other():
    """Ten and more gradients, all different on these tokens: the equalities above are not those of one surrogate."""
    tokens = batch(spread=0.6)
    slopes = [np.where(tokens.where, slope_of(entry[0], tokens), 0) for entry in SAME.values()]
    for i, a in enumerate(slopes):
        assert not any(np.allclose(a, b, rtol=1e-3) for b in slopes[:i])


def test_imitation_inside_the_credit_is_the_forward_divergence():
    """Â = A + c μ/π over μ: the importance-weighted policy gradient and c times imitation, token by token."""
    tokens = batch(spread=0.6)
    parts = losses.unified(mask=rec.no_mask, denominator=u.over_behaviour, advantage=u.with_imitation(coefficient=0.3))
    expected = slope_of(losses.token_ratio(), tokens) + 0.3
    where = np.asarray(tokens.where)
    np.testing.assert_allclose(slope_of(parts, tokens)[where], expected[where], rtol=1e-5, atol=1e-6)


def test_shaping_weighs_unlikely_tokens_less_than_imitation_and_likely_ones_less_than_probability():
    """A c p/(p + c)²: largest at p = c."""
    probability = np.array([0.001, 0.05, 0.1, 0.2, 0.9])
    tokens = batch(shape=(1, 1, 5))
    tokens = losses.bare_tokens(
        jnp.ones((1, 1, 5), bool),
        logp=jnp.log(jnp.asarray(probability, jnp.float32)).reshape(1, 1, 5),
        advantage=jnp.ones((1, 1, 5)),
    )
    slope = slope_of(losses.shaped_probability(offset=0.1), tokens)[0, 0]
    np.testing.assert_allclose(slope, 0.1 * probability / (probability + 0.1) ** 2, rtol=1e-5)
    assert np.argmax(slope) == 2


def test_trap_a_sum_beside_a_mean_hides_a_weight():
    """HPT adds reinforcement as a sum over rows to imitation as a mean: twice the rows, twice the first. With one
    aggregate of explicit denominators for both, twice the batch is the same gradient."""
    tokens = batch()

    def pull(copies, hidden):
        twice = {name: jnp.concatenate([getattr(tokens, name)] * copies) for name in ("where", "logp", "advantage")}
        rows = losses.bare_tokens(twice["where"], logp=twice["logp"], advantage=twice["advantage"])
        both = lambda t: losses.reinforce()(t) + losses.cross_entropy(t)  # noqa: E731
        mean = losses.token_mean()(rows.where)
        if hidden:
            sums = rows.where / 8.0
            slope = sums * slope_of(losses.reinforce(), rows) + mean * slope_of(losses.cross_entropy, rows)
        else:
            slope = mean * slope_of(both, rows)
        return np.sum(np.asarray(slope).reshape(copies, *tokens.where.shape), axis=0)

    np.testing.assert_allclose(pull(2, hidden=False), pull(1, hidden=False), rtol=1e-5)
    assert not np.allclose(pull(2, hidden=True), pull(1, hidden=True), rtol=0.1)


def test_bounds_of_the_unified_clip_may_be_open():
    assert np.all(np.isfinite(np.exp(u.over_clipped(low=1.0, high=math.e)(batch()))))
