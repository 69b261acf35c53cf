"""REINFORCE with masks, weights and regularisers: the table of masks, the named presets, and a bandit gone wrong."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from every_surrogate import batch, of_ratios, pulls, slope_of

from jaxrl_llm.losses import asymmetric_reinforce, bare_tokens, clipped, opmd, opmd_early, rec, reinforce
from jaxrl_llm.losses.surrogates import rec_pieces as pieces

RATIOS = (0.3, 0.7, 0.9, 1.0, 1.1, 1.3, 3.5)
MASKS = {"one side": pieces.one_side(), "two side": pieces.two_side(), "ring": pieces.ring()}


def build(mask=pieces.no_mask, weight=pieces.no_weight, regulariser=pieces.no_regulariser):
    return rec(mask=mask, weight=weight, regulariser=regulariser)


@pytest.mark.parametrize(
    ("name", "advantage", "golden"),
    [
        ("one side", 1.0, "1111100"),
        ("one side", -1.0, "0011111"),
        ("two side", 1.0, "0011100"),
        ("two side", -1.0, "0011100"),
        ("ring", 1.0, "1011100"),
        ("ring", -1.0, "0011101"),
    ],
)
def test_table_of_masks(name, advantage, golden):
    tokens = of_ratios(RATIOS, advantage)
    assert "".join(str(int(m)) for m in MASKS[name](tokens)[0, 0]) == golden
    np.testing.assert_allclose(slope_of(build(MASKS[name]), tokens)[0, 0], [advantage * int(m) for m in golden])


def test_ring_as_in_the_constructor_of_trinity():
    """far_low and far_high 0.4 rather than 0.6 and 2.0: 0.3 and 0.55 are kept, and so is 1.5 on the other side."""
    narrow = pieces.ring(far_low=0.4, far_high=0.4)
    assert np.asarray(narrow(of_ratios((0.3, 0.55, 0.7, 1.5), 1.0)))[0, 0].tolist() == [True, True, False, False]
    assert np.asarray(narrow(of_ratios((0.3, 0.55, 0.7, 1.5), -1.0)))[0, 0].tolist() == [False, False, False, True]


def test_one_side_with_importance_has_the_gradient_of_ppo():
    tokens = batch(spread=1.0)
    ours = build(pieces.one_side(low=0.2, high=0.28), pieces.importance)
    ppo = slope_of(clipped(low=0.2, high=0.28), tokens)
    np.testing.assert_allclose(slope_of(ours, tokens), ppo, rtol=1e-5, atol=1e-7)
    stopped = np.sum((ppo == 0) & np.asarray(tokens.where))
    assert 5 < stopped < np.sum(tokens.where) - 5
    assert not np.allclose(slope_of(build(pieces.two_side(low=0.2, high=0.28), pieces.importance), tokens), ppo)
    assert not np.allclose(slope_of(build(pieces.one_side(low=0.2, high=0.28)), tokens), ppo)


def test_no_mask_and_no_weight_is_reinforce():
    tokens = batch(spread=1.0)
    np.testing.assert_allclose(pulls(build(), tokens), pulls(reinforce(), tokens), rtol=1e-6)


def test_asymmetric_reinforce_is_a_baseline_lowered_by_its_coefficient():
    tokens = batch(spread=1.0)
    lowered = dataclasses.replace(tokens, advantage=jnp.where(tokens.where, tokens.advantage + 0.1, 0))
    np.testing.assert_allclose(
        slope_of(asymmetric_reinforce(coefficient=0.1), tokens) * np.asarray(tokens.where),
        slope_of(reinforce(), lowered),
        rtol=1e-5,
        atol=1e-7,
    )


def test_opmd_pulls_by_twice_its_coefficient_times_the_log_ratio():
    """Kimi's (τ/2)(log π - log μ)² has c = τ/2: derivative A - τ log ρ."""
    tau = 0.3
    slope = slope_of(opmd(coefficient=tau / 2), of_ratios(RATIOS, 0.7))[0, 0]
    np.testing.assert_allclose(slope, 0.7 - tau * np.log(RATIOS), rtol=1e-5)


