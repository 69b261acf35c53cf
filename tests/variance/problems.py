"""The problems of `variance_vectors.json`, built from its constants: two bandits and a bigram policy."""

import functools
import json
import math
import pathlib
import types

import jax.numpy as jnp
import numpy as np

from jaxrl_llm.losses.ratios import answer_log_ratio
from jaxrl_llm.losses.surrogates import tapered
from jaxrl_llm.variance.tables import OutcomeTable, answers, last_token, softmax_bandit, tabular_policy

VECTORS = json.loads((pathlib.Path(__file__).parent / "variance_vectors.json").read_text(encoding="utf-8"))
RTOL, ATOL = VECTORS["meta"]["default_rtol"], VECTORS["meta"]["default_atol"]
B = VECTORS["problems"]["B"]
EOS, LENGTH = B["eos"], B["max_len"]
PATHS = answers(B["vocab"], EOS, LENGTH)


def assert_close(value, expected):
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=RTOL, atol=ATOL)


def assert_moments(moments, expected):
    """All fields of a case."""
    for name in ("trace_var", "bias_norm", "mse", "cos", "scale", "snr", "mse_rescaled", "mean_grad"):
        np.testing.assert_allclose(getattr(moments, name), expected[name], rtol=RTOL, atol=ATOL, err_msg=name)


def random_table(seed, *, binary=False, outcomes=4, dim=3):
    """A policy whose scores are features less their mean; 0/1 rewards hold at least one of each."""
    rng = np.random.default_rng(seed)
    features, probs = rng.normal(size=(outcomes, dim)), rng.dirichlet(np.full(outcomes, 2.0))
    rewards = rng.permutation([1.0, 0.0, *rng.integers(0, 2, outcomes - 2)]) if binary else rng.normal(size=outcomes)
    return OutcomeTable(probs, features - probs @ features, rewards)


def least_hits(repetitions, rate, chance):
    """The largest number that a binomial variable stays below with at most that probability."""
    below = 0.0
    for k in range(repetitions + 1):
        below += math.comb(repetitions, k) * rate**k * (1 - rate) ** (repetitions - k)
        if below > chance:
            return k
    return repetitions


@functools.cache
def bandit(name):
    """A (real rewards) or A2 (0/1); the greedy answer is the most probable one."""
    problem = VECTORS["problems"][name]
    greedy = problem["rewards"][int(np.argmax(problem["logits"]))]
    lengths = [int(length) for length in problem["lengths"]]
    return softmax_bandit(problem["logits"], problem["rewards"], lengths, prompt_extras={"greedy_reward": greedy})


@functools.cache
def bigram(rewards="binary", *, off_policy=False):
    """B with binary or dense rewards; off-policy, the answers come from the behaviour logits."""
    total = dict(zip(PATHS, B[rewards]["rewards"], strict=True))
    paid = [[*row, *[0.0] * (LENGTH - len(row))] for row in B[rewards]["token_rewards"]]
    return tabular_policy(
        B["logits_by_context"],
        total.get,
        eos=EOS,
        length=LENGTH,
        behaviour=B["behaviour_logits"] if off_policy else None,
        extras={"token_reward": np.array(paid), "reference_logp": token_logp(B["ref_logits"])},
        prompt_extras={"greedy_reward": total[greedy_path()]},
    )


def table_of(name):
    return bigram("binary") if name == "B_binary" else bandit(name)


def log_softmax(logits):
    logits = np.asarray(logits, float)
    return logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))


def token_logp(logits):
    """[N T], 0 after the end."""
    rows = log_softmax(logits)
    return np.array(
        [[rows[last_token(p[:t]), p[t]] if t < len(p) else 0.0 for t in range(LENGTH)] for p in PATHS], float
    )


def greedy_path():
    """The most probable token after each token."""
    path = ()
    while len(path) < LENGTH and (not path or path[-1] != EOS):
        path = (*path, int(np.argmax(B["logits_by_context"][last_token(path)])))
    return path


def spelled(prefix):
    return "".join(map(str, prefix))


@functools.cache
def bigram_facts(rewards):
    """Of B, in plain numpy: rewards to go, values, energies and the best baselines by position and by prefix."""
    table = bigram(rewards)
    f = types.SimpleNamespace(
        pi=np.asarray(table.probs), s=np.asarray(table.token_scores), acted=np.asarray(table.acted)
    )
    f.to_go = np.cumsum(np.asarray(table.extras["token_reward"])[:, ::-1], axis=1)[:, ::-1]
    f.energy = np.sum(f.s**2, axis=-1)
    f.cross = np.einsum("nu,nud,ntd->nt", f.to_go, f.s, f.s)
    f.prefix = [[spelled(path[:t]) if t < len(path) else None for t in range(LENGTH)] for path in PATHS]
    return f


def by_prefix(f, above, below):
    """E[above | prefix] / E[below | prefix] at each token, [N T], and by prefix."""
    names = sorted({p for row in f.prefix for p in row if p is not None}, key=lambda p: (len(p), p))
    member = np.array([[[p == name for p in row] for row in f.prefix] for name in names])
    ratio = np.einsum("n,hnt,nt->h", f.pi, member, above) / np.einsum("n,hnt,nt->h", f.pi, member, below)
    return np.einsum("hnt,h->nt", member, ratio), dict(zip(names, ratio, strict=True))


def by_position(f, above, below):
    """E[above] / E[below] at each position, over the answers that reach it."""
    return (f.pi @ (above * f.acted)) / (f.pi @ (below * f.acted))


def baseline(f, kind):
    """[N T] and the number or numbers it is made of."""
    everywhere = lambda b: np.broadcast_to(b, f.to_go.shape)  # noqa: E731
    if kind == "zero":
        return everywhere(0.0), 0.0
    if kind == "seq_bstar":
        e = np.sum(np.sum(f.s, axis=1) ** 2, axis=-1)
        b = f.pi @ (f.to_go[:, 0] * e) / (f.pi @ e)
        return everywhere(b), b
    if kind == "value":
        return by_prefix(f, f.to_go, f.acted.astype(float))
    if kind.startswith("prefix"):
        return by_prefix(f, f.cross if kind == "prefix_exact" else f.to_go * f.energy, f.energy)
    weight = np.cumsum(f.energy, axis=1) if kind == "otb" else f.energy
    b = by_position(f, f.cross if kind == "pos_exact" else f.to_go * weight, weight)
    return everywhere(b), b


def truncated(maximum):
    """min(w, maximum) of the whole answer, for either sign of the credit."""
    taper = lambda x: jnp.minimum(jnp.exp(x), maximum)  # noqa: E731
    return tapered(positive=taper, negative=taper, ratio=answer_log_ratio)
