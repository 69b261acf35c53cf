"""Credit of tokens: identities, numbers of other libraries, and exact expectations over a small policy of sequences."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from instances_tokens import INSTANCES, LONGER_ANSWERS_ONLY

from jaxrl_llm.advantages._base import at_end, bare_rollout, chain, per_token
from jaxrl_llm.advantages._tokens import length_damping, prime_process, spans_to_tokens, top_fraction
from jaxrl_llm.advantages.baselines.group_mean import group_mean
from jaxrl_llm.advantages.baselines.leave_one_out import leave_one_out
from jaxrl_llm.advantages.baselines.no_baseline import no_baseline
from jaxrl_llm.advantages.tokens.confident_error_weights import confident_error_weights
from jaxrl_llm.advantages.tokens.dense_rewards import dense_rewards
from jaxrl_llm.advantages.tokens.gae import gae
from jaxrl_llm.advantages.tokens.optimal_token_baseline import optimal_token_baseline
from jaxrl_llm.advantages.tokens.oreal_token_weights import oreal_token_weights
from jaxrl_llm.advantages.tokens.prime import prime
from jaxrl_llm.advantages.tokens.reward_to_go import reward_to_go
from jaxrl_llm.advantages.tokens.span_credit import span_credit
from jaxrl_llm.advantages.tokens.token_whiten import token_whiten
from jaxrl_llm.advantages.tokens.top_entropy_mask import top_entropy_mask
from jaxrl_llm.losses import Objective, bare_tokens, entropy_bonus, reinforce
from jaxrl_llm.losses.corrections import Correction
from jaxrl_llm.losses.tea import tea_coefficients as eager_tea_coefficients

tea_coefficients = jax.jit(eager_tea_coefficients)  # compiled, as in training

TRANSFORMS = {
    **{name: make() for name, make in (INSTANCES | LONGER_ANSWERS_ONLY).items()},
    "dense_rewards": dense_rewards(),
    "oreal_token_weights": oreal_token_weights(),
}


@functools.cache
def compiled(transform):
    return jax.jit(lambda x, rollout: transform.update(x, transform.init(), rollout)[0])


def credit(transform, x, acted, valid=None, policy_logp=None, **extras):
    """Credit [P G T] of what comes in [P G T]."""
    x, acted = jnp.asarray(x), jnp.asarray(acted)
    rollout = bare_rollout(jnp.zeros(x.shape[:2]), None if valid is None else jnp.asarray(valid), acted)
    extras = {name: jnp.asarray(extra) for name, extra in extras.items()}
    logp = rollout.policy_logp if policy_logp is None else jnp.asarray(policy_logp)
    rollout = dataclasses.replace(rollout, extras=extras, policy_logp=logp)
    return compiled(transform)(x, rollout)


def lengths_to_acted(lengths, t):
    return np.arange(t) < np.asarray(lengths)[..., None]


# Laws. A batch with holes, answers without an acted token, invalid answers, and junk wherever nothing is to be read.

RNG = np.random.default_rng(0)
P, G, T = 4, 3, 6
ACTED = RNG.uniform(size=(P, G, T)) < 0.6
ACTED[0, 0] = [True, False, False, True, False, True]
ACTED[1, 2], ACTED[3] = False, False
VALID = np.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
WHERE = ACTED & VALID[..., None]
NAMES = ("value", "process_score", "token_reward", "token_score", "token_energy", "entropy")
FIELDS = {name: RNG.uniform(0.1, 1, size=(P, G, T)).astype(np.float32) for name in NAMES}
FIELDS |= {"x": RNG.normal(size=(P, G, T)).astype(np.float32), "policy_logp": -FIELDS["entropy"][::-1]}


def fields(where=WHERE, junk=0.0, take=lambda x: x):
    return {name: np.where(where, take(x), np.float32(junk)) for name, x in FIELDS.items()}


@pytest.fixture(scope="module")
def plain():
    return {name: np.asarray(credit(t, acted=ACTED, valid=VALID, **fields())) for name, t in TRANSFORMS.items()}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_is_no_acted_token_of_a_valid_answer_gets_0_and_changes_nothing(name, plain):
    assert np.all(plain[name][~WHERE] == 0)
    assert np.any(plain[name] != 0)
    for junk in (np.nan, np.inf, 1e30):
        np.testing.assert_array_equal(
            credit(TRANSFORMS[name], acted=ACTED, valid=VALID, **fields(junk=junk)), plain[name]
        )


@pytest.mark.parametrize("name", TRANSFORMS)
def test_holes_might_as_well_not_be_there(name, plain):
    order = np.argsort(~ACTED, axis=-1, kind="stable")
    close_up = lambda x: np.take_along_axis(x, order, axis=-1)  # noqa: E731
    where, acted = close_up(WHERE), close_up(ACTED)
    actual = credit(TRANSFORMS[name], acted=acted, valid=VALID, **fields(where, take=close_up))
    np.testing.assert_allclose(actual, close_up(plain[name]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_padding_and_order_change_nothing(name, plain):
    answers, prompts = np.argsort(RNG.uniform(size=(P, G)), axis=1)[..., None], RNG.permutation(P)

    def move(x, junk):
        x = np.take_along_axis(x, answers, axis=1)[prompts]
        return np.pad(x, ((0, 0), (0, 1), (0, 3)), constant_values=junk)

    moved = {key: move(x, np.nan) for key, x in fields().items()}
    valid = move(VALID[..., None], False)[..., 0]
    actual = credit(TRANSFORMS[name], acted=move(ACTED, False), valid=valid, **moved)
    np.testing.assert_allclose(actual, move(plain[name], 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_dtype_is_kept(name, plain):
    """The value only tells whether the same was computed: bfloat16 has 8 bits, and sums of credit lose some of them."""
    for dtype, tolerance in ((jnp.bfloat16, 0.1), (jnp.float32, 1e-5), (jnp.float64, 1e-5)):
        with jax.enable_x64(dtype == jnp.float64):
            x = fields()
            actual = credit(TRANSFORMS[name], acted=ACTED, valid=VALID, **x | {"x": jnp.asarray(x["x"], dtype)})
            assert actual.dtype == dtype
            np.testing.assert_allclose(np.asarray(actual, np.float64), plain[name], rtol=tolerance, atol=tolerance)


@functools.cache
def slope_of(transform):
    """Compiled derivative of a weighted sum of the credit with respect to what comes in, and the credit."""

    def weighted(incoming, rest, acted, valid):
        out = credit(transform, incoming, acted, valid, **rest)
        return jnp.sum(out * jnp.sin(jnp.arange(T))[None, None]), out

    def slope(given, acted, valid):
        rest = {key: value for key, value in given.items() if key != "x"}
        return jax.grad(weighted, has_aux=True)(given["x"], rest, acted, valid)

    return jax.jit(slope)


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("case", ["holes", "no acted token", "no valid answer", "one answer", "one token", "all zero"])
def test_credit_and_its_gradient_are_finite(case, name):
    acted, valid, x = ACTED, VALID, fields(junk=np.nan)
    first = np.arange(P * G).reshape(P, G) == 0
    if case == "no acted token":
        acted = np.zeros_like(ACTED)
    elif case in ("no valid answer", "one answer"):
        valid = first if case == "one answer" else np.zeros_like(VALID)
    elif case == "one token":
        acted = first[..., None] & (np.arange(T) == 3)
    elif case == "all zero":
        x = {key: np.zeros_like(value) for key, value in x.items()}
    x = {key: np.where(np.isnan(value) & acted & valid[..., None], 0, value) for key, value in x.items()}

    slope, out = slope_of(TRANSFORMS[name])({key: jnp.asarray(value) for key, value in x.items()}, acted, valid)
    where = acted & valid[..., None]
    assert np.all(np.isfinite(slope))
    assert np.all(np.isfinite(out))
    assert np.all(np.asarray(slope)[~where] == 0)
    assert np.all(np.asarray(out)[~where] == 0)


# reward_to_go


def test_reward_to_go_on_the_vector_of_skyrl():
    np.testing.assert_allclose(
        credit(reward_to_go(discount=0.5), [[[1.0, 2, 3]]], np.ones((1, 1, 3), bool)), [[[2.75, 3.5, 3]]]
    )


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
def test_reward_to_go_discounts_by_acted_tokens(discount):
    actual = credit(reward_to_go(discount=discount), FIELDS["x"], ACTED)
    for p, g in itertools.product(range(P), range(G)):
        x = FIELDS["x"][p, g, ACTED[p, g]].astype(np.float64)
        expected = [sum(discount ** (u - t) * x[u] for u in range(t, len(x))) for t in range(len(x))]
        np.testing.assert_allclose(np.asarray(actual)[p, g, ACTED[p, g]], expected, rtol=1e-5, atol=1e-6)


def test_a_reward_at_the_end_is_the_whole_credit_of_each_token():
    rollout = bare_rollout(jnp.asarray(FIELDS["x"][..., 0]), jnp.asarray(VALID), jnp.asarray(ACTED))
    update = lambda t: t.update(rollout.reward, t.init(), rollout)[0]  # noqa: E731
    np.testing.assert_array_equal(
        update(chain(at_end(group_mean()), reward_to_go(discount=1.0))), update(per_token(group_mean()))
    )


# gae


def verl_gae(x, value, acted, discount, decay):
    """The recursion from the back that skips tokens the policy did not choose (verl 1dda039, slime), one answer."""
    following = carried = 0.0
    out = np.zeros(len(x))
    for t in reversed(range(len(x))):
        if acted[t]:
            carried = x[t] + discount * following - value[t] + discount * decay * carried
            following = value[t]
            out[t] = carried
    return out


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 1.0), (1.0, 0.0), (0.9, 0.8), (1, 0.95), (0.0, 1.0)])
def test_gae_skips_the_tokens_that_verl_skips(discount, decay):
    actual = credit(gae(discount=discount, decay=decay), FIELDS["x"], ACTED, value=FIELDS["value"])
    for p, g in itertools.product(range(P), range(G)):
        expected = verl_gae(FIELDS["x"][p, g], FIELDS["value"][p, g], ACTED[p, g], discount, decay)
        np.testing.assert_allclose(actual[p, g], expected, rtol=1e-5, atol=1e-6)


def test_gae_of_decay_1_is_the_return_less_the_value_and_of_decay_0_the_error_of_one_step():
    x, value = np.array([[[0.0, 1, 0, 2]]]), np.array([[[0.5, 9, 1, 0.25]]])
    acted = np.array([[[True, False, True, True]]])
    np.testing.assert_allclose(credit(gae(discount=1, decay=1), x, acted, value=value), [[[1.5, 0, 1, 1.75]]])
    np.testing.assert_allclose(credit(gae(discount=1, decay=0), x, acted, value=value), [[[0.5, 0, -0.75, 1.75]]])


# token_whiten and REINFORCE++

GROUPS = np.array(
    [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0.2, 0.5, 0.9, 0.4]], np.float32
)
PEER_LENGTHS = np.broadcast_to([2, 5, 3, 4], (6, 4))
WHITEN = token_whiten(ddof=1, eps=1e-8, guard="variance")  # verl 1dda039


def plus_plus(transform, groups=GROUPS):
    rollout = bare_rollout(jnp.asarray(groups), acted=jnp.asarray(lengths_to_acted(PEER_LENGTHS, 5)))
    return np.asarray(compiled(transform)(rollout.reward, rollout))


@pytest.mark.parametrize(
    ("transform", "a", "d", "f"),
    [
        (
            chain(at_end(no_baseline()), reward_to_go(discount=1.0), WHITEN),
            [1.1147, -1.0231, -1.0231, -1.0231],
            -1.0231,
            [-0.5955, 0.0458, 0.9009, -0.1680],
        ),
        (
            chain(per_token(group_mean()), WHITEN),
            [2.3543, -0.6976, -0.6976, -0.6976],
            0.0654,
            [-0.8502, 0.0654, 1.2861, -0.2398],
        ),
    ],
    ids=["REINFORCE++", "REINFORCE++-baseline"],
)
def test_reinforce_plus_plus_as_in_verl(transform, a, d, f):
    out = plus_plus(transform)
    np.testing.assert_allclose(out[[0, 3, 5], :, 0], [a, [d] * 4, f], atol=6e-5)  # four decimals
    acted = lengths_to_acted(PEER_LENGTHS, 5)
    np.testing.assert_array_equal(out, np.where(acted, out[..., :1], 0))


def test_peer_defect_whitening_gives_a_group_without_signal_a_credit():
    """The mean over tokens is not 0 where length goes with reward, so row D is not 0, and the claim says so."""
    transform = chain(per_token(group_mean()), WHITEN)
    assert np.all(plus_plus(transform)[3, :, 0] > 0.06)
    assert not transform.traits.centred
    equal_lengths = plus_plus(transform, GROUPS * 0 + 1)
    np.testing.assert_array_equal(equal_lengths, 0)


def test_whitened_tokens_have_mean_0_and_deviation_1():
    for ddof in (0, 1):
        z = np.asarray(credit(token_whiten(ddof=ddof, eps=0.0, guard="variance"), FIELDS["x"], ACTED, VALID))[WHERE]
        np.testing.assert_allclose([z.mean(), z.std(ddof=ddof)], [0, 1], atol=1e-6)


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_whitening_golden_of_the_stable_reinforce_batch(shift):
    raw = shift + np.array([[[0.0, 0, 0, 0, 10]]])
    z = credit(token_whiten(ddof=0, eps=0.0, guard="floor"), raw, np.ones((1, 1, 5), bool))
    np.testing.assert_allclose(z, [[[-0.5] * 4 + [2]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("guard", "deviation"), [("variance", np.sqrt(16 + 9)), ("deviation", 4 + 9), ("floor", 4), ("floor high", 5)]
)
def test_whitening_puts_eps_where_it_is_told(guard, deviation):
    eps = 25.0 if guard == "floor high" else 9.0
    raw = np.array([[[0.0, 0, 0, 0, 10]]])
    z = credit(token_whiten(ddof=0, eps=eps, guard=guard.split()[0]), raw, np.ones((1, 1, 5), bool))
    np.testing.assert_allclose(z, (raw - 2) / deviation, rtol=1e-6)


# optimal_token_baseline

OTB = {
    (own, tail): optimal_token_baseline(leave_one_out=own, zero_tail=tail)
    for own in (True, False)
    for tail in (True, False)
}


def otb_of_group(x, energy, leave_one_out, zero_tail):
    """One group by loops: lists of returns and energies per acted token."""
    spent, out = [np.cumsum(e) for e in energy], [np.zeros(len(row)) for row in x]
    for i, row in enumerate(x):
        for k in range(len(row)):
            alive = [j for j in range(len(x)) if len(x[j]) > k]
            if alive == [i]:
                out[i][k] = row[k] if zero_tail else 0
                continue
            peers = [j for j in alive if j != i or not leave_one_out]
            weights = np.array([spent[j][k] for j in peers])
            out[i][k] = row[k] - weights @ [x[j][k] for j in peers] / weights.sum()
    return out


@pytest.mark.parametrize(("leave_one_out", "zero_tail"), OTB)
def test_optimal_token_baseline_compares_acted_tokens_of_one_number(leave_one_out, zero_tail):
    actual = np.asarray(
        credit(OTB[leave_one_out, zero_tail], FIELDS["x"], ACTED, VALID, token_energy=FIELDS["token_energy"])
    )
    for p in range(P):
        rows = [g for g in range(G) if WHERE[p, g].any()]
        read = lambda name, p=p, rows=rows: [FIELDS[name][p, g, WHERE[p, g]].astype(float) for g in rows]  # noqa: E731
        expected = otb_of_group(read("x"), read("token_energy"), leave_one_out, zero_tail)
        for g, row in zip(rows, expected, strict=True):
            np.testing.assert_allclose(actual[p, g, WHERE[p, g]], row, rtol=1e-5, atol=1e-6)


def test_optimal_token_baseline_by_hand():
    """verl's rule for the self-included form: W = (1), (3, 4); B = (1·1 + 2·3)/4 at the first token."""
    x, energy, acted = [[[1.0, 0], [2, 2]]], [[[1.0, 7], [3, 1]]], [[[True, False], [True, True]]]
    expected = {
        (False, True): [[-0.75, 0], [0.25, 2]],
        (False, False): [[-0.75, 0], [0.25, 0]],
        (True, True): [[-1, 0], [1, 2]],
        (True, False): [[-1, 0], [1, 0]],
    }
    for key, numbers in expected.items():
        np.testing.assert_allclose(credit(OTB[key], x, acted, token_energy=energy)[0], numbers, atol=1e-6)


