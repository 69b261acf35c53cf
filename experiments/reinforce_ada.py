"""Does drawing until a group is balanced beat GRPO when both have drawn as many answers?

What it maximises is in experiments/adaptive_weight.py.

    python experiments/reinforce_ada.py [--smoke] [--out DIR]      # three arms of 9 seeds and their tuning: 20 minutes
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
from experiments.intervals import Estimate, paired_difference
from experiments.present import MARKERS, Findings
from experiments.standard import BASE, TUNED, part
from jaxrl_llm.report_plots import PALETTE

ADA, GRPO, LARGE = "Reinforce-Ada", "GRPO", "GRPO, groups of 16"
P, G = BASE.prompts_per_step, BASE.answers_per_prompt
DRAWN = {GRPO: G, LARGE: 16}  # answers to a prompt; Reinforce-Ada counts its own


def samples(findings: Findings, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Answers drawn until each look, and the score there, by seed [runs, looks]."""
    steps, scores = findings.curve(arm, findings.score)
    if arm in DRAWN:
        return np.broadcast_to(steps * P * DRAWN[arm], scores.shape).astype(float), scores
    at, drawn = findings.curve(arm, "answers_drawn")
    total = [np.sum(np.interp(np.arange(1, last + 1), at, row)) for row in drawn for last in steps]
    return P * np.reshape(total, scores.shape), scores


def score_at(findings: Findings, arm: str, count: np.ndarray) -> np.ndarray:
    """The score after `count` [runs] answers, between the looks along a line [runs]."""
    return np.array([np.interp(n, x, y) for n, x, y in zip(count, *samples(findings, arm), strict=True)])


def at_equal_samples(findings: Findings, other: str) -> tuple[Estimate, float]:
    """Score of Reinforce-Ada less that of the other after as many answers as the shorter of the two has drawn."""
    count = np.minimum(*(samples(findings, arm)[0][:, -1] for arm in (ADA, other)))
    return paired_difference(*(score_at(findings, arm, count) for arm in (ADA, other))), float(count.mean())


def draw(findings: Findings, path: pathlib.Path) -> None:
    """The score against the answers drawn: every run, and the mean between their looks."""
    figure, axis = figure_of(1, 1, (7, 4))
    for number, arm in enumerate(findings.arms):
        counts, scores = samples(findings, arm)
        style = {"color": PALETTE[number], "marker": MARKERS[number], "markersize": 4}
        axis.plot(counts.T, scores.T, color=PALETTE[number], alpha=0.2, linewidth=0.8)
        axis.plot(counts.mean(axis=0), scores.mean(axis=0), linewidth=2, label=arm, **style)
    axis.set(xlabel="answers drawn", ylabel=f"{findings.score}: mean over seeds, and each seed")
    axis.legend(frameon=False)
    figure.savefig(path, dpi=150, metadata={"Software": None})


def decide(findings: Findings) -> Verdict:
    """Reinforce-Ada less each GRPO at equal samples, by seed, is above 0 with its whole interval."""
    parts, counts = [], []
    for other in (GRPO, LARGE):
        difference, count = at_equal_samples(findings, other)
        counts.append(f"{count:,.0f}")
        parts.append(part(f"accuracy less that of {other} at equal samples", difference, "above", 0))
    word, reason = decided(parts)
    drawn = findings.curve(ADA, "answers_drawn")[1].mean()
    return Verdict(
        word,
        f"{reason} Equal samples are {' and '.join(counts)} answers; Reinforce-Ada has drawn {drawn:.1f} answers to a "
        f"prompt, of at most 32, to keep {G}. The table compares the ends of the runs, which have drawn different "
        f"numbers of answers.",
    )


EXPERIMENT = Experiment(
    name="reinforce_ada",
    question="Does drawing until a group is balanced beat GRPO when both have drawn as many answers?",
    claim="Reinforce-Ada (balanced) learns faster and ends higher than GRPO (arXiv 2510.04996), read at equal samples.",
    base=dataclasses.replace(BASE, eval_every=20),
    arms={
        ADA: {"recipe": "reinforce_ada"},
        GRPO: {"recipe": "grpo,kl_coefficient=0.0", "steps": 2 * BASE.steps},
        LARGE: {"recipe": "grpo,kl_coefficient=0.0", "answers_per_prompt": 16},
    },
    decide=decide,
    draw=draw,
    **TUNED,
)

if __name__ == "__main__":
    EXPERIMENT.main()
