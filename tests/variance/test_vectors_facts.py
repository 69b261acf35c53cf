"""Reference vectors other than the cases: facts of the problems, F'(p), Bernstein coefficients, small examples."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    PATHS,
    VECTORS,
    B,
    assert_close,
    bandit,
    baseline,
    bigram,
    bigram_facts,
    spelled,
    table_of,
)

from jaxrl_llm.advantages import chain, group_mean, group_std, leave_one_out, no_baseline
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.advantages.baselines.group_quantile import group_quantile
from jaxrl_llm.advantages.baselines.length_weighted import length_weighted
from jaxrl_llm.advantages.scales.fixed_beta_density import fixed_beta_density
from jaxrl_llm.advantages.weights.focal import focal
from jaxrl_llm.advantages.weights.log_odds import log_odds
from jaxrl_llm.advantages.weights.maxrl_centred import maxrl_centred
from jaxrl_llm.advantages.weights.maxrl_centred_full import maxrl_centred_full
from jaxrl_llm.advantages.weights.maxrl_raw import maxrl_raw
from jaxrl_llm.advantages.weights.negative_only import negative_only
from jaxrl_llm.advantages.weights.pass_at_k import pass_at_k
from jaxrl_llm.advantages.weights.positive_only import positive_only
from jaxrl_llm.advantages.weights.top_gap import top_gap
from jaxrl_llm.losses.corrections import effective_sample_size
from jaxrl_llm.variance.bernstein import slope
from jaxrl_llm.variance.binary import BinaryMoments, scheme_of
from jaxrl_llm.variance.designs import systematic
from jaxrl_llm.variance.exact import moments, moments_of
from jaxrl_llm.variance.moments import RlooMoments
from jaxrl_llm.variance.tables import bernoulli

SCHEMES = {
    "reinforce": no_baseline,
    "mean": group_mean,
    "rloo": leave_one_out,
    "grpo": lambda: chain(group_mean(), group_std(ddof=0, eps=0.0)),
    "grpo_ddof1": lambda: chain(group_mean(), group_std(ddof=1, eps=0.0)),
    "maxrl_raw": maxrl_raw,
    "maxrl_centered_masked": lambda: maxrl_centred(eps=0.0),
    "maxrl_centered_full": maxrl_centred_full,
    "logit": log_odds,
    "pos_only": positive_only,
    "neg_only": negative_only,
    "topgap": top_gap,
    "passk": lambda k_: pass_at_k(k=int(k_)),
    "bnpo": lambda alpha, beta: chain(group_mean(), fixed_beta_density(alpha=float(alpha), beta=float(beta))),
    "focal": lambda gamma: focal(gamma=float(gamma)),
    "quantile": lambda K: group_quantile(level=float(K)),
}

pytestmark = pytest.mark.usefixtures("float64")


# Problems.


def facts_of(table):
    pi, r, s = np.asarray(table.probs), np.asarray(table.rewards), np.asarray(table.scores)
    e, g, value = np.sum(s**2, axis=1), (pi * r) @ s, float(pi @ r)
    fisher, m1, m2 = pi @ e, pi @ (r * e), pi @ (r**2 * e)
    coord = (pi * r) @ s**2 / (pi @ s**2)
    lengths = np.asarray(table.lengths)
    covariance = (s.T * pi) @ s
    control = np.linalg.pinv(covariance, rcond=1e-10) @ ((s.T * (pi * r)) @ s)
    residual = r[:, None] * s - g[None, :] - s @ control
    one = lambda b: moments(constant(value=float(b)), table, 1).trace_var  # noqa: E731
    by_coordinate = moments_of(jnp.asarray((r[:, None] - coord[None, :]) * s), table.probs, table.gradient)
    return {
        "value": value,
        "reward_var": pi @ r**2 - value**2,
        "grad": g,
        "grad_norm_sq": g @ g,
        "fisher_trace": fisher,
        "energy_reward": m1,
        "energy_reward_sq": m2,
        "cov_reward_energy": m1 - value * fisher,
        "b_star_scalar": m1 / fisher,
        "b_star_coord": coord,
        "b_length_weighted": pi @ (lengths * r) / (pi @ lengths),
        "var1_none": one(0.0),
        "var1_value": one(value),
        "var1_bstar": one(m1 / fisher),
        "var1_coord": by_coordinate.trace_var,
        "var1_matrix": pi @ np.sum(residual**2, axis=1),
    }


@pytest.mark.parametrize("name", ["A", "A2", "binary", "dense"])
def test_facts(name):
    """The tables are those of the vectors. The matrix control variate leaves nothing to a bandit."""
    table = bandit(name) if name in ("A", "A2") else bigram(name)
    problem = VECTORS["problems"][name] if name in ("A", "A2") else B[name]
    assert_close(table.probs, VECTORS["problems"]["A" if name in ("A", "A2") else "B"]["probs"])
    found = facts_of(table)
    assert set(found) == set(problem["facts"])
    for fact, value in found.items():
        np.testing.assert_allclose(value, problem["facts"][fact], rtol=1e-9, atol=1e-11, err_msg=fact)


def test_answers_are_in_order():
    assert [spelled(path) for path in PATHS] == B["sequences"]


@pytest.mark.parametrize("rewards", ["binary", "dense"])
def test_values_and_baselines_of_positions_and_prefixes(rewards):
    f, expected = bigram_facts(rewards), B[rewards]
    assert_close(np.sum(f.pi[:, None] * f.energy, axis=0), expected["fisher_by_position"])
    assert_close(baseline(f, "seq_bstar")[1], expected["b_seq_star"])
    for kind in ("pos_exact", "pos_energy", "otb"):
        name = "b_position_" + kind.removeprefix("pos_")
        assert_close(np.asarray(baseline(f, kind)[1]), expected[name])
    for kind, name in (("value", "value_by_prefix"), ("prefix_exact", "b_prefix_exact")):
        found = baseline(f, kind)[1]
        assert set(found) == set(expected[name])
        assert_close([found[p] for p in found], [expected[name][p] for p in found])
    found = baseline(f, "prefix_energy")[1]
    assert_close([found[p] for p in found], [expected["b_prefix_energy"][p] for p in found])


@pytest.mark.parametrize("name", ["A2", "B_binary"])
def test_binary_moments(name):
    problem = VECTORS["problems"]["A2" if name == "A2" else "B"]
    assert_binary_moments(BinaryMoments.of(table_of(name)), problem["binary_moments"])


def assert_binary_moments(m, expected):
    names = {"p": m.p, "tau_pos": m.tau_plus, "tau_neg": m.tau_minus, "grad_p_sq": m.grad_p_norm2}
    assert set(names) <= set(expected)
    for field, value in names.items():
        assert_close(value, expected[field])


def test_the_behaviour_policy():
    table, expected = bigram(off_policy=True), B["off_policy"]
    mu, pi = table.drawn, table.probs
    assert_close(mu, expected["behaviour_probs"])
    assert_close(pi / mu, expected["seq_ratio"])
    assert_close(jnp.sum(pi**2 / mu) - 1, expected["chi2"])
    assert_close(1 / jnp.sum(pi**2 / mu), expected["ess_fraction"])
    w2e = mu * (pi / mu) ** 2 * table.energy
    assert_close(jnp.sum(w2e * table.rewards) / jnp.sum(w2e), expected["b_offpolicy_star"])


def test_effective_sample_size_of_a_sample_in_proportion_to_the_behaviour_policy():
    """(Σ w)² / (N Σ w²) of counts 3, 1: w = 2 three times and 1 once."""
    w = jnp.asarray([[[2.0], [2.0], [2.0], [1.0]]])
    assert_close(effective_sample_size(w, jnp.ones(w.shape, bool)), 49 / (4 * 13))


# Binary rewards: F'(p) and its Bernstein coefficients.


@pytest.mark.parametrize("scheme", sorted({(f["scheme"], tuple(f["params"].items())) for f in VECTORS["fprime"]}))
def test_weight_on_the_gradient_of_the_pass_rate(scheme):
    name, params = scheme
    transform, seen = SCHEMES[name](**dict(params)), 0
    for row in VECTORS["fprime"]:
        if (row["scheme"], tuple(row["params"].items())) == scheme:
            found = moments(transform, bernoulli(row["p"]), row["G"])
            assert_close(found.scale, row["fprime"])
            assert_close(slope(scheme_of(transform, row["G"]).coefficients, row["p"]), row["fprime"])
            if transform.traits.f_prime is not None:
                assert_close(transform.traits.f_prime(row["p"], row["G"]), row["fprime"])
            seen += 1
    assert seen == 8


@pytest.mark.parametrize("key", VECTORS["bernstein"])
def test_bernstein_coefficients(key):
    name, *params, group = key.split("|")
    transform = SCHEMES[name](**dict(p.split("=") for p in params))
    assert_close(scheme_of(transform, int(group.removeprefix("G="))).coefficients, VECTORS["bernstein"][key])


@pytest.mark.parametrize("row", VECTORS["binary_formula"], ids=lambda row: row["scheme"])
def test_t9_four_numbers_give_the_variance_of_every_binary_scheme(row):
    transform, g, m = SCHEMES[row["scheme"]](), row["G"], BinaryMoments.of(table_of(row["problem"]))
    assert_binary_moments(m, row)
    scheme, found = scheme_of(transform, g), moments(transform, table_of(row["problem"]), g)
    assert_close([m.variance(scheme), found.trace_var], [row["trace_var"]] * 2)
    assert_close([m.weight(scheme), found.scale], [row["fprime"]] * 2)


@pytest.mark.parametrize("row", VECTORS["bernoulli_logit"], ids=lambda row: str(row["p"]))
def test_bernoulli_logit(row):
    p, table = row["p"], bernoulli(row["p"])
    one = lambda b: moments(constant(value=b), table, 1).trace_var  # noqa: E731
    assert_close(table.gradient, [row["grad"]])
    assert_close(one(0.0), row["var_none"])
    assert_close(one(p), row["var_value"])
    assert_close(one(row["b_star"]), row["var_bstar"])
    assert_close(row["b_star"], 1 - p)
    m = RlooMoments.of(table)
    assert_close(m.best_constant, row["b_star"])
    for b, name in ((0.0, "var_none"), (p, "var_value"), (row["b_star"], "var_bstar")):
        assert_close(m.constant_variance(b, 1), row[name])
    for g in (2, 4, 8):
        assert_close(moments(leave_one_out(), table, g).trace_var, row[f"var_rloo_G{g}"])
        assert_close(m.leave_one_out_variance(g), row[f"var_rloo_G{g}"])


# Figures of the reference text that the vectors leave out, in its ten digits.

FIGURES = [
    ("A", leave_one_out, 4, {"trace_var": 0.0410178483}),
    ("A", group_mean, 4, {"trace_var": 0.0230725397, "bias_norm": 0.0576856471}),
    ("A", SCHEMES["grpo"], 4, {"trace_var": 0.1587268875}),
    ("A", lambda: length_weighted(leave_one_out=True), 4, {"trace_var": 0.0483212308}),
    ("A", lambda: energy_weighted(leave_one_out=True), 4, {"trace_var": 0.0400954168}),
    ("B_binary", leave_one_out, 3, {"trace_var": 0.1741454581}),
]


@pytest.mark.parametrize(("name", "build", "group", "figures"), FIGURES)
def test_figures_of_larger_groups(name, build, group, figures):
    found = moments(build(), table_of(name), group)
    for field, value in figures.items():
        assert abs(getattr(found, field) - value) <= 0.5e-10, field


def test_figures_of_grpo_in_groups_of_four():
    found = moments(SCHEMES["grpo"](), bandit("A"), 4)
    assert abs(found.scale - 1.879812) <= 0.5e-6
    assert abs(found.cos - 0.996874) <= 0.5e-6


def test_figures_of_systematic_draws():
    """A fiftieth of the variance of independent draws, which the value as a baseline cannot match."""
    found = moments(no_baseline(), bandit("A"), 4, design=systematic)
    assert abs(found.trace_var - 0.0059120378) <= 0.5e-10
    assert_close(found.bias_norm, 0)