def test_optimal_token_baseline_of_equal_energies_is_that_of_the_answers():
    """Equal energies and lengths: the group mean, or leave-one-out. Energies of 0 count as equal."""
    x = np.broadcast_to(GROUPS[..., None], (6, 4, 3))
    everywhere, energy = np.ones((6, 4, 3), bool), np.broadcast_to(np.float32([1, 0.5, 2]), (6, 4, 3))
    for own, baseline in ((True, leave_one_out()), (False, group_mean())):
        expected = plus_plus(per_token(baseline))[:, :, :1]
        for weights in (energy, 0 * energy):
            actual = credit(OTB[own, True], x, everywhere, token_energy=weights)
            np.testing.assert_allclose(actual, np.broadcast_to(expected, x.shape), atol=1e-6)


def test_optimal_token_baseline_gives_equal_answers_exactly_0_unless_the_tail_is_kept():
    x = np.full((P, G, T), 0.1, np.float32)
    for (own, tail), transform in OTB.items():
        out = np.asarray(credit(transform, x, ACTED, token_energy=FIELDS["token_energy"]))
        # The longest answer of prompt 0 alone is alive at the end of it.
        assert np.any(out != 0) == tail, (own, tail)
        assert np.all(np.isin(out, np.float32([0, 0.1])))
        assert transform.traits.centred != tail


