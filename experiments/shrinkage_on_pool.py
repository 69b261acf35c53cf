"""Do baselines that borrow from other prompts vary less than leave-one-out on a trained policy?

The same question as `shrinkage`, there on small tables with rewards in [0, 1], here with rewards of 0 and 1.

Written before the numbers, in groups of 2 from pools of answers to 16 prompts: at every checkpoint left-out James-Stein
has less variance than leave-one-out and no bias (scale within 1% of 1), a fixed λ = 1/2 has no more variance than it,
and the released form is biased: its cosine is below 1 - 1e-4, or its scale more than 1% off.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import figure_of, publish
from experiments.bnpo_variance import RUN
from experiments.decisions import Part, decide
from experiments.pool_reports import arguments, policy_of
from experiments.pools import STANDARD, Laboratory, checkpoints
from experiments.present import MARKERS
from experiments.shrinkage import fixed
from jaxrl_llm.advantages import james_stein, james_stein_deployed, leave_one_out, other_prompts_mean
from jaxrl_llm.programs import Programs
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.sharding import fetch
from jaxrl_llm.variance.credit import Estimator
from jaxrl_llm.variance.empirical_backends import exact
from jaxrl_llm.variance.empirical_pool import compare_pool
from jaxrl_llm.variance.empirical_units import Settings
from jaxrl_llm.variance_run import frozen_batch

NAME = "shrinkage_on_pool"
QUESTION = "Do baselines that borrow from other prompts vary less than leave-one-out on a trained policy?"
CLAIM = (
    "James-Stein baselines have less gradient variance than leave-one-out in small groups, without bias where the own "
    "prompt is left out of the shrinkage (arXiv 2511.03710)."
)
BASE, LEFT_OUT, RELEASED, HALF = "leave-one-out", "James-Stein, left out", "James-Stein, released", "λ = 1/2"
ESTIMATORS = {
    BASE: leave_one_out(),
    LEFT_OUT: james_stein(),
    RELEASED: james_stein_deployed(smoothing=0.0),
    HALF: fixed(0.5),
    "other prompts": other_prompts_mean(),
}
GROUPS = (2, 4, 8)


def rows_of(lab: Laboratory, replicates: int) -> list[dict]:
    """A row a checkpoint, group size and estimator; a batch is one group of each prompt."""
    programs, rows = Programs(lab.config), []
    estimators = {name: Estimator(transform) for name, transform in ESTIMATORS.items()}
    for step, params in checkpoints(lab, programs).items():
        batch = frozen_batch(programs, params, 10**6 + step, prompts=lab.prompts, answers=lab.answers)
        batch = jax.tree.map(jnp.asarray, fetch(batch))  # on one device, like the parameters
        for group in GROUPS:
            settings = Settings(group_size=group, replicates=replicates, baseline=BASE)
            found = compare_pool(estimators, programs.policy, params, batch, settings, backend=exact())
            for name, x in found.moments.items():
                ratio, low, high = found.ratios[name]["trace_var"]
                rows.append(
                    {
                        **{"step": step, "pass rate": float(batch.reward.mean()), "G": group, "estimator": name},
                        **{"variance / leave-one-out's": ratio, "low": low, "high": high},
                        **{"scale": x.scale, "scale low": x.intervals["scale"][0]},
                        **{"scale high": x.intervals["scale"][1], "cosine": x.cos},
                    }
                )
    return rows


def parts(rows: list[dict]) -> list[Part]:
    """Of the checkpoint where each part is worst, in groups of 2."""
    of = lambda name: [row for row in rows if row["G"] == 2 and row["estimator"] == name]  # noqa: E731
    ratio = lambda row: (row["variance / leave-one-out's"], row["low"], row["high"])  # noqa: E731
    worst = max(of(LEFT_OUT), key=ratio)
    pairs = zip(of(HALF), of(LEFT_OUT), strict=True)
    most = max(half["variance / leave-one-out's"] / left["variance / leave-one-out's"] for half, left in pairs)
    scales = [(row["scale"], row["scale low"], row["scale high"]) for row in of(LEFT_OUT)]
    off = max(scales, key=lambda x: abs(x[0] - 1))
    leak = min(max(1 - row["cosine"], abs(row["scale"] - 1) / 100) for row in of(RELEASED))
    return [
        Part("variance of left-out James-Stein over leave-one-out's, the worst checkpoint", ratio(worst), "below", 1),
        Part("its scale, the checkpoint farthest from 1", off, "above", 0.99),
        Part("the same", off, "below", 1.01),
        Part("variance with λ = 1/2 over that of left-out James-Stein, the worst", (most,) * 3, "below", 1),
        Part("released form: 1 - cosine, or a hundredth of |scale - 1|, the least", (leak,) * 3, "above", 1e-4),
    ]


def run(lab: Laboratory, command: str, out=None, *, replicates: int = 4000) -> str:
    """Measure, decide and publish. Returns the verdict."""
    if lab is STANDARD:
        lab = dataclasses.replace(RUN, prompts=16, answers=128)
    else:
        lab, replicates = dataclasses.replace(lab, prompts=8), 200  # a smoke run; any number of devices up to 8
    rows = rows_of(lab, replicates)
    word, reason = decide(parts(rows))
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} Batches of {lab.prompts} prompts, over answers alone: pools of {lab.answers} answers to each "
        f"training problem at {policy_of(lab)}, drawn anew {replicates} times; 95% intervals over the draws, so "
        f"nothing is said of other prompts or seeds.",
        command=command,
        rows=rows,
        figure=_figure(rows),
        out=out,
    )
    return word


def _figure(rows: list[dict]):
    steps = sorted({row["step"] for row in rows})
    figure, axes = figure_of(1, len(steps), (3 * len(steps) + 2, 3.6))
    for axis, step in zip(np.atleast_1d(axes), steps, strict=True):
        axis.axhline(1, color="0.6", linewidth=0.8)
        for number, name in enumerate(list(ESTIMATORS)[1:]):
            mine = [row for row in rows if row["step"] == step and row["estimator"] == name]
            group, ratio, low, high = (
                np.array([row[key] for row in mine]) for key in ("G", "variance / leave-one-out's", "low", "high")
            )
            style = {"color": PALETTE[number], "marker": MARKERS[number], "markersize": 5, "label": name}
            at = group * 2 ** (0.06 * (number - 1.5))
            axis.errorbar(at, ratio, yerr=np.maximum([ratio - low, high - ratio], 0), capsize=2, **style)
        axis.set(xscale="log", xlabel="answers a prompt")
        axis.set_title(f"step {step}", fontsize=9)
        axis.set_xticks(GROUPS, [str(g) for g in GROUPS])
        axis.minorticks_off()
    np.atleast_1d(axes)[0].set_ylabel("variance / leave-one-out's, 95%")
    figure.legend(*np.atleast_1d(axes)[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
