"""Every case of the reference vectors, in float64 at their own tolerance, through the transforms of the library.

The vectors (schema version 1, numpy 2.4.6) were enumerated without this library.
"""

import dataclasses
import itertools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from problems import LENGTH, VECTORS, B, assert_moments, baseline, bigram, bigram_facts, table_of

from jaxrl_llm.advantages import at_end, chain, group_mean, group_std, leave_one_out, no_baseline
from jaxrl_llm.advantages.baselines.constant import constant
from jaxrl_llm.advantages.baselines.energy_weighted import energy_weighted
from jaxrl_llm.advantages.baselines.greedy import greedy
from jaxrl_llm.advantages.baselines.group_quantile import group_quantile
from jaxrl_llm.advantages.baselines.length_weighted import length_weighted
from jaxrl_llm.advantages.baselines.logit_proxy_weighted import logit_proxy_weighted
from jaxrl_llm.advantages.baselines.shrunk_leave_one_out import shrunk_leave_one_out
from jaxrl_llm.advantages.scales.fixed_beta_density import fixed_beta_density
from jaxrl_llm.advantages.tokens.gae import gae
from jaxrl_llm.advantages.tokens.optimal_token_baseline import optimal_token_baseline
from jaxrl_llm.advantages.tokens.reward_to_go import reward_to_go
from jaxrl_llm.advantages.weights.focal import focal
from jaxrl_llm.advantages.weights.log_odds import log_odds
from jaxrl_llm.advantages.weights.maxrl_centred import maxrl_centred
from jaxrl_llm.advantages.weights.maxrl_centred_full import maxrl_centred_full
from jaxrl_llm.advantages.weights.maxrl_raw import maxrl_raw
from jaxrl_llm.advantages.weights.negative_only import negative_only
from jaxrl_llm.advantages.weights.pass_at_k import pass_at_k
from jaxrl_llm.advantages.weights.positive_only import positive_only
from jaxrl_llm.advantages.weights.top_gap import top_gap
from jaxrl_llm.losses.aggregate import (
    answer_mean,
    answer_sum,
    fixed_divisor,
    token_mean,
    variance_reduced_length,
)
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.surrogates import reinforce
from jaxrl_llm.variance.designs import antithetic, set_probability, systematic, without_replacement
from jaxrl_llm.variance.exact import moments, moments_of

CASES = VECTORS["cases"]
PREFIX_BASELINES = ["seq_bstar", "pos_energy", "pos_exact", "otb", "value", "prefix_energy", "prefix_exact"]

pytestmark = pytest.mark.usefixtures("float64")


def facts(problem):
    return B["binary"]["facts"] if problem == "B_binary" else VECTORS["problems"][problem]["facts"]


def population(name):
    """A constant baseline that is a fact of the problem."""
    return lambda case: constant(value=facts(case.problem)[name])


def freed(transform):
    """Without the claim that it needs independent answers, so that its bias can be measured where they are not."""
    return transform._replace(traits=dataclasses.replace(transform.traits, needs_iid=False))


@dataclasses.dataclass(frozen=True)
class Case:
    problem: str
    estimator: str
    group: int


# Credit of whole answers, drawn independently: name -> case -> transform.
PLAIN = {
    "none": lambda case: no_baseline(),
    "const_0.3": lambda case: constant(value=0.3),
    "value": population("value"),
    "bstar": population("b_star_scalar"),
    "bstar_length": population("b_length_weighted"),
    "greedy_remax": lambda case: greedy(),
    "mean": lambda case: group_mean(),
    "rloo": lambda case: leave_one_out(),
    "rloo_kappa_star": lambda case: shrunk_leave_one_out(factor=CASES[spelling(case)]["kappa"]),
    "grpo_ddof0": lambda case: chain(group_mean(), group_std(ddof=0, eps=0.0)),
    "grpo_ddof1_eps1e-6": lambda case: chain(group_mean(), group_std(ddof=1, eps=1e-6)),
    "opo": lambda case: length_weighted(leave_one_out=False),
    "opo_loo": lambda case: length_weighted(leave_one_out=True),
    "energy": lambda case: energy_weighted(leave_one_out=False),
    "energy_loo": lambda case: energy_weighted(leave_one_out=True),
    "logit_energy": lambda case: logit_proxy_weighted(leave_one_out=False),
    "logit_energy_loo": lambda case: logit_proxy_weighted(leave_one_out=True),
    "quantile_0.4": lambda case: group_quantile(level=0.4),
    "quantile_0.6": lambda case: group_quantile(level=0.6),
    "maxrl_centered_masked": lambda case: maxrl_centred(eps=0.0),
    "maxrl_centered_full": lambda case: maxrl_centred_full(),
    "maxrl_raw": lambda case: maxrl_raw(),
    "bnpo_1.5_1.5": lambda case: chain(group_mean(), fixed_beta_density(alpha=1.5, beta=1.5)),
    "bnpo_2_3": lambda case: chain(group_mean(), fixed_beta_density(alpha=2.0, beta=3.0)),
    "passk_k2": lambda case: pass_at_k(k=2),
    "pos_only": lambda case: positive_only(),
    "neg_only": lambda case: negative_only(),
    "topgap": lambda case: top_gap(),
    "logit": lambda case: log_odds(),
    "focal_2": lambda case: focal(gamma=2.0),
}


def spelling(case):
    return f"{case.problem}/{case.estimator}/G{case.group}"


def plain(case):
    return moments(PLAIN[case.estimator](case), table_of(case.problem), case.group)