def test_optimal_token_baseline_of_others_does_not_move_with_the_own_reward():
    """Not even in rounding: an own reward of 1e6 leaves the baseline of the others' rewards."""
    x = FIELDS["x"].copy()
    x[0, 0] = 1e6
    before, after = (
        x_[0, 0, 0] - np.asarray(credit(OTB[True, True], x_, ACTED, token_energy=FIELDS["token_energy"]))[0, 0, 0]
        for x_ in (FIELDS["x"], x)
    )
    # Next to 1e6 float32 holds multiples of 1/16; a baseline that moved would differ by 1e5.
    np.testing.assert_allclose(before, after, atol=1 / 16)


# prime


def loop_prime(q, reward, acted, scaled):
    """Process and outcome channel of one batch of answers without holes, by loops."""
    lengths = acted.sum(axis=-1)
    q = np.where(acted, q, 0)
    if scaled:
        q = q / np.abs(np.cumsum(q[..., ::-1], axis=-1)).max()
    process, outcome = np.zeros(q.shape), np.zeros(q.shape)
    for p, (group, some) in enumerate(zip(q, acted, strict=True)):
        n = len(group)
        means = [group[i, : lengths[p, i]].mean() for i in range(n)]
        for i, t in zip(*np.nonzero(some), strict=True):
            process[p, i, t] = n / (n - 1) * group[i, t] - sum(means) / (n - 1)
            outcome[p, i, t] = reward[p, i] - np.delete(reward[p], i).mean()
    return process, np.cumsum(process[..., ::-1], axis=-1)[..., ::-1] * acted, outcome


