"""How should a fixed number of answers be split into prompts and answers per prompt?

Claim: there is a best group size that does not depend on the budget (arXiv 2603.01162); with leave-one-out N tr Var =
a + b/(G-1) + G X, least at G* = 1 + sqrt(b/X), and single answers are best where a baseline is known from elsewhere
(SPO, arXiv 2509.13232).

Rule, before the numbers: enumerated batches obey the law to 1e-9; a, b and X fitted to simulated variances give a G*
whose bootstrap interval lies within a factor 1.5 of the law's; one step of G away from the best costs below 10%; with
the value as the baseline N tr Var is least at G = 1.
"""

import pathlib

import numpy as np

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from experiments.problems import pool
from jaxrl_llm.advantages import greedy, leave_one_out
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.moments import VarianceSplit

NAME = "group_size"
QUESTION = "How should a fixed number of answers be split into prompts and answers per prompt?"
CLAIM = (
    "There is a best group size, independent of the budget (arXiv 2603.01162): N tr Var = a + b/(G-1) + G X of "
    "leave-one-out is least at G* = 1 + sqrt(b/X). With a baseline known from elsewhere one answer a prompt is best "
    "(SPO, arXiv 2509.13232). Own expectation beside it: one answer more or less than the best costs below 10%."
)
SIZES = (2, 3, 4, 6, 8, 12, 16)


def simulated(draws: int, seed: int) -> np.ndarray:
    """N tr Var of leave-one-out by group size, |ĝ - ḡ|² G of one prompt drawn [sizes, draws]: ĝ has mean ḡ."""
    rng, tables, found = np.random.default_rng(seed), pool(), []
    mean = np.mean([np.asarray(t.gradient) for t in tables], axis=0)
    for g in SIZES:
        square = []
        for table, count in zip(tables, rng.multinomial(draws, np.full(len(tables), 1 / len(tables))), strict=True):
            chosen = rng.choice(len(table.probs), (count, g), p=np.asarray(table.probs))
            reward, score = np.asarray(table.rewards)[chosen], np.asarray(table.scores)[chosen]
            credit = (reward - reward.mean(axis=1, keepdims=True)) * g / (g - 1)
            square.append(np.sum((np.einsum("mg,mgd->md", credit, score) / g - mean) ** 2, axis=1))
        found.append(g * rng.permutation(np.concatenate(square)))
    return np.stack(found)


def fitted(costs: np.ndarray, weights: np.ndarray) -> float:
    """G* of the least-squares a, b and X."""
    sizes = np.array(SIZES, float)
    design = np.stack([np.ones_like(sizes), 1 / (sizes - 1), sizes], axis=1)
    _, b, x = np.linalg.lstsq(design * weights[:, None], costs * weights, rcond=None)[0]
    return 1 + np.sqrt(max(b, 0) / x) if x > 0 else np.inf


def fit_with_interval(sample: np.ndarray, replicates: int = 500) -> tuple[float, float, float]:
    """G* with a 95% bootstrap interval over the groups."""
    rng, draws = np.random.default_rng(1), sample.shape[1]
    weights = draws**0.5 / sample.std(axis=1)
    again = [fitted(sample[:, rng.integers(0, draws, draws)].mean(axis=1), weights) for _ in range(replicates)]
    return fitted(sample.mean(axis=1), weights), *np.quantile(again, [0.025, 0.975])


def enumerated() -> list[dict]:
    """Batches of B prompts with G answers, by enumeration and by the law."""
    split, tables = VarianceSplit.of(pool()), list(pool())
    rows = []
    for b, g in ((1, 2), (1, 3), (1, 4), (1, 6), (2, 2), (3, 2), (2, 3)):
        found = b * g * moments(leave_one_out(), tables, g, prompts=b).trace_var
        law = b * g * float(split.variance(b, g))
        rows.append({"baseline": "leave-one-out", "B": b, "G": g, "N tr Var": found, "law": law})
    known = greedy()  # the tables hold their value in the place of the greedy answer's reward
    for g in (1, 2, 3, 4, 6):
        rows.append({"baseline": "value", "B": 1, "G": g, "N tr Var": g * moments(known, tables, g).trace_var})
    return rows