def designed(case):
    """antithetic_*, systematic_*, wor_*."""
    kind, name = case.estimator.split("_")
    design = {"antithetic": antithetic, "systematic": systematic, "wor": without_replacement}[kind]
    return moments(freed(PLAIN[name](case)), table_of(case.problem), case.group, design=design)


def second_order(case):
    """Sets drawn without replacement with the baseline built from the set itself (Kool et al., 2020).

    Σ_{i in S} π_i R_i (r_i - Σ_{j in S} π_j R_ij r_j) s_i,  R_i = p(S \\ i without i) / p(S),
    R_ij = p(S \\ ij without ij) / p(S \\ i without i), and R_ii = 1.
    Not a credit of the library: R needs the whole policy.
    """
    table = table_of(case.problem)
    pi, r, s = np.asarray(table.probs), np.asarray(table.rewards), np.asarray(table.scores)
    sets = list(itertools.combinations(range(len(pi)), case.group))
    p = lambda chosen, removed: set_probability(pi, chosen, removed)  # noqa: E731
    mass, estimates = [p(chosen, ()) for chosen in sets], []
    for chosen, total in zip(sets, mass, strict=True):
        estimate = 0
        for i in chosen:
            rest = [j for j in chosen if j != i]
            left = p(rest, [i])
            b = pi[i] * r[i] + sum(pi[j] * r[j] * p([k for k in rest if k != j], [i, j]) / left for j in rest)
            estimate = estimate + pi[i] * left / total * (r[i] - b) * s[i]
        estimates.append(estimate)
    return moments_of(jnp.asarray(np.array(estimates)), jnp.asarray(mass), table.gradient)


def valued(value):
    """Problem B with these values of the prefixes, [N T]."""
    table = bigram("binary")
    return dataclasses.replace(table, extras={**table.extras, "value": jnp.asarray(value)})


def token_level(case):
    """total_return, reward_to_go."""
    to_go = chain(at_end(no_baseline()), reward_to_go(discount=1.0))
    return moments(no_baseline() if case.estimator == "total_return" else to_go, bigram("binary"), case.group)


def to_go_less(case):
    """rtg_minus_*: decay 1 is the return to go less whatever stands for the value."""
    b, _ = baseline(bigram_facts("binary"), case.estimator.removeprefix("rtg_minus_"))
    return moments(chain(at_end(no_baseline()), gae(discount=1.0, decay=1.0)), valued(b), case.group)


def advantage_estimation(case):
    """gae_lamX_true_value, gae_lamX_bad_value."""
    decay, kind = re.fullmatch(r"gae_lam([\d.]+)_(true|bad)_value", case.estimator).groups()
    value, _ = baseline(bigram_facts("binary"), "value")
    wrong = 0 if kind == "true" else 0.2 * np.arange(LENGTH) - 0.1
    return moments(
        chain(at_end(no_baseline()), gae(discount=1.0, decay=float(decay))), valued(value + wrong), case.group
    )


def all_action(case):
    """Σ_t Σ_a ∇π(a | h_t) Q(h_t, a) along the path, which is Σ_t E[s_t Q | h_t]: no credit of sampled tokens."""
    f, table = bigram_facts("binary"), bigram("binary")
    estimates = 0
    for t in range(LENGTH):
        same = np.array([[row[t] is not None and row[t] == other[t] for other in f.prefix] for row in f.prefix])
        weight = same * f.pi / np.maximum((same * f.pi).sum(1, keepdims=True), 1e-300)
        estimates = estimates + weight @ (f.s[:, t] * f.to_go[:, t : t + 1])
    return moments_of(jnp.asarray(estimates), table.probs, table.gradient)


LENGTHS = {
    "len_seq_sum": answer_sum(),
    "len_seq_mean_grpo": answer_mean(),
    "len_token_mean_dapo": token_mean(),
    "len_const_drgrpo": fixed_divisor(divisor=float(LENGTH)),
    "len_vl_norm_alpha1": variance_reduced_length(alpha=1.0),
    "len_vl_norm_alpha0.75": variance_reduced_length(alpha=0.75),
}


def aggregated(case):
    """len_*"""
    objective = Objective(surrogate=reinforce(), aggregate=LENGTHS[case.estimator])
    return moments(leave_one_out(), bigram("binary"), case.group, objective=objective)


def token_baselines(case):
    """otb_group, otb_group_loo. What one answer alone reaches gets 0 where it is its own baseline, else its return."""
    alone = case.estimator.endswith("loo")
    otb = optimal_token_baseline(leave_one_out=alone, zero_tail=alone)
    return moments(chain(at_end(no_baseline()), reward_to_go(discount=1.0), otb), bigram("binary"), case.group)


EXPECTED = {
    "|".join(map(re.escape, PLAIN)): plain,
    r"(antithetic|systematic)_\w+|wor_none|wor_value": designed,
    "wor_builtin": second_order,
    "total_return|reward_to_go": token_level,
    "rtg_minus_(" + "|".join(PREFIX_BASELINES) + ")": to_go_less,
    r"gae_lam[\d.]+_(true|bad)_value": advantage_estimation,
    "all_action_true_q": all_action,
    "|".join(map(re.escape, LENGTHS)): aggregated,
    "otb_group(_loo)?": token_baselines,
}


@pytest.mark.parametrize("key", CASES)
def test_case(key):
    problem, estimator, group = key.split("/")
    builders = [build for pattern, build in EXPECTED.items() if re.fullmatch(pattern, estimator)]
    assert len(builders) == 1, f"{key} has {len(builders)} builders"
    assert_moments(builders[0](Case(problem, estimator, int(group[1:]))), CASES[key])