PRIME_ACTED = lengths_to_acted([[1, 4, 2], [3, 3, 4]], 4)
PRIME_Q = np.random.default_rng(1).normal(size=(2, 3, 4)).astype(np.float32)
PRIME_REWARD = np.array([[1, 0, 0], [0.5, 1, 1]], np.float32)


PRIME_PROCESS = jax.jit(prime_process, static_argnames="scale_by_batch_max")


def prime_credit(transform, q=PRIME_Q, acted=PRIME_ACTED, reward=PRIME_REWARD, valid=None):
    rollout = bare_rollout(jnp.asarray(reward), valid, jnp.asarray(acted), process_score=jnp.asarray(q))
    return np.asarray(compiled(transform)(rollout.reward, rollout))


@pytest.mark.parametrize("scaled", [True, False])
def test_prime_sums_two_channels(scaled):
    _, process, outcome = loop_prime(PRIME_Q.astype(float), PRIME_REWARD, PRIME_ACTED, scaled)
    transform = prime(scale_by_batch_max=scaled, process_coefficient=2.0, outcome_coefficient=3.0)
    actual = prime_credit(chain(at_end(no_baseline()), transform))
    np.testing.assert_allclose(actual, 2 * process + 3 * outcome, rtol=1e-5, atol=1e-5)
    default = prime_credit(chain(at_end(no_baseline()), prime(scale_by_batch_max=scaled)))
    np.testing.assert_allclose(default, 5 * process + 5 * outcome, rtol=1e-5, atol=1e-5)


def test_prime_process_credit_has_mean_0_over_the_means_of_answers():
    a = np.asarray(PRIME_PROCESS(jnp.asarray(PRIME_Q), jnp.asarray(PRIME_ACTED), scale_by_batch_max=True))
    means = a.sum(axis=-1) / PRIME_ACTED.sum(axis=-1)
    assert np.abs(means).max() > 0.1
    np.testing.assert_allclose(means.mean(axis=1), 0, atol=1e-6)


def test_prime_with_the_reference_as_reward_model_is_whitened_leave_one_out():
    both = chain(at_end(no_baseline()), prime(scale_by_batch_max=True), WHITEN)
    np.testing.assert_allclose(
        prime_credit(both, 0 * PRIME_Q), prime_credit(chain(per_token(leave_one_out()), WHITEN)), atol=1e-5
    )