def parts(rows: list[dict], fit: tuple[float, float, float], split: VarianceSplit) -> list[Part]:
    """What is claimed."""
    off = max(abs(row["N tr Var"] / row["law"] - 1) for row in rows if "law" in row)
    best = float(split.ideal_group_size)
    cost = {g: float(split.budget_variance(g, prompt_cost=0.0, answer_cost=1.0)) for g in range(2, 20)}
    least = min(cost, key=cost.get)
    near = max(cost[g] / cost[least] for g in (least - 1, least + 1) if g >= 2)
    value = {row["G"]: row["N tr Var"] for row in rows if row["baseline"] == "value"}
    return [
        Part("largest relative gap between enumeration and law", exact(off), "below", 1e-9),
        Part("fitted G* over the law's", [x / best for x in fit], "above", 1 / 1.5),
        Part("the same", [x / best for x in fit], "below", 1.5),
        Part("cost of the neighbours of the best whole G over its own", exact(near), "below", 1.1),
        Part(
            "value known: N tr Var of G = 1 over the best of others",
            exact(value[1] / min(v for g, v in value.items() if g > 1)),
            "below",
            1,
        ),
    ]


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, simulate, fit, decide and publish. Returns the verdict."""
    draws = 4000 if smoke else 40_000
    split, rows, sample = VarianceSplit.of(pool()), enumerated(), simulated(draws, seed=0)
    fit = fit_with_interval(sample, 100 if smoke else 1000)
    word, reason = decided(parts(rows, fit, split))
    cost = lambda g: float(split.budget_variance(g, prompt_cost=0.0, answer_cost=1.0))  # noqa: E731
    for g, square in zip(SIZES, sample, strict=True):
        reach = 1.96 * square.std(ddof=1) / draws**0.5
        ends = {"N tr Var": square.mean(), "low": square.mean() - reach, "high": square.mean() + reach, "law": cost(g)}
        rows.append({"baseline": "leave-one-out, simulated", "B": 1, "G": g} | ends)
    figure, axis = figure_of(1, 1, (7, 4.2))
    line = np.linspace(1.5, 16, 200)
    axis.plot(line, [cost(g) for g in line], color=PALETTE[0], label="leave-one-out: the law")
    groups = (("leave-one-out", "o", 0), ("value", "s", 1), ("leave-one-out, simulated", "D", 2))
    for name, marker, colour in groups:
        mine = [row for row in rows if row["baseline"] == name]
        at, value = (np.array([row[key] for row in mine]) for key in ("G", "N tr Var"))
        ends = np.array([[row[key] - row["low"] for key in ("N tr Var",)] if "low" in row else [0.0] for row in mine])
        labels = {"leave-one-out": "enumerated", "value": "value as the baseline, enumerated"}
        label = labels.get(name, f"simulated, {draws} groups, 95% interval")
        axis.errorbar(
            at, value, yerr=ends[:, 0], fmt=marker, color=PALETTE[colour], markersize=5, capsize=2, label=label
        )
    best = float(split.ideal_group_size)
    axis.axvline(best, color="#999999", linewidth=0.8)
    axis.annotate(
        f"G* = {best:.2f}", (best, 0.03), (4, 0), xycoords=("data", "axes fraction"), textcoords="offset points"
    )
    axis.set(xlabel="answers per prompt G, at a fixed number N of answers", ylabel="N tr Var", ylim=(0, None))
    axis.legend(frameon=False, fontsize=8)
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} Three prompts of three answers with shared parameters (seed 0), drawn uniformly.",
        command=command,
        rows=rows,
        figure=figure,
        out=out,
    )
    return word


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
