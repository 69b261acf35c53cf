"""How does the variance of leave-one-out fall with the group size, and when is it better than no baseline?

Claim: leave-one-out is a U-statistic (arXiv 2603.01162): tr Var = σ_V²/G + (Var(r) F + |g|²)/(G(G-1)). It follows that
it loses to no baseline in small groups, G <= 1 + (Var(r) F + |g|²)/(σ_0² - σ_V²) (own derivation).

Rule, before the numbers: enumerated groups obey the law to 1e-9, simulated ones (G up to 64) to a ratio whose 99.9%
interval lies in [0.9, 1.1]; the group mean is scaled by 1 - 1/G to 1e-9; from G = 16 the slope of log variance over log
G lies in [-1.1, -0.9]; and on no problem is an enumerated group on the wrong side of the crossing.
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from experiments.problems import facts, named
from jaxrl_llm.advantages import bare_rollout, group_mean, leave_one_out, no_baseline
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.tables import OutcomeTable, bernoulli

NAME = "leave_one_out_law"
QUESTION = "How does the variance of leave-one-out fall with the group size, and when is it better than no baseline?"
CLAIM = (
    "Leave-one-out is a U-statistic of order 2 (arXiv 2603.01162): tr Var = σ_V²/G + (Var(r) F + |g|²)/(G(G-1)), so "
    "with 0/1 rewards coded from 0 it loses to no baseline in groups up to 1 + (Var(r) F + |g|²)/(σ_0² - σ_V²)."
)
Z = 3.29  # 99.9%


def problems() -> dict[str, OutcomeTable]:
    """Small policies, and single logits whose pass rate is p."""
    return {name: named(name) for name in ("A", "A2", "B")} | {f"p = {p}": bernoulli(p) for p in (0.1, 0.5, 0.55, 0.8)}


def simulated(table: OutcomeTable, group: int, draws: int, seed: int) -> tuple[float, float, float]:
    """Mean of |ĝ - g|² over independent groups and its 99.9% interval; leave-one-out is unbiased."""
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(table.probs), (draws, group), p=np.asarray(table.probs))
    reward = table.rewards[chosen]
    credit, _ = leave_one_out().update(reward, (), bare_rollout(reward))
    gap = jnp.einsum("mg,mgd->md", credit, table.scores[chosen]) / group - table.gradient[None, :]
    square = np.asarray(jnp.sum(gap**2, axis=-1))
    reach = Z * square.std(ddof=1) / draws**0.5
    return square.mean(), square.mean() - reach, square.mean() + reach


def rows_of(sizes: tuple[int, ...], larger: tuple[int, ...], draws: int) -> list[dict]:
    """A row a problem and group size: the law, what was found, and no baseline."""
    rows = []
    for name, table in problems().items():
        m = facts(table)
        for g in sizes:
            if len(table.probs) ** g > 10_000:
                continue
            mean = moments(group_mean(), table, g)
            law, found = float(m.leave_one_out_variance(g)), moments(leave_one_out(), table, g).trace_var
            none = moments(no_baseline(), table, g).trace_var
            rows.append(_row(name, m, g, law, exact(found), none, "enumerated") | {"scale of group mean": mean.scale})
        for g in larger if name in ("A", "A2", "B") else ():
            law, found = float(m.leave_one_out_variance(g)), simulated(table, g, draws, seed=g)
            none = float(m.constant_variance(0.0, g))
            rows.append(_row(name, m, g, law, found, none, f"{draws} groups"))
    return rows


def _row(name, m, g, law, found, none, how):
    value, low, high = found
    crossing = float(m.break_even_group_size)
    ends = {"variance": value, "low": low, "high": high}
    return {"problem": name, "G": g, "how": how, "law": law, **ends, "no baseline": none, "crossing at G": crossing}


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed."""
    full = [row for row in rows if row["how"] == "enumerated"]
    drawn = [row for row in rows if row["how"] != "enumerated"]
    off = max(abs(row["variance"] / row["law"] - 1) for row in full)
    scale = max(abs(row["scale of group mean"] - 1 + 1 / row["G"]) for row in full)
    wrong = sum(_wrong_side(row) for row in full)
    wanted = [
        Part("largest relative gap between enumeration and law", exact(off), "below", 1e-9),
        Part("largest gap between the scale of the group mean and 1 - 1/G", exact(scale), "below", 1e-9),
        Part("enumerated groups on the wrong side of the crossing", exact(wrong), "below", 0.5),
    ]
    for name in dict.fromkeys(row["problem"] for row in drawn):
        mine = [row for row in drawn if row["problem"] == name]
        ratios = [[row[key] / row["law"] for key in ("variance", "low", "high")] for row in mine]
        lowest, highest = min(ratios, key=lambda x: x[1]), max(ratios, key=lambda x: x[2])
        slope = np.polyfit(*(np.log([row[key] for row in mine if row["G"] >= 16]) for key in ("G", "variance")), 1)[0]
        wanted += [
            Part(f"{name}: lowest ratio of simulation to law", lowest, "above", 0.9),
            Part(f"{name}: highest ratio of simulation to law", highest, "below", 1.1),
            Part(f"{name}: slope of log variance over log G", exact(slope), "above", -1.1),
            Part(f"{name}: the same", exact(slope), "below", -0.9),
        ]
    return wanted