def test_prime_does_not_see_the_scale_of_the_process_score():
    transform = chain(at_end(no_baseline()), prime(scale_by_batch_max=True))
    np.testing.assert_allclose(prime_credit(transform, 37 * PRIME_Q), prime_credit(transform), rtol=1e-5, atol=1e-5)
    assert not np.allclose(
        *(prime_credit(chain(at_end(no_baseline()), prime(scale_by_batch_max=False)), k * PRIME_Q) for k in (1, 37))
    )


def test_trap_the_process_channel_of_prime_is_not_leave_one_out():
    """It differs from qₜ less the mean of the others' means by (qₜ - own mean)/(n-1), so a token of a longer answer
    sees its own score in its baseline."""
    a = np.asarray(PRIME_PROCESS(jnp.asarray(PRIME_Q), jnp.asarray(PRIME_ACTED), scale_by_batch_max=False))
    q = np.where(PRIME_ACTED, PRIME_Q, 0)
    own = q.sum(axis=-1, keepdims=True) / PRIME_ACTED.sum(axis=-1, keepdims=True)
    others = (own.sum(axis=1, keepdims=True) - own) / 2
    exact = np.where(PRIME_ACTED, q - others, 0)
    gap = np.where(PRIME_ACTED, (q - own) / 2, 0)
    np.testing.assert_allclose(a - exact, gap, atol=1e-6)
    assert np.abs(gap).max() > 0.3


def test_trap_both_coefficients_of_prime_count():
    """In the first release that of the process channel changed a logged sum and nothing else."""
    outs = [
        prime_credit(chain(at_end(no_baseline()), prime(scale_by_batch_max=True, process_coefficient=c), WHITEN))
        for c in (5.0, 1.0)
    ]
    assert np.abs(outs[0] - outs[1]).max() > 0.1


def test_prime_gives_a_group_with_one_answer_0():
    transform = chain(at_end(no_baseline()), prime(scale_by_batch_max=True))
    valid = jnp.array([[True, False, False], [True, True, True]])
    out = prime_credit(transform, valid=valid)
    np.testing.assert_array_equal(out[0], 0)
    acted = PRIME_ACTED & np.array([[True, False, False], [True, True, True]])[..., None]
    np.testing.assert_allclose(prime_credit(transform, acted=acted), out, rtol=1e-6)


# dense rewards and spans


def test_spans_pay_each_token_they_cover():
    start, end = jnp.array([[[0, 2, 3]]]), jnp.array([[[2, 4, 3]]])
    paid = spans_to_tokens(start, end, jnp.array([[[1.0, -1, np.nan]]]), 5)
    np.testing.assert_array_equal(paid, [[[1, 1, -1, -1, 0]]])  # the empty third span could not be aligned
    over = spans_to_tokens(jnp.array([0, 1]), jnp.array([3, 2]), jnp.array([1.0, 0.5]), 3)
    np.testing.assert_array_equal(over, [1, 1.5, 1])


def test_one_span_over_the_answer_is_a_constant_reward_per_token():
    paid = spans_to_tokens(jnp.array([[0]]), jnp.array([[4]]), jnp.array([[0.5]]), 4)
    np.testing.assert_array_equal(paid, [[0.5] * 4])


def test_credit_after_the_last_flagged_span_is_0():
    """gae with both factors 1 and V = 0 is the reward-to-go of the spans."""
    paid = np.array([[[1.0, 0, -1, 0, 0]]])
    x, everywhere = np.zeros((1, 1, 5)), np.ones((1, 1, 5), bool)
    pay = chain(dense_rewards(), gae(discount=1.0, decay=1.0))
    np.testing.assert_array_equal(credit(pay, x, everywhere, token_reward=paid, value=x), [[[0, -1, -1, 0, 0]]])


def test_length_damping():
    position = jnp.array([0, 90, 96, 102, 1000])
    expected = [1 / (1 + np.exp(-10)), 1 / (1 + np.exp(-6)), 0.5, 1 / (1 + np.exp(6)), 1 / (1 + np.exp(6))]
    np.testing.assert_allclose(length_damping(position, 90, 1.0), expected, rtol=1e-5)
    np.testing.assert_allclose(length_damping(position, 90.0, 0.0)[3], 1 / (1 + np.exp(-6)), rtol=1e-5)


def test_span_credit_damps_by_the_number_of_acted_tokens_before():
    acted = np.array([[[True, False, True, True]]])
    out = credit(
        span_credit(suggested_length=1, slope=6.0), np.zeros((1, 1, 4)), acted, token_reward=np.ones((1, 1, 4))
    )
    expected = [1 / (1 + np.exp(-10)), 0, 1 / (1 + np.exp(-6)), 0.5]
    np.testing.assert_allclose(out, [[expected]], rtol=1e-5)


# OREAL


def test_oreal_weights_by_the_mean_logit_up_to_the_token():
    x = np.array([[[2.0, 2, 2, 2], [-2, -2, -2, -2]]])
    score = np.array([[[1.0, 99, 3, -10], [1, 99, 3, -10]]])
    acted = np.broadcast_to([True, False, True, True], (1, 2, 4))
    q = 1 / (1 + np.exp(-np.array([1, 2, -2.0])))  # means of 1; 1, 3; 1, 3, -10
    right, wrong = np.clip((q - 0.5) / 0.5, 0, 1), np.clip((0.5 - q) / 0.5, 0, 1)
    out = np.asarray(credit(oreal_token_weights(), x, acted, token_score=score))[:, :, [0, 2, 3]]
    np.testing.assert_allclose(out, [[2 * right, -2 * wrong]], rtol=1e-5, atol=1e-7)
    assert right[2] == 0
    assert wrong[0] == 0


