"""How much of the low variance of weighted group baselines comes from an answer's own weight in its baseline?

Claim: baselines weighted by length or by energy have less variance than plain ones (OPO, Hao et al., arXiv 2505.23585;
OTB, arXiv 2602.07078). As published an answer is part of its own baseline, which shrinks and turns the gradient.

Groups of 4 and 8 drawn from pools of answers, with and without the own answer. Written before the numbers, for energy
and for the logit proxy: at G = 4 the self-included form varies less than leave-one-out, more than half of that gain (in
logs) is gone without the own answer, and the mean of the self-included form is turned (cosine below 1). At G = 8 the
form without the own answer still varies less than leave-one-out. A variance is only reported beside the cosine.
"""

import numpy as np

from experiments.answers import figure_of, publish
from experiments.decisions import Part, decide
from experiments.pool_reports import arguments, geometric_mean, mean, ratio_of_sums, sizes
from experiments.pools import Figures, Laboratory, pools, resample
from jaxrl_llm.advantages import energy_weighted, group_mean, leave_one_out, length_weighted, logit_proxy_weighted
from jaxrl_llm.report_plots import PALETTE

NAME = "self_inclusion"
QUESTION = "How much of the low variance of weighted group baselines comes from an answer's own weight in its baseline?"
CLAIM = (
    "Baselines weighted by energy have less gradient variance than plain ones (OTB, arXiv 2602.07078; with length for "
    "energy: OPO, arXiv 2505.23585). Tested here, own expectation: most of it in small groups is the answer's own "
    "weight in its baseline, which also turns the gradient; in groups of 8 a part is left without it."
)
WEIGHTED = {"energy": energy_weighted, "logit proxy": logit_proxy_weighted, "length": length_weighted}
SIZES = (4, 8)
ESTIMATORS = {
    "leave-one-out": leave_one_out(),
    "group mean": group_mean(),
    **{f"{name}, self": make(leave_one_out=False) for name, make in WEIGHTED.items()},
    **{f"{name}, others": make(leave_one_out=True) for name, make in WEIGHTED.items()},
}


def parts(found: dict[int, dict[str, Figures]]) -> list[Part]:
    """What is claimed of figures by group size and estimator."""
    four, eight = (found[g] for g in SIZES)
    wanted = []
    for name in ("energy", "logit proxy"):
        own, others = (four[f"{name}, {form}"] for form in ("self", "others"))
        base = four["leave-one-out"]
        gain = {key: np.log(base.variance / x.variance) for key, x in (("own", own), ("others", others))}
        later = eight[f"{name}, others"].variance / eight["leave-one-out"].variance
        first = geometric_mean(own.variance / base.variance)
        left = ratio_of_sums(gain["others"], gain["own"])
        wanted += [
            Part(f"{name}, G=4: variance over RLOO's, self included", first, "below", 1),
            Part(f"{name}, G=4: share of that gain without self", left, "below", 0.5),
            Part(f"{name}, G=4: cosine, self included", mean(own.cos), "below", 1),
            Part(f"{name}, G=8: variance over RLOO's without self", geometric_mean(later), "below", 1),
        ]
    return wanted


def run(lab: Laboratory, command: str, out=None, *, draws: int = 8000) -> str:
    """Measure, decide and publish. Returns the verdict."""
    pool = pools(lab)
    pool = pool.prompts((pool.reward.std(axis=1) > 0) & (pool.signal > 0))
    found = {g: resample(pool, ESTIMATORS, g, draws=draws, seed=g) for g in SIZES}
    word, reason = decide(parts(found))
    rows = []
    for g, figures in found.items():
        base = figures["leave-one-out"]
        for name, x in figures.items():
            row = {"G": g, "estimator": name}
            columns = {
                "variance / RLOO's": geometric_mean(x.variance / base.variance),
                "cosine": mean(x.cos),
                "scale": mean(x.scale),
                "MSE rescaled / RLOO's": geometric_mean(np.maximum(x.mse_rescaled, 1e-9) / base.mse_rescaled),
            }
            for column, (value, low, high) in columns.items():
                row |= {column: value, f"{column}, low": low, f"{column}, high": high}
            rows.append(row | {"prompts": len(base.variance)})
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} {sizes(lab)} {draws} groups were drawn from each pool, the same for all estimators.",
        command=command,
        rows=rows,
        figure=_figure(rows),
        out=out,
    )
    return word


def _figure(rows: list[dict]):
    figure, axes = figure_of(1, 3, (12, 4))
    names = [name for name in ESTIMATORS if name != "leave-one-out"]
    for axis, column in zip(axes, ("variance / RLOO's", "cosine", "MSE rescaled / RLOO's"), strict=True):
        for colour, shift, marker, g in zip(PALETTE, (-0.15, 0.15), "os", SIZES, strict=False):
            for place, name in enumerate(names):
                row = next(row for row in rows if (row["G"], row["estimator"]) == (g, name))
                value, low, high = (row[key] for key in (column, f"{column}, low", f"{column}, high"))
                label = f"G = {g}" if place == 0 else None
                ends = [[value - low], [high - value]]
                axis.errorbar(value, place + shift, xerr=ends, fmt=marker, color=colour, capsize=3, label=label)
        axis.axvline(1, color="#999999", linewidth=0.8)
        axis.set_xlabel(f"{column}, mean over prompts, 95%")
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.grid(axis="x")
    axes[0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
