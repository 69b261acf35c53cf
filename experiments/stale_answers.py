"""With eight updates on each batch, which methods stand what baseline?

The credit of all arms is r - mean + amount: an amount above 0 is a baseline below the mean, which weighs right answers
more. On-policy it would change no expectation.

The learning rate, one for all arms, was chosen before them on seeds 100 to 102 among 1e-5, 3e-5 and 6e-5 as the largest
at which PPO still gains with the mean as its baseline: so high that stale answers matter. PPO ends best at 1e-5.

    python experiments/stale_answers.py [--smoke] [--out DIR]      # 18 arms of 8 seeds: half an hour on two cores
"""

import pathlib
import sys

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

import dataclasses

import numpy as np

from experiments.answers import figure_of
from experiments.decisions import decide as decided
from experiments.experiment import Experiment, Verdict
from experiments.intervals import paired_difference
from experiments.present import MARKERS, Findings
from experiments.standard import BASE, part
from jaxrl_llm.advantages import chain, group_mean, per_token
from jaxrl_llm.advantages.baselines.shift import shift
from jaxrl_llm.losses import Objective, cispo, clipped, opmd, reinforce, tapered, token_mean, topr
from jaxrl_llm.losses.ratios import token_log_ratio
from jaxrl_llm.losses.surrogates.tapers import between
from jaxrl_llm.recipes import Recipe
from jaxrl_llm.report_plots import PALETTE

METHODS = {
    "AsymRE": reinforce(),  # the ratio is ignored
    "OPMD": opmd(coefficient=0.1),
    "TOPR": topr(),
    "CISPO": cispo(low=None, high=0.28),
    "TIS": tapered(positive=between(0.0, 2.0), negative=between(0.0, 2.0), ratio=token_log_ratio),
    "PPO": clipped(),
}
WEIGHED = ("TOPR", "CISPO", "TIS", "PPO")
AMOUNTS = (-0.2, 0.0, 0.2)


def named(method: str, amount: float) -> str:
    """Of an arm."""
    return f"{method}, {amount:+g}"


def recipe(method: str, amount: float) -> Recipe:
    """One method with one baseline; everything else is equal."""
    credit = chain(group_mean(), shift(amount=amount)) if amount else group_mean()
    objective = Objective(surrogate=METHODS[method], aggregate=token_mean())
    return Recipe(spec=f"stale {named(method, amount)}", advantage=per_token(credit), objective=objective)


def dependence(findings: Findings, method: str) -> np.ndarray:
    """Best less worst of the baselines, by seed [runs]."""
    return np.ptp([findings.scores(named(method, amount)) for amount in AMOUNTS], axis=0)


def decide(findings: Findings) -> Verdict:
    """Each with its whole interval, by seed: with AsymRE the lower baseline ends above the higher one; TOPR and PPO end
    above AsymRE where the baseline is the mean; the methods that weigh by ratios depend less on the baseline than it.
    """
    low, high = AMOUNTS[-1], AMOUNTS[0]
    lower = findings.difference(named("AsymRE", low), named("AsymRE", high))
    parts = [part("AsymRE: accuracy with the lower baseline less that with the higher", lower, "above", 0)]
    for method in ("TOPR", "PPO"):
        gain = findings.difference(named(method, 0.0), named("AsymRE", 0.0))
        parts.append(part(f"accuracy of {method} less that of AsymRE, baseline the mean", gain, "above", 0))
    for method in WEIGHED:
        less = paired_difference(dependence(findings, method), dependence(findings, "AsymRE"))
        parts.append(part(f"best less worst baseline, {method} less AsymRE", less, "below", 0))
    return Verdict(*decided(parts))


def draw(findings: Findings, path: pathlib.Path) -> None:
    """The final score of each method against the amount, and its curve with the baseline at the mean."""
    figure, (left, right) = figure_of(1, 2, (10, 4))
    for number, method in enumerate(METHODS):
        style = {"color": PALETTE[number], "marker": MARKERS[number], "markersize": 5, "linewidth": 1.5}
        found = [findings.figure(named(method, amount)) for amount in AMOUNTS]
        ends = [[x.point - x.low for x in found], [x.high - x.point for x in found]]
        shifted = np.asarray(AMOUNTS) + 0.008 * (number - (len(METHODS) - 1) / 2)
        left.errorbar(shifted, [x.point for x in found], yerr=ends, capsize=2, label=method, **style)
        for axis_style, amount in (("-", 0.0), (":", AMOUNTS[0])):
            steps, values = findings.curve(named(method, amount), findings.score)
            right.plot(steps, values.mean(axis=0), linestyle=axis_style, **style)
    left.set(xlabel="amount added to r - mean (above 0: lower baseline)", ylabel=f"{findings.score}, IQM and 95%")
    left.set_xticks(AMOUNTS)
    right.set(xlabel="rollout, 8 updates each", ylabel=f"{findings.score}, mean over seeds")
    right.set_title(f"amount 0 (solid) and {AMOUNTS[0]:g} (dotted)", fontsize=9)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


EXPERIMENT = Experiment(
    name="stale_answers",
    question="With eight updates on each batch, which methods stand what baseline?",
    claim="Off-policy a baseline below the mean is safe and one above it is not (AsymRE, in arXiv 2509.24203); tapered "
    "and clipped ratios stand stale answers without one (TOPR, arXiv 2503.14286; PPO, 2017).",
    base=dataclasses.replace(BASE, steps=60, epochs=8, learning_rate=6e-5, eval_every=12, eval_samples=1),
    arms={named(m, amount): {"recipe": recipe(m, amount)} for m in METHODS for amount in AMOUNTS},
    seeds=range(8),
    decide=decide,
    draw=draw,
)

if __name__ == "__main__":
    EXPERIMENT.main()