def _wrong_side(row):
    """A tie is on no side."""
    gain = row["no baseline"] / row["variance"] - 1 if row["variance"] else 1.0
    distance = row["G"] - row["crossing at G"]
    return abs(gain) > 1e-9 and abs(distance) > 1e-9 and (gain > 0) != (distance > 0)


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, simulate, decide and publish. Returns the verdict."""
    rows = rows_of((2, 3), (16, 32), 2000) if smoke else rows_of((2, 3, 4, 5, 6, 8), (8, 16, 32, 64), 20_000)
    word, reason = decided(parts(rows))
    names = list(dict.fromkeys(row["problem"] for row in rows))
    figure, axes = figure_of(1, 2, (11, 4.4))
    sizes = np.geomspace(2, 64, 100)
    for colour, (name, table) in zip(PALETTE, problems().items(), strict=True):
        m = facts(table)
        curve = np.asarray(m.leave_one_out_variance(jnp.asarray(sizes)))
        axes[1].plot(sizes, float(m.constant_variance(0.0, 1)) / sizes / curve, color=colour, label=name)
        mine = [row for row in rows if row["problem"] == name]
        at, value, low, high = (np.array([row[key] for row in mine]) for key in ("G", "variance", "low", "high"))
        axes[1].plot(at, [row["no baseline"] / row["variance"] for row in mine], "o", color=colour, markersize=4)
        axes[0].plot(sizes, curve, color=colour)
        axes[0].errorbar(at, value, yerr=[value - low, high - value], fmt="o", color=colour, markersize=4, capsize=2)
    axes[0].set(xscale="log", yscale="log", xlabel="group size G", ylabel="variance of leave-one-out")
    axes[0].set_title("lines: the law; points: enumerated, or simulated with 99.9% intervals", fontsize=9)
    axes[1].axhline(1, color="#999999", linewidth=0.8)
    axes[1].set(xscale="log", yscale="log", xlabel="group size G", ylabel="variance of no baseline / of leave-one-out")
    axes[1].set_title("above 1 leave-one-out is better; rewards coded from 0", fontsize=9)
    for axis in axes:
        axis.set_xticks([2, 4, 8, 16, 32, 64], [2, 4, 8, 16, 32, 64])
        axis.minorticks_off()
    axes[1].legend(frameon=False, fontsize=8, ncols=2, loc="upper left")
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} Problems: {', '.join(names)}; simulated groups are independent, seed G.",
        command=command,
        rows=rows,
        figure=figure,
        out=out,
    )
    return word


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
