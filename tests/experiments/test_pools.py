"""Experiments on pools of answers: the pools, their rules of decision, and that each runs from end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import (
    baseline_target,
    binary_sufficiency,
    bnpo_variance,
    f_of_p_on_pool,
    leave_one_out_on_pool,
    noise_scale,
    self_inclusion,
    shrinkage_on_pool,
    stale_weights,
)
from experiments.answers import WORDS
from experiments.decisions import Part, decide
from experiments.pool_reports import geometric_mean, ratio_of_sums
from experiments.pools import Figures, Pool, resample, smoke
from jaxrl_llm.advantages import group_mean, leave_one_out, no_baseline
from jaxrl_llm.variance.moments import RlooMoments
from jaxrl_llm.variance.tables import OutcomeTable

P, M = 4, 24


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    """One small policy with its pools for all experiments here."""
    return smoke(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def made_up():
    draw = np.random.default_rng(0)
    scores = draw.normal(size=(P, M, 6)) * draw.gamma(1.0, size=(P, M, 1))
    length = draw.integers(1, 4, (P, M)).astype(float)
    energy = np.where(np.arange(3) < length[..., None], draw.uniform(0.1, 1, (P, M, 3)), 0)
    reward = (draw.uniform(size=(P, M)) < 0.4).astype(float)
    gram = np.einsum("pmd,pnd->pmn", scores, scores)
    return Pool(step=np.zeros(P), reward=reward, length=length, token_energy=energy, scores=gram), scores


EXPERIMENTS = [
    baseline_target,
    self_inclusion,
    binary_sufficiency,
    noise_scale,
    bnpo_variance,
    leave_one_out_on_pool,
    f_of_p_on_pool,
    shrinkage_on_pool,
    stale_weights,
]


@pytest.mark.long
@pytest.mark.parametrize("module", EXPERIMENTS)
def test_a_smoke_run_leaves_an_answer(laboratory, module, tmp_path):
    verdict = module.run(laboratory, "the command", tmp_path)
    assert verdict in WORDS
    answer = (tmp_path / "answer.md").read_text(encoding="utf-8")
    assert f"**Verdict: {verdict}**" in answer
    assert "the command" in answer
    assert len((tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()) > 2
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_groups_from_a_pool_vary_as_the_closed_forms_say(made_up):
    pool, scores = made_up
    estimators = {"rloo": leave_one_out(), "mean": group_mean(), "none": no_baseline()}
    found = resample(pool, estimators, 4, draws=20000, seed=3)
    with jax.enable_x64(True):
        for p in range(P):
            centred = jnp.asarray(scores[p] - scores[p].mean(axis=0))
            table = OutcomeTable(probs=jnp.full(M, 1 / M), scores=centred, rewards=jnp.asarray(pool.reward[p]))
            facts = RlooMoments.of(table)
            wanted = {
                "rloo": facts.leave_one_out_variance(4),
                "mean": facts.group_mean_variance(4),
                "none": facts.constant_variance(0.0, 4),
            }
            for name, variance in wanted.items():
                # Twelve comparisons: 4.5 standard errors are left once in 10^4 runs.
                assert abs(found[name].variance[p] / float(variance) - 1) < 4.5 * found[name].error[p]
                assert found[name].error[p] < 0.05
            np.testing.assert_allclose(found["rloo"].signal[p], float(facts.gradient_norm2), rtol=1e-9)
    np.testing.assert_allclose(found["mean"].scale, 0.75 * found["rloo"].scale, rtol=1e-9)
    np.testing.assert_allclose(found["mean"].mse_rescaled, found["rloo"].mse_rescaled, rtol=1e-6)


def test_four_numbers_of_a_pool_predict_its_groups(made_up):
    pool, _ = made_up
    with jax.enable_x64(True):
        inside = binary_sufficiency.predicted(binary_sufficiency.of_pool(pool), 8)
    seen = resample(pool, binary_sufficiency.SCHEMES, 8, draws=20000, seed=1)
    for name, x in seen.items():
        sure = x.error < 0.05
        assert np.all(np.abs(inside[name] / x.variance - 1)[sure] < 5 * x.error[sure]), name


def test_the_law_of_a_pool_is_that_of_its_table_and_its_groups_obey_it(made_up):
    pool, scores = made_up
    groups = (2, 5)
    with jax.enable_x64(True):
        law = leave_one_out_on_pool.law_of(pool)
        found = leave_one_out_on_pool.drawn(pool, groups, 60_000)
        for p in range(P):
            centred = jnp.asarray(scores[p] - scores[p].mean(axis=0))
            table = OutcomeTable(probs=jnp.full(M, 1 / M), scores=centred, rewards=jnp.asarray(pool.reward[p]))
            for field, value in vars(RlooMoments.of(table)).items():
                np.testing.assert_allclose(getattr(law, field)[p], value, rtol=1e-9, err_msg=field)
        # Twenty-four comparisons: 5 standard errors are left once in 10^5 runs.
        for i, g in enumerate(groups):
            rloo, none = (np.asarray(x) for x in (law.leave_one_out_variance(g), law.constant_variance(0.0, g)))
            assert np.all(np.abs(found.variance[:, i] / rloo - 1) < 5 * found.error[:, i])
            assert np.all(np.abs(found.gain[:, i] - (none - rloo)) < 5 * found.gain_error[:, i])
            spread = np.sqrt(rloo * pool.signal / (60_000 // g))  # of <ĝ, g>, at most
            assert np.all(np.abs(found.along[:, i] - (1 - 1 / g) * pool.signal) < 5 * spread)


def test_groups_of_a_pool_push_with_the_weight_of_their_scheme(made_up):
    pool, _ = made_up
    with jax.enable_x64(True):
        found = f_of_p_on_pool.weights(pool, 4000)
    for name, law in found.law.items():
        # Forty-eight comparisons: 5 standard errors are left once in 4 * 10^4 runs.
        assert np.all(np.abs(found.measured[name] - law) < 5 * found.error[name]), name
    # 1 - (1 - 1/G) of the group mean, of the same groups as leave-one-out.
    np.testing.assert_allclose(found.measured["group mean"], 7 / 8 * found.measured["leave-one-out"], rtol=1e-9)


def test_halves_share_no_answer(made_up):
    pool, _ = made_up
    rows = np.concatenate([pool.half(odd).energy.shape for odd in (False, True)])
    assert list(rows) == [P, M // 2, P, M // 2]
    both = pool.half(False).reward.sum(axis=1) + pool.half(True).reward.sum(axis=1)
    np.testing.assert_array_equal(both, pool.reward.sum(axis=1))
    np.testing.assert_allclose(pool.half(True).gram.sum(axis=1), 0, atol=1e-9)


def test_parts_make_a_verdict():
    yes, no, open_ = (Part("x", interval, "below", 1) for interval in ((0.5, 0.4, 0.6), (2, 1.5, 3), (1, 0.5, 2)))
    assert decide([yes])[0] == "reproduced"
    assert decide([yes, open_])[0] == "undecided"
    assert decide([yes, open_, no])[0] == "refuted"
    assert Part("x", (2, 1.5, 3), "above", 1).holds is True
    assert Part("x", (0.5, 0.4, 0.6), "above", 1).holds is False
    assert Part("x", (np.nan, np.nan, np.nan), "above", 1).holds is None
    with pytest.raises(ValueError, match="at least one part"):
        decide([])


def test_intervals_over_prompts():
    draw = np.random.default_rng(5)
    low = ratio_of_sums(draw.gamma(4.0, size=200), np.ones(200))
    assert low[1] < 4 < low[2]
    assert low[2] - low[1] == pytest.approx(2 * 1.96 * 2 / np.sqrt(200), rel=0.15)
    np.testing.assert_allclose(geometric_mean(np.full(6, 0.25)), 0.25, rtol=1e-12)
    assert np.all(np.isnan(ratio_of_sums(np.ones(3), np.ones(3))))


def figures(variance, cos=1.0):
    ones = np.ones(8)
    along = cos * ones
    return Figures(np.asarray(variance) * np.linspace(0.9, 1.1, 8), ones, along, ones, 0.01 * ones)


def test_rules_refute_what_is_not_so():
    flat = np.linspace(0.9, 1.1, 8)
    spread = {name: level * flat for name, level in {"V": 1, "b*": 2, "logit proxy": 3, "length": 1, "zero": 4}.items()}
    assert decide(baseline_target.parts(spread, np.ones(8, bool)))[0] == "refuted"
    spread |= {"b*": 0.2 * flat, "logit proxy": 0.3 * flat, "zero": 0.5 * flat, "length": 0.99 * flat}
    assert decide(baseline_target.parts(spread, np.ones(8, bool)))[0] == "reproduced"
    assert decide(baseline_target.length_parts(spread))[0] == "refuted"

    names = ("energy", "logit proxy")
    kind = lambda own, others, cos: {  # noqa: E731
        "leave-one-out": figures(1.0),
        **{f"{name}, self": figures(own, cos) for name in names},
        **{f"{name}, others": figures(others) for name in names},
    }
    good, late = kind(0.2, 0.7, 0.98), kind(0.5, 0.8, 0.99)
    assert decide(self_inclusion.parts({4: good, 8: late}))[0] == "reproduced"
    assert decide(self_inclusion.parts({4: kind(0.2, 0.25, 0.98), 8: late}))[0] == "refuted"

    right, noise = np.full((8, 3), 1.01), np.full((8, 3), 0.3)
    assert decide(binary_sufficiency.parts(right, noise, noise))[0] == "reproduced"
    assert decide(binary_sufficiency.parts(1.3 * right, noise, noise))[0] == "refuted"
    assert decide(binary_sufficiency.parts(right, 2 * noise, noise))[0] == "refuted"

    def rows(gram, far):
        levels = {"two-batch": 1.0, "ANOVA": 1.0, "Gram": gram}
        sizes = {0: (0.1, far), 5: (0.5, 50.0)}
        for step, (rate, level) in sizes.items():
            for way, factor in levels.items():
                x = level * factor
                yield {"step": step, "way": way, "pass rate": rate, "noise scale": x, "low": 0.97 * x, "high": 1.03 * x}

    assert decide(noise_scale.parts(list(rows(1.0, 100.0))))[0] == "reproduced"
    assert decide(noise_scale.parts(list(rows(2.0, 100.0))))[0] == "refuted"
    assert decide(noise_scale.parts(list(rows(1.0, 20.0))))[0] == "refuted"


def test_the_rule_of_leave_one_out_on_pools():
    """Answers of one energy, pass rates around 1/4: leave-one-out wins from G = 5 or so."""
    groups, value, signal = (2, 8, 32), np.linspace(0.2, 0.3, 8), np.full(8, 0.01)
    spread = value * (1 - value)
    with jax.enable_x64(True):
        law = RlooMoments(
            value=value,
            reward_variance=spread,
            fisher_trace=np.ones(8),
            energy_covariance=np.zeros(8),
            value_variance=spread - signal,
            pair_variance=spread + signal,
            gradient_norm2=signal,
        )
        each = lambda of: np.stack([np.asarray(of(g)) for g in groups], axis=1)  # noqa: E731
        rloo, none = each(law.leave_one_out_variance), each(lambda g: law.constant_variance(0.0, g))
        along, small = each(lambda g: (1 - 1 / g) * signal), np.full((8, 3), 1e-6)
        good = leave_one_out_on_pool.Drawn(rloo, np.full((8, 3), 0.01), none - rloo, small, along)
        verdict = lambda found: decide(leave_one_out_on_pool.parts(found, law, groups))[0]  # noqa: E731
        assert verdict(good) == "reproduced"
        assert verdict(good._replace(variance=1.2 * rloo)) == "refuted"
        assert verdict(good._replace(along=0.8 * along)) == "refuted"
        swapped = leave_one_out_on_pool.parts(good._replace(gain=rloo - none), law, groups)
        assert [part.holds for part in swapped] == [True, True, True, False, False]
        late = good.gain.copy()
        late[:, 1] *= -1  # lost at 8, which the law does not allow
        assert leave_one_out_on_pool.parts(good._replace(gain=late), law, groups)[-1].holds is False
        assert verdict(good._replace(error=np.full((8, 3), 0.5))) == "undecided"


def test_the_rule_of_f_of_p_on_pools():
    rate, flat = np.linspace(0.08, 0.6, 12), np.ones(12)
    names, order = f_of_p_on_pool.SCHEMES, lambda n: (1 - (1 - rate) ** n) / rate
    law = dict.fromkeys(names, flat) | {"MaxRL": order(7), "group std": 2 * (rate * (1 - rate)) ** -0.2}
    small = {name: 1e-4 * law[name] for name in names}
    verdict = lambda **x: decide(f_of_p_on_pool.parts(f_of_p_on_pool.Weights(law | x, small, law | x), rate))[0]  # noqa: E731
    assert verdict() == "reproduced"
    assert verdict(MaxRL=order(8)) == "refuted"
    assert verdict(MaxRL=order(6)) == "refuted"
    assert verdict(**{"group std": (rate * (1 - rate)) ** -0.4}) == "refuted"
    off = f_of_p_on_pool.Weights(law | {"focal": 1.06 * flat}, small, law)
    assert decide(f_of_p_on_pool.parts(off, rate))[0] == "refuted"
    blind = f_of_p_on_pool.Weights(law, {name: flat for name in names}, law)
    assert decide(f_of_p_on_pool.parts(blind, rate))[0] == "undecided"
    np.testing.assert_allclose(f_of_p_on_pool.flatness(rate, 3 * (rate * (1 - rate)) ** -0.5), 1, rtol=1e-9)


def test_the_rule_of_the_noise_of_bnpo():
    def rows(own, width=1.1):
        levels = {name: 1.0 for name in bnpo_variance.METHODS} | {"BNPO": own}
        for step in (0, 50):
            for name, x in levels.items():
                yield {"step": step, "method": name, "noise": x, "low": x / width, "high": x * width}

    assert decide(bnpo_variance.parts(list(rows(0.8))))[0] == "reproduced"
    assert decide(bnpo_variance.parts(list(rows(1.25))))[0] == "refuted"
    assert decide(bnpo_variance.parts(list(rows(0.8, np.inf))))[0] == "undecided"
    # Two of 1.1 either way at each of two steps: the half-width of the log of the mean ratio is log 1.1.
    _, low, high = bnpo_variance.parts(list(rows(0.8)))[0].interval
    np.testing.assert_allclose([low, high], [0.8 / 1.1, 0.8 * 1.1])


def test_the_rule_of_shrinkage_on_a_pool():
    def rows(**changes):
        names = (shrinkage_on_pool.BASE, shrinkage_on_pool.LEFT_OUT, shrinkage_on_pool.RELEASED, shrinkage_on_pool.HALF)
        ratios = dict(zip(names, (1.0, 0.8, 0.7, 0.6), strict=True)) | changes.get("ratios", {})
        scales = dict.fromkeys(names, 1.0) | {shrinkage_on_pool.RELEASED: 0.9} | changes.get("scales", {})
        for name in names:
            row = {"step": 0, "G": 2, "estimator": name, "variance / leave-one-out's": ratios[name], "cosine": 1.0}
            row |= {"low": 0.95 * ratios[name], "high": 1.05 * ratios[name], "scale": scales[name]}
            yield row | {"scale low": scales[name] - 0.001, "scale high": scales[name] + 0.001}

    def verdict(**changes):
        return decide(shrinkage_on_pool.parts(list(rows(**changes))))[0]

    assert verdict() == "reproduced"
    for bad in (
        {"ratios": {shrinkage_on_pool.LEFT_OUT: 1.2}},
        {"ratios": {shrinkage_on_pool.HALF: 0.9}},
        {"scales": {shrinkage_on_pool.LEFT_OUT: 1.02}},
        {"scales": {shrinkage_on_pool.LEFT_OUT: 0.98}},
        {"scales": {shrinkage_on_pool.RELEASED: 1.0}},
    ):
        assert verdict(**bad) == "refuted"
    assert verdict(ratios={shrinkage_on_pool.LEFT_OUT: 0.98}) == "undecided"


def test_the_rule_of_stale_weights():
    def rows(growth=3.0, ratios=(0.8, 0.7, 0.6)):
        following = dict(zip(stale_weights.ORDER[1:], ratios, strict=True))
        for step, level in ((0, 1.0), (200, growth)):
            for name in stale_weights.ORDER:
                row = {"step": step, "weight": name, "trace": level, "low": 0.9 * level, "high": 1.1 * level}
                x = following.get(name, 1.0)
                yield row | {"over the weight before it": x, "its low": 0.9 * x, "its high": 1.1 * x}

    assert decide(stale_weights.parts(list(rows())))[0] == "reproduced"
    assert decide(stale_weights.parts(list(rows(growth=0.5))))[0] == "refuted"
    assert decide(stale_weights.parts(list(rows(growth=1.1))))[0] == "undecided"
    for at in range(3):
        assert (
            decide(stale_weights.parts(list(rows(ratios=[1.3 if i == at else 0.5 for i in range(3)]))))[0] == "refuted"
        )