def test_oreal_learns_nothing_where_the_reward_model_does_not_discriminate():
    np.testing.assert_array_equal(
        credit(oreal_token_weights(), FIELDS["x"], ACTED, token_score=0 * FIELDS["token_score"]), 0
    )


def test_oreal_weights_carry_no_gradient():
    score = lambda s: jnp.sum(credit(oreal_token_weights(), FIELDS["x"], ACTED, token_score=s))  # noqa: E731
    np.testing.assert_array_equal(jax.grad(score)(jnp.asarray(FIELDS["token_score"])), 0)


def test_trap_rewards_of_plus_and_minus_1_double_leave_one_out():
    """The four golden rows of OREAL; 0/1 rewards give half of them."""
    correct = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]], np.float32)
    expected = [[2, -2 / 3, -2 / 3, -2 / 3], [4 / 3, 4 / 3, -4 / 3, -4 / 3], [2 / 3, 2 / 3, 2 / 3, -2], [0, 0, 0, 0]]
    whole, half = (
        per_token(leave_one_out()).update(reward, (), bare_rollout(reward))[0][..., 0]
        for reward in (jnp.asarray(2 * correct - 1), jnp.asarray(correct))
    )
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    np.testing.assert_allclose(half, np.asarray(expected) / 2, atol=1e-6)


# Light-IF and entropy masks


def kept(transform, **more):
    return np.asarray(credit(transform, np.ones((P, G, T)), ACTED, VALID, **more)) != 0


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.5, 0.8, 1.0])
def test_confident_error_weights_keep_the_top_fraction_of_the_batch(fraction):
    ce, entropy = RNG.uniform(size=(2, P, G, T)).astype(np.float32)
    surplus = (ce - np.float32(0.8) * entropy)[WHERE]
    k = max(int(fraction * WHERE.sum()), 1)
    expected = WHERE & (ce - np.float32(0.8) * entropy >= np.sort(surplus)[-k])
    assert expected.sum() == k
    transform = confident_error_weights(fraction=fraction, entropy_factor=0.8)
    np.testing.assert_array_equal(kept(transform, policy_logp=-ce, entropy=entropy), expected)


def test_confident_error_weights_of_everything_and_of_the_hardest():
    everything = confident_error_weights(fraction=1, entropy_factor=1)
    np.testing.assert_array_equal(kept(everything, policy_logp=FIELDS["policy_logp"], entropy=FIELDS["entropy"]), WHERE)
    hardest = confident_error_weights(fraction=0.01, entropy_factor=0.0)
    only = kept(hardest, policy_logp=FIELDS["policy_logp"], entropy=1e3 * FIELDS["entropy"])
    assert only.sum() == 1
    assert FIELDS["policy_logp"][only][0] == FIELDS["policy_logp"][WHERE].min()


def test_the_surplus_of_own_samples_has_mean_0_at_entropy_factor_1():
    p = np.array([0.7, 0.2, 0.1])
    surplus = -np.log(p) - 1.0 * -(p @ np.log(p))
    np.testing.assert_allclose(p @ surplus, 0, atol=1e-12)
    transform = confident_error_weights(fraction=0.34, entropy_factor=1.0)
    entropy = np.full((1, 1, 3), -(p @ np.log(p)))
    out = credit(
        transform, np.ones((1, 1, 3)), np.ones((1, 1, 3), bool), policy_logp=np.log(p)[None, None], entropy=entropy
    )
    np.testing.assert_array_equal(out, [[[0, 0, 1]]])


def test_ties_at_the_threshold_are_all_kept_in_any_order():
    score = jnp.array([[[3.0, 1, 1, 1, 0, np.nan]]])
    where = jnp.array([[[True] * 5 + [False]]])
    np.testing.assert_array_equal(top_fraction(score, where, 0.4), [[[True, True, True, True, False, False]]])
    np.testing.assert_array_equal(
        top_fraction(score[..., ::-1], where[..., ::-1], 0.4)[..., ::-1], top_fraction(score, where, 0.4)
    )
    assert not np.any(top_fraction(score, jnp.zeros_like(where), 0.4))


def test_top_entropy_mask_keeps_the_most_open_tokens():
    entropy = np.where(WHERE, FIELDS["entropy"], 9)
    k = int(0.5 * WHERE.sum())
    expected = WHERE & (entropy >= np.sort(FIELDS["entropy"][WHERE])[-k])
    np.testing.assert_array_equal(kept(top_entropy_mask(fraction=0.5), entropy=entropy), expected)


# Entropy-adaptive coefficients


def loop_tea(advantage, logp, where):
    a, m = advantage[where].mean(), logp[where].mean()
    out = np.zeros(where.shape)
    for index in np.ndindex(where.shape[:2]):
        row = where[index]
        weight = np.exp((advantage[index][row] - a) * (logp[index][row] - m))
        out[index][row] = np.clip(10 * weight / weight.sum(), 0, 5) if row.any() else 0
    return out


def test_tea_coefficients():
    advantage, logp = 3 * FIELDS["x"], FIELDS["policy_logp"]
    actual = tea_coefficients(*(jnp.asarray(np.where(WHERE, x, np.nan)) for x in (advantage, logp)), jnp.asarray(WHERE))
    expected = loop_tea(advantage.astype(float), logp.astype(float), WHERE)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    assert expected.max() == 5


