"""Is it enough to learn from wrong answers alone, and what do right ones alone cost in variety?

The three methods have one expected gradient, up to a factor, at any policy: they differ in what finite groups and many
steps make of it.

    python experiments/signs.py [--smoke] [--out DIR]      # five arms of 9 seeds and their tuning: 15 minutes
"""

import dataclasses
import pathlib
import sys

if __name__ == "__main__":
    sys.path[0] = str(pathlib.Path(__file__).parents[1])

import numpy as np

from experiments.answers import figure_of
from experiments.decisions import decide as decided
from experiments.experiment import Experiment, Verdict
from experiments.intervals import paired_difference
from experiments.present import MARKERS, Findings
from experiments.standard import BASE, TUNED, gained, part
from jaxrl_llm.report_plots import PALETTE

WIDE = "eval/pass@16"


def decide(findings: Findings) -> Verdict:
    """Each with its whole interval: NSR gains in pass@1 and pass@16 over the base policy; its pass@16, and that of
    W-REINFORCE, is above that of PSR by seed; and PSR ends with less entropy than NSR."""
    late = {arm: findings.curve(arm, "entropy")[1][:, -5:].mean(axis=1) for arm in ("PSR", "NSR")}
    parts = [
        part("NSR: gain in pass@1", gained(findings, "NSR"), "above", 0),
        part("NSR: gain in pass@16", gained(findings, "NSR", WIDE), "above", 0),
        part("pass@16, NSR less PSR", findings.difference("NSR", "PSR", WIDE), "above", 0),
        part("pass@16, W-REINFORCE less PSR", findings.difference("W-REINFORCE", "PSR", WIDE), "above", 0),
        part("entropy at the end, PSR less NSR, nats", paired_difference(late["PSR"], late["NSR"]), "below", 0),
    ]
    word, reason = decided(parts)
    shown = ", ".join(f"{arm} {findings.figure(arm, WIDE)}" for arm in findings.arms)
    return Verdict(word, f"{reason} pass@16, interquartile mean: {shown}.")


def draw(findings: Findings, path: pathlib.Path) -> None:
    """pass@1 while training, and what the runs gained in pass@k, with 95% bootstrap intervals over the seeds."""
    figure, (left, right) = figure_of(1, 2, (10, 4))
    ks = np.array([1, 2, 4, 8, 16])
    for number, arm in enumerate(findings.arms):
        style = {"color": PALETTE[number], "marker": MARKERS[number], "markersize": 5, "linewidth": 1.5}
        steps, values = findings.curve(arm, findings.score)
        left.plot(steps, values.mean(axis=0), label=arm, **style)
        gains = [gained(findings, arm, f"eval/pass@{k}") for k in ks]
        ends = [[x.point - x.low for x in gains], [x.high - x.point for x in gains]]
        at = ks * 2 ** (0.06 * (number - (len(findings.arms) - 1) / 2))
        right.errorbar(at, [x.point for x in gains], yerr=ends, capsize=2, **style)
    left.set(xlabel="policy-gradient step", ylabel="held-out pass@1, mean over seeds")
    right.axhline(0, color="0.6", linewidth=0.8)
    right.set(xlabel="k", ylabel="gain in held-out pass@k over the base policy", xscale="log")
    right.set_xticks(ks, [str(k) for k in ks])
    right.minorticks_off()
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


EXPERIMENT = Experiment(
    name="signs",
    question="Is it enough to learn from wrong answers alone, and what do right ones alone cost in variety?",
    claim="Learning from wrong answers alone (NSR) raises pass@k at every k; from right ones alone (PSR) raises pass@1 "
    "and loses variety; down-weighted right ones (W-REINFORCE) have the best of both (arXiv 2506.01347).",
    base=dataclasses.replace(BASE, eval_samples=16, eval_every=50),
    arms={
        "NSR": {"recipe": "nsr"},
        "PSR": {"recipe": "psr"},
        "W-REINFORCE": {"recipe": "w_reinforce"},
        "both signs": {"recipe": "w_reinforce,positive=1.0"},
        "GRPO": {"recipe": "grpo,kl_coefficient=0.0"},
    },
    decide=decide,
    score="eval/pass@1",
    draw=draw,
    **TUNED,
)

if __name__ == "__main__":
    EXPERIMENT.main()
