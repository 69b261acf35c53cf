"""The KL divergence of problem B to its reference policy: estimators of its value and of its gradient."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from problems import PATHS, VECTORS, B, assert_close, bigram, bigram_facts, log_softmax, token_logp

from jaxrl_llm.advantages import at_end, chain, no_baseline
from jaxrl_llm.advantages.tokens.dense_rewards import dense_rewards
from jaxrl_llm.advantages.tokens.reward_to_go import reward_to_go
from jaxrl_llm.losses.aggregate import answer_sum
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.penalties import k1, k2, k3, kl
from jaxrl_llm.losses.surrogates import reinforce
from jaxrl_llm.losses.tokens import bare_tokens
from jaxrl_llm.variance.exact import moments, moments_of
from jaxrl_llm.variance.tables import last_token

pytestmark = pytest.mark.usefixtures("float64")


def kl_tokens():
    table = bigram()
    logp, acted = jnp.asarray(token_logp(B["logits_by_context"])), table.acted
    return table, bare_tokens(acted[None], logp=logp[None], reference_logp=table.extras["reference_logp"][None])


def kl_of_contexts():
    rows, reference = log_softmax(B["logits_by_context"]), log_softmax(B["ref_logits"])
    kl = np.sum(np.exp(rows) * (rows - reference), axis=1)
    entropy = -np.sum(np.exp(rows) * rows, axis=1)
    contexts = [[last_token(path[:t]) for t in range(len(path))] for path in PATHS]
    return tuple(np.array([x[rows].sum() for rows in contexts]) for x in (kl, entropy))


def assert_estimate(pi, x, expected, kl):
    mean = pi @ x
    assert_close(mean, expected["mean"])
    assert_close(pi @ (x - mean) ** 2, expected["var"])
    if "bias" in expected:
        assert_close(mean - kl, expected["bias"])
        assert_close(x.min(), expected["min"])


def test_estimators_of_the_divergence():
    table, tokens = kl_tokens()
    pi, expected = np.asarray(table.probs), B["kl"]
    total = lambda cost: np.asarray(jnp.sum(jnp.where(tokens.where, cost(tokens), 0), axis=-1))[0]  # noqa: E731
    of_tokens, path_kl = {"k1": k1, "k2_token_sum": k2, "k3_token_sum": k3}, kl_of_contexts()[0]
    assert_close(pi @ path_kl, expected["kl"])
    x = total(k1)
    found = {name: total(cost) for name, cost in of_tokens.items()}
    found |= {"k2_sequence": x**2 / 2, "k3_sequence": np.expm1(-x) + x, "rao_blackwell": path_kl}
    control = np.expm1(-x)
    best = -(pi @ ((x - pi @ x) * control)) / (pi @ control**2)
    assert_close(best, expected["values"]["k1_optimal_cv"]["coef"])
    found["k1_optimal_cv"] = x + best * control
    assert set(found) == set(expected["values"])
    for name, values in found.items():
        assert_estimate(pi, values, expected["values"][name], expected["kl"])
    assert_close((pi * x) @ np.asarray(table.scores), expected["grad_kl"])


def test_t14_the_divergence_of_each_step_can_vary_more_than_the_log_ratio_of_the_path():
    """Entropy of problem B: exact conditional entropies vary more than -log π."""
    table, _ = kl_tokens()
    pi, entropy = np.asarray(table.probs), kl_of_contexts()[1]
    expected = B["kl"]["entropy_values"]
    assert_close(pi @ entropy, B["kl"]["entropy"])
    assert_estimate(pi, -np.log(pi), expected["mc"], None)
    assert_estimate(pi, entropy, expected["rao_blackwell"], None)
    assert expected["rao_blackwell"]["var"] > expected["mc"]["var"]


def test_t14_two_step_counterexample_to_rao_blackwell_by_steps():
    case = VECTORS["kl_rb_counterexample"]
    first, ref_first = np.array(case["pi_step1"]), np.array(case["ref_step1"])
    then, ref_then = np.array(case["pi_step2_given_y1"]), np.array(case["ref_step2_given_y1"])
    pi = first[:, None] * then
    path = np.log(first / ref_first)[:, None] + np.log(then / ref_then)
    steps = np.sum(first * np.log(first / ref_first)) + np.sum(then * np.log(then / ref_then), axis=1, keepdims=True)
    steps = np.broadcast_to(steps, pi.shape)
    kl = np.sum(pi * path)
    assert_close([kl, np.sum(pi * steps)], [case["kl"], case["rb_mean"]])
    assert_close(np.sum(pi * (path - kl) ** 2), case["var_k1"])
    assert_close(np.sum(pi * (steps - kl) ** 2), case["var_rb"])
    assert case["var_rb"] > 6 * case["var_k1"]


# Gradients. The reward is 0, so the estimate is of -∇KL(π‖ref); figures of the reference text in its own digits.


def unpaid():
    """Problem B with rewards of 0, and -log π/ref as token rewards."""
    table = bigram()
    lower = table.extras["reference_logp"] - jnp.where(table.acted, table.logp, 0)
    return dataclasses.replace(table, rewards=jnp.zeros(15), extras={**table.extras, "token_reward": lower})


def of_penalty(estimator, placement):
    objective = Objective(surrogate=reinforce(), aggregate=answer_sum(), penalties=(kl(estimator, 1.0, placement),))
    return moments(no_baseline(), unpaid(), 1, objective=objective, target=-jnp.asarray(B["kl"]["grad_kl"]))


def test_k1_in_the_reward_has_the_gradient_of_the_divergence():
    found = of_penalty(k1, "reward")
    assert_close(found.bias_norm, 0)
    assert abs(found.trace_var - 0.449) <= 0.5e-3


def test_k1_to_go_has_it_with_less_variance():
    to_go = chain(at_end(no_baseline()), dense_rewards(), reward_to_go(discount=1.0))
    found = moments(to_go, unpaid(), 1, target=-jnp.asarray(B["kl"]["grad_kl"]))
    assert_close(found.bias_norm, 0)
    assert abs(found.trace_var - 0.310) <= 0.5e-3


def test_k1_in_the_loss_has_a_gradient_of_mean_zero():
    assert_close(of_penalty(k1, "loss").mean_grad, np.zeros(9))


@pytest.mark.parametrize(("estimator", "bias"), [(k2, 0.0244), (k3, 0.0478)])
def test_token_costs_in_the_loss_miss_the_divergence_of_later_tokens(estimator, bias):
    assert abs(of_penalty(estimator, "loss").bias_norm - bias) <= 0.5e-4


def test_exact_divergence_of_each_step():
    """Σ_t ∇KL(h_t) has the mean of token k2; with s_t Σ_{u>t} KL(h_u) it has the gradient, and little variance."""
    table, f = bigram(), bigram_facts("binary")
    rows, reference = log_softmax(B["logits_by_context"]), log_softmax(B["ref_logits"])
    ratio, pi = rows - reference, np.exp(rows)
    kl_row = np.sum(pi * ratio, axis=1)
    slope = np.zeros((3, 9))  # dKL(h)/dlogits = π (log π/ref - KL)
    for c in range(3):
        slope[c, 3 * c : 3 * c + 3] = pi[c] * (ratio[c] - kl_row[c])
    path, full = np.zeros((15, 9)), np.zeros((15, 9))
    for n, answer in enumerate(PATHS):
        contexts = [last_token(answer[:t]) for t in range(len(answer))]
        for t, c in enumerate(contexts):
            path[n] += slope[c]
            full[n] += slope[c] + f.s[n, t] * sum(kl_row[later] for later in contexts[t + 1 :])
    target = jnp.asarray(B["kl"]["grad_kl"])
    assert_close(moments_of(jnp.asarray(path), table.probs, target).mean_grad, -of_penalty(k2, "loss").mean_grad)
    found = moments_of(jnp.asarray(full), table.probs, target)
    assert_close(found.bias_norm, 0)
    assert abs(found.trace_var - 0.0263) <= 0.5e-4
