"""What does Reinforce-Ada maximise: how does the weight on ∇p of a prompt depend on its pass rate?

Claim: with as many right as wrong answers and the rate of all drawn as the baseline, the weight is
((1-p)² + p²) / (2p(1-p)) (arXiv 2510.04996, the limit of unlimited drawing).

Rule, before the numbers, with 8 answers kept of at most 4 rounds of 8, all 6561 counts by round enumerated: the weight
is within 5% of the closed form for p from 0.3 to 0.7; at p = 0.05 and 0.95, where 32 answers seldom hold four of each
kind, it is below half of it; the mean of the drawn answers, which stops on the rewards, is off by more than 0.01 at
p = 0.2.
"""

import functools
import itertools
import math
import pathlib

import jax.numpy as jnp
import numpy as np

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from jaxrl_llm.advantages import bare_rollout, chain, group_mean, group_std
from jaxrl_llm.advantages.baselines.pool_mean import pool_mean
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.rollouts.select.reinforce_ada import balanced
from jaxrl_llm.variance.bernstein import slope
from jaxrl_llm.variance.binary import scheme_of

NAME = "adaptive_weight"
QUESTION = "What does Reinforce-Ada maximise: how does the weight on ∇p of a prompt depend on its pass rate?"
CLAIM = (
    "With as many right as wrong answers and the rate of all drawn as the baseline, the weight is "
    "((1-p)² + p²) / (2p(1-p)) (arXiv 2510.04996, for unlimited drawing)."
)
KEEP, ROUND, ROUNDS = 8, 8, 4
RATES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
NEAR, FAR = (0.3, 0.7), (0.05, 0.95)


@functools.cache
def pools() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """By counts of right answers in each round [6561 4]: those counts, and kept answers' rewards, credit and `drawn`.

    Answers of a round are exchangeable: which of them are right changes no number here.
    """
    counts = np.array(list(itertools.product(range(ROUND + 1), repeat=ROUNDS)))
    reward = jnp.asarray((np.arange(ROUND) < counts[..., None]).reshape(len(counts), -1).astype(np.float64))
    kept = balanced(KEEP, ROUND, ROUNDS)(bare_rollout(reward))
    baseline = pool_mean()
    credit, _ = baseline.update(kept.reward, baseline.init(), kept)
    return counts, np.asarray(kept.reward), np.asarray(credit), np.asarray(kept.extras["drawn"])


def weight_of(reward: np.ndarray, credit: np.ndarray, p: float) -> np.ndarray:
    """What each group puts on ∇p, on average over what its right and its wrong answers say: E[s | right] = ∇p/p and
    E[s | wrong] = -∇p/(1-p), so 1/G (Σ A⁺/p - Σ A⁻/(1-p))."""
    return np.mean(credit * (reward / p - (1 - reward) / (1 - p)), axis=1)


def of_ada(p: float) -> dict[str, float]:
    """Weight, answers drawn, and mean of the drawn ones, over all pools."""
    counts, reward, credit, drawn = pools()
    row = np.array([math.comb(ROUND, k) * p**k * (1 - p) ** (ROUND - k) for k in range(ROUND + 1)])
    chance = row[counts].prod(axis=1)
    rate = reward - credit  # the baseline, at every answer
    return {
        "weight": float(chance @ weight_of(reward, credit, p)),
        "drawn": float(chance @ drawn),
        "mean of the drawn": float(chance @ rate[:, 0]),
    }


def ideal(p: float) -> float:
    """The closed form."""
    return ((1 - p) ** 2 + p**2) / (2 * p * (1 - p))


def measured() -> list[dict]:
    """A row a pass rate."""
    peers = {"GRPO, G = 8": chain(group_mean(), group_std(ddof=0, eps=0.0)), "group mean, G = 8": group_mean()}
    schemes = {name: scheme_of(transform, KEEP) for name, transform in peers.items()}
    rows = []
    for p in RATES:
        found = of_ada(p)
        rows.append(
            {"p": p}
            | found
            | {"closed form": ideal(p), "weight / closed form": found["weight"] / ideal(p)}
            | {name: float(slope(scheme.coefficients, p)) for name, scheme in schemes.items()}
        )
    return rows


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed."""
    ratio = {row["p"]: row["weight / closed form"] for row in rows}
    inside = [x for p, x in ratio.items() if NEAR[0] <= p <= NEAR[1]]
    bias = next(row["mean of the drawn"] - row["p"] for row in rows if row["p"] == 0.2)
    return [
        Part("weight over the closed form, least of p from 0.3 to 0.7", exact(min(inside)), "above", 0.95),
        Part("the largest of them", exact(max(inside)), "below", 1.05),
        Part("at p = 0.05 and 0.95, the larger", exact(max(ratio[p] for p in FAR)), "below", 0.5),
        Part("mean of the drawn answers less p, at p = 0.2", exact(bias), "above", 0.01),
    ]


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, decide and publish; a smoke run is the whole. Returns the verdict."""
    rows = measured()
    word, reason = decided(parts(rows))
    figure, (left, right) = figure_of(1, 2, (10, 3.8))
    at = [row["p"] for row in rows]
    for number, name in enumerate(("weight", "closed form", "GRPO, G = 8", "group mean, G = 8")):
        label = {"weight": "Reinforce-Ada, 8 kept of at most 32", "closed form": "its limit"}.get(name, name)
        left.plot(at, [row[name] for row in rows], "os^D"[number] + "-", color=PALETTE[number], label=label, ms=4)
    left.set(xlabel="pass rate p", ylabel="weight on ∇p", yscale="log")
    left.legend(frameon=False, fontsize=8)
    right.plot(at, [row["drawn"] for row in rows], "o-", color=PALETTE[0], ms=4)
    right.set(xlabel="pass rate p", ylabel="answers drawn to a prompt, mean", ylim=(0, ROUND * ROUNDS + 1))
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} Every pool is enumerated: there is no sampling error.",
        command=command,
        rows=rows,
        figure=figure,
        out=out,
    )
    return word


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