def test_the_older_opmd_is_reinforce_over_1_plus_tau():
    tokens = batch()
    expected = slope_of(reinforce(), tokens) / 3
    np.testing.assert_allclose(slope_of(opmd_early(temperature=2.0), tokens), expected, rtol=1e-6)
    assert np.array_equal(slope_of(opmd_early(temperature=0.0), tokens), slope_of(reinforce(), tokens))


def test_exponential_weights_vanish_as_the_temperature_grows():
    tokens = batch()
    plain = slope_of(reinforce(), tokens)
    np.testing.assert_allclose(slope_of(build(weight=pieces.exponential(temperature=1e6)), tokens), plain, rtol=1e-5)
    sharp = slope_of(build(weight=pieces.exponential(temperature=1.0)), tokens)
    np.testing.assert_allclose(sharp, plain * np.exp(np.asarray(tokens.advantage)), rtol=1e-5)


def test_gspo_one_side_masks_whole_answers():
    """Ratios 1.5 and 1.1: the geometric mean is 1.28, so both tokens go where 1.2 is the bound, and stay at 1.3."""
    tokens = of_ratios((1.5, 1.1), 1.0)
    for high, kept in ((0.2, 0.0), (0.3, 1.0)):
        mask = pieces.gspo_one_side(low=high, high=high)
        np.testing.assert_array_equal(slope_of(build(mask), tokens)[0, 0], [kept, kept])


# Three arms, drawn by (0.3, 0.6, 0.1), paying (0, 0.8, 1); the value of the sampler is the baseline.

SAMPLER, PAYS = np.array([0.3, 0.6, 0.1]), np.array([0.0, 0.8, 1.0])


def trained(surrogate, steps, rate):
    """Policy after ascent on the exact expectation over the sampler's arms, [3]."""
    arm = lambda x: jnp.asarray(x, jnp.float32).reshape(1, 3, 1)  # noqa: E731

    def value(logits):
        fields = {"behaviour_logp": arm(np.log(SAMPLER)), "advantage": arm(PAYS - SAMPLER @ PAYS)}
        logp = jax.nn.log_softmax(logits).reshape(1, 3, 1)
        return jnp.sum(arm(SAMPLER) * surrogate(bare_tokens(jnp.ones((1, 3, 1), bool), logp=logp, **fields)))

    slope = jax.grad(value)
    logits = jnp.asarray(np.log(SAMPLER), jnp.float32)
    step = lambda _, x: x + rate * slope(x)  # noqa: E731
    return np.asarray(jax.nn.softmax(jax.jit(lambda x: jax.lax.fori_loop(0, steps, step, x))(logits)))


def test_off_policy_reinforce_converges_to_the_second_best_arm():
    pull = SAMPLER * (PAYS - SAMPLER @ PAYS)
    np.testing.assert_allclose(pull, [-0.174, 0.132, 0.042], atol=1e-12)
    # The others die out like 1 / time, and 20,000 steps of 0.1 times a pull of 0.1 leave less than a thousandth.
    np.testing.assert_allclose(trained(reinforce(), 20_000, 0.1), [0, 1, 0], atol=1e-3)


def test_a_one_sided_clip_stops_it():
    """All arms end at their bounds 0.8, 1.2 and 1.2 times the sampler's; the last step goes beyond them, by less than
    rate times the pull on an arm."""
    surrogate, advantage = build(pieces.one_side(low=0.2, high=0.2)), PAYS - SAMPLER @ PAYS
    np.testing.assert_allclose(trained(surrogate, 20_000, 1e-3), [0.16, 0.72, 0.12], atol=1e-3 * 0.174)
    logits = np.log(SAMPLER)
    for _ in range(100):  # at a rate of 0.5 the bounds are passed after few steps
        policy = np.exp(logits) / np.sum(np.exp(logits))
        alive = np.where(advantage > 0, policy <= 1.2 * SAMPLER, policy >= 0.8 * SAMPLER)
        pull = np.where(alive, SAMPLER * advantage, 0)
        logits = logits + 0.5 * (pull - policy * np.sum(pull))
    np.testing.assert_allclose(trained(surrogate, 20_000, 0.5), policy, rtol=1e-5)
    assert np.abs(policy - [0.16, 0.72, 0.12]).max() > 1e-3