def test_tea_coefficients_of_equal_credit_are_10_over_the_length_at_most_5():
    acted = lengths_to_acted([[1, 2, 4, 0]], 4)
    actual = tea_coefficients(jnp.full((1, 4, 4), 0.3), jnp.asarray(RNG.normal(size=(1, 4, 4))), jnp.asarray(acted))
    np.testing.assert_allclose(actual, acted * np.array([5, 5, 2.5, 0])[None, :, None], rtol=1e-6)


def test_tea_coefficients_are_detached_from_nothing_but_the_mean():
    where = jnp.asarray(lengths_to_acted([[3]], 3))
    advantage, logp = jnp.array([[[0.3, -0.2, 0.5]]]), jnp.array([[[-0.1, -0.4, -0.2]]])
    slope = jax.jacobian(lambda logp: tea_coefficients(advantage, logp, where))(logp)[0, 0, :, 0, 0]
    share = np.asarray(tea_coefficients(advantage, logp, where))[0, 0] / 10
    centred = np.asarray(advantage)[0, 0] - 0.2
    np.testing.assert_allclose(slope, 10 * (np.diag(share) - np.outer(share, share)) * centred, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("length", [0, 1, 3])
def test_tea_coefficients_have_a_finite_derivative_beside_an_answer_without_a_token(length):
    where = jnp.asarray(lengths_to_acted([[length, 0]], 3))
    advantage, logp = (jnp.where(where, jnp.asarray(RNG.normal(size=(1, 2, 3))), jnp.nan) for _ in range(2))
    for argument in (0, 1):
        slope = jax.grad(lambda *x: jnp.sum(tea_coefficients(*x, where) ** 2), argument)(advantage, logp)
        assert np.all(np.isfinite(slope))
        assert np.all(np.asarray(slope)[~np.asarray(where)] == 0)


def test_trap_the_entropy_adaptive_bonus_can_be_reached():
    """In the released code it sits in a branch that is never taken, and its loss is overwritten."""
    tokens = bare_tokens(
        jnp.asarray(WHERE),
        logp=jnp.asarray(FIELDS["policy_logp"]),
        advantage=jnp.asarray(FIELDS["x"]),
        entropy=jnp.asarray(FIELDS["entropy"]),
    )
    tea = Correction(lambda tokens: tea_coefficients(tokens.advantage, tokens.logp, tokens.where), moving=True)
    bonus = entropy_bonus(0.5)
    losses = [
        Objective(surrogate=reinforce(), aggregate=lambda where: where / 1.0, penalties=penalties).loss(
            jnp.asarray(WHERE, jnp.float32), tokens
        )
        for penalties in ((), (bonus._replace(weight=tea),))
    ]
    coefficients = loop_tea(FIELDS["x"].astype(float), FIELDS["policy_logp"].astype(float), WHERE)
    expected = 0.5 * np.sum(coefficients * np.where(WHERE, FIELDS["entropy"], 0))
    np.testing.assert_allclose(losses[0] - losses[1], expected, rtol=1e-5)


# Exact expectations: every group of answers of a policy over {EOS, a, b} that writes at most three tokens.


class Policy:
    """Logits [7 3] for the prefixes "", a, b, aa, ab, ba, bb; token 0 is the EOS. Fifteen answers, float64.

    Each pays a reward at its end, and each token one of its own, so that nothing is left to symmetry.
    """

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        self.prefixes = [(), (1,), (2,), (1, 1), (1, 2), (2, 1), (2, 2)]
        texts = [text for n in (1, 2, 3) for text in itertools.product(range(3), repeat=n)]
        self.texts = [y for y in texts if 0 not in y[:-1] and (y[-1] == 0 or len(y) == 3)]
        self.logits, self.paid = rng.normal(size=(7, 3)), rng.normal(size=(7, 3))
        self.final = rng.normal(size=len(self.texts))
        self.acted = lengths_to_acted([len(y) for y in self.texts], 3)
        self.state = np.array([[self.prefixes.index(y[:t]) if t < len(y) else 0 for t in range(3)] for y in self.texts])
        self.token = np.array([[*y, 0, 0][:3] for y in self.texts])
        p = np.exp(self.logits) / np.exp(self.logits).sum(axis=-1, keepdims=True)
        self.probability = np.where(self.acted, p[self.state, self.token], 1).prod(axis=-1)
        self.energy = (1 - 2 * p + np.sum(p**2, axis=-1, keepdims=True))[self.state, self.token]
        self.dense = np.where(self.acted, self.paid[self.state, self.token], 0)
        self.score = np.zeros((len(self.texts), 3, 7, 3))
        for k, t in zip(*np.nonzero(self.acted), strict=True):
            self.score[k, t, self.state[k, t]] = np.eye(3)[self.token[k, t]] - p[self.state[k, t]]

    def gradient(self, dense):
        """Of the expected reward, by differentiation of the probabilities."""
        reward = self.final + (self.dense.sum(axis=-1) if dense else 0)

        def expected(logits):
            logp = jax.nn.log_softmax(logits)[self.state, self.token]
            return jnp.sum(jnp.exp(jnp.sum(jnp.where(self.acted, logp, 0), axis=-1)) * reward)

        return np.asarray(jax.grad(expected)(jnp.asarray(self.logits)))

    def value(self, dense):
        """Expected rewards from each prefix on, [texts T]."""
        future = self.final[:, None] + dense * np.cumsum(self.dense[:, ::-1], axis=-1)[:, ::-1]
        out = np.zeros(self.acted.shape)
        for k, t in zip(*np.nonzero(self.acted), strict=True):
            same = (self.state[:, t] == self.state[k, t]) & self.acted[:, t]
            out[k, t] = self.probability[same] @ future[same, t] / self.probability[same].sum()
        return out

    def expectation(self, transform, group, dense=False, valued=None):
        """E of 1/G Σ Aₜ sₜ over every group. The groups are the prompts of one batch."""
        every = np.array(list(itertools.product(range(len(self.texts)), repeat=group)))
        extras = {"token_energy": self.energy, "token_reward": self.dense if dense else 0 * self.dense}
        extras |= {
            "token_score": self.paid[self.state, self.token],
            "process_score": self.energy - 1,
            "value": np.zeros(self.acted.shape) if valued is None else valued,
        }
        rollout = bare_rollout(
            jnp.asarray(self.final[every]),
            acted=jnp.asarray(self.acted[every]),
            **{name: jnp.asarray(x[every]) for name, x in extras.items()},
        )
        out = compiled(transform)(rollout.reward, rollout)
        weight = self.probability[every].prod(axis=-1) / group
        return np.einsum("m,mgt,mgtsv->sv", weight, np.asarray(out), self.score[every])


@pytest.fixture
def policies():
    with jax.enable_x64(True):
        yield [Policy(seed) for seed in (0, 1)]


def terminal(*links):
    return chain(at_end(no_baseline()), *links)


def assert_biased(mean, gradient):
    cosine = np.sum(mean * gradient) / np.sqrt(np.sum(mean**2) * np.sum(gradient**2))
    assert cosine < 1 - 1e-4


def test_the_policy_is_enumerated_whole(policies):
    for policy in policies:
        assert len(policy.texts) == 15
        np.testing.assert_allclose(policy.probability.sum(), 1, rtol=1e-12)
        first = policy.value(dense=True)[:, 0]
        np.testing.assert_allclose(first, policy.probability @ (policy.final + policy.dense.sum(axis=-1)), rtol=1e-12)


@pytest.mark.parametrize("dense", [False, True])
def test_reward_to_go_is_unbiased_without_discount_alone(policies, dense):
    paid = (dense_rewards(),)
    for policy in policies:
        gradient = policy.gradient(dense)
        exact = policy.expectation(terminal(*paid, reward_to_go(discount=1.0)), 1, dense)
        np.testing.assert_allclose(exact, gradient, rtol=1e-9, atol=1e-12)
        assert_biased(policy.expectation(terminal(*paid, reward_to_go(discount=0.7)), 1, dense), gradient)
    assert reward_to_go(discount=1).traits.unbiased == "yes"
    assert reward_to_go(discount=0.7).traits.unbiased == "no"


def test_dense_rewards_without_reward_to_go_miss_what_a_token_brings_later(policies):
    for policy in policies:
        assert_biased(policy.expectation(terminal(dense_rewards()), 1, dense=True), policy.gradient(dense=True))


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("dense", [False, True])
def test_gae_with_exact_values_is_unbiased_for_any_decay(policies, dense, decay):
    for policy in policies:
        chained = terminal(dense_rewards(), gae(discount=1.0, decay=decay))
        mean = policy.expectation(chained, 1, dense, policy.value(dense))
        np.testing.assert_allclose(mean, policy.gradient(dense), rtol=1e-9, atol=1e-12)


def test_gae_with_a_wrong_value_is_unbiased_for_decay_1_alone(policies):
    for policy in policies:
        wrong = np.random.default_rng(2).normal(size=7)[policy.state]
        mean = policy.expectation(terminal(gae(discount=1.0, decay=1.0)), 1, valued=wrong)
        np.testing.assert_allclose(mean, policy.gradient(dense=False), rtol=1e-9, atol=1e-12)
        for decay in (0.0, 0.9):
            biased = policy.expectation(terminal(gae(discount=1.0, decay=decay)), 1, valued=wrong)
            assert_biased(biased, policy.gradient(dense=False))
    assert [gae(discount=1.0, decay=d).traits.unbiased for d in (1, 0.9)] == ["yes", "no"]


@pytest.mark.parametrize("group", [1, 2, 3])
def test_optimal_token_baseline_of_the_others_is_unbiased(policies, group):
    transform = terminal(dense_rewards(), reward_to_go(discount=1.0), OTB[True, True])
    for policy in policies:
        mean = policy.expectation(transform, group, dense=True)
        np.testing.assert_allclose(mean, policy.gradient(dense=True), rtol=1e-9, atol=1e-12)
    assert OTB[True, True].traits.unbiased == "yes"


@pytest.mark.parametrize("form", [(False, True), (False, False), (True, False)])
def test_other_forms_of_the_optimal_token_baseline_turn_the_gradient(policies, form):
    for policy in policies:
        mean = policy.expectation(terminal(reward_to_go(discount=1.0), OTB[form]), 3)
        assert_biased(mean, policy.gradient(dense=False))
    assert OTB[form].traits.unbiased == "no"


def test_prime_turns_the_gradient_by_its_process_channel_alone(policies):
    for policy in policies:
        means = [
            policy.expectation(terminal(prime(scale_by_batch_max=False, process_coefficient=c)), 3) for c in (1.0, 0.0)
        ]
        assert_biased(means[0], policy.gradient(dense=False))
        np.testing.assert_allclose(means[1], 5 * policy.gradient(dense=False), rtol=1e-9, atol=1e-12)


def test_oreal_weights_turn_the_gradient(policies):
    for policy in policies:
        mean = policy.expectation(chain(per_token(leave_one_out()), oreal_token_weights()), 2)
        assert_biased(mean, policy.gradient(dense=False))
    assert oreal_token_weights().traits.unbiased == "no"
