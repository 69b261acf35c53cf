"""What is left of the low variance of weighted group baselines, exactly, without the own answer in the baseline?

Claim: baselines weighted by energy or length have less gradient variance than plain ones (OPO, arXiv 2505.23585; OTB,
arXiv 2602.07078). As published the answer is part of its own baseline. Own expectation, tested here: much of the drop
is that, and it turns the gradient.

Rule, before the numbers, on three problems in groups of 3, for energy, length and the logit proxy: self-included forms
vary less than leave-one-out and their mean is turned (cosine below 1 - 1e-6); forms without self are unbiased to 1e-9
and keep below half of the gain (in logs of the variance). The token baseline of OTB, on B, was added later under the
same rule; where no other answer reaches a token it has no baseline there.
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from experiments.problems import named
from jaxrl_llm.advantages import (
    chain,
    energy_weighted,
    leave_one_out,
    length_weighted,
    logit_proxy_weighted,
    no_baseline,
    optimal_token_baseline,
    per_token,
)
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.exact import moments

NAME = "self_inclusion_exact"
QUESTION = (
    "What is left of the low variance of weighted group baselines, exactly, without the own answer in the baseline?"
)
CLAIM = (
    "Baselines weighted by energy (OTB, arXiv 2602.07078) or length (OPO, arXiv 2505.23585) have less gradient "
    "variance than plain ones. Tested here, own expectation: in small groups more than half of the drop is the "
    "answer's own weight in its baseline, and that weight turns the gradient."
)
# The logit proxy of a token is its energy where logits are the parameters, as on B: there it is the sum over tokens.
WEIGHTED = {
    "length": length_weighted,
    "energy": energy_weighted,
    "logit proxy": logit_proxy_weighted,
    "OTB": lambda leave_one_out: chain(
        per_token(no_baseline()), optimal_token_baseline(leave_one_out=leave_one_out, zero_tail=True)
    ),
}


def measured(group: int) -> list[dict]:
    """A row a problem, weight and form."""
    rows = []
    for problem in ("A", "A2", "B"):
        table = named(problem)
        base = moments(leave_one_out(), table, group)
        for weight, make in WEIGHTED.items():
            if weight in ("logit proxy", "OTB") and problem != "B":
                continue  # one token: it is the energy
            for form in ("self", "others"):
                x = moments(make(leave_one_out=form == "others"), table, group)
                ratio = x.trace_var / base.trace_var
                rows.append(
                    {
                        "problem": problem,
                        "G": group,
                        "weight": weight,
                        "form": form,
                        "variance / leave-one-out's": ratio,
                        "bias": x.bias_norm,
                        "cosine": x.cos,
                        "scale": x.scale,
                        "rescaled MSE / leave-one-out's": x.mse_rescaled / base.trace_var,
                    }
                )
    return rows


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed, weight by weight; the worst of the problems counts."""
    wanted = []
    for problem, weight in dict.fromkeys((row["problem"], row["weight"]) for row in rows):
        own, others = (
            next(r for r in rows if (r["problem"], r["weight"], r["form"]) == (problem, weight, form))
            for form in ("self", "others")
        )
        name, ratio = f"{problem}, {weight}", "variance / leave-one-out's"
        wanted += [
            Part(f"{name}: variance over leave-one-out's, self included", exact(own[ratio]), "below", 1),
            Part(f"{name}: cosine, self included", exact(own["cosine"]), "below", 1 - 1e-6),
            Part(f"{name}: bias without self", exact(others["bias"]), "below", 1e-9),
        ]
        if own[ratio] < 1:
            share = float(jnp.log(others[ratio]) / jnp.log(own[ratio]))
            wanted.append(Part(f"{name}: share of the gain that is left without self", exact(share), "below", 0.5))
    return wanted


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, decide and publish. Returns the verdict."""
    rows = measured(2 if smoke else 3)
    word, reason = decided(parts(rows))
    figure, axes = figure_of(1, 3, (12, 3.8))
    names = list(dict.fromkeys(f"{row['problem']}, {row['weight']}" for row in rows))
    for axis, column in zip(
        axes, ("variance / leave-one-out's", "cosine", "rescaled MSE / leave-one-out's"), strict=True
    ):
        for number, form in enumerate(("self", "others")):
            values = [row[column] for row in rows if row["form"] == form]
            label = {"self": "own answer in the baseline", "others": "others alone"}[form]
            axis.plot(values, np.arange(len(names)), "os"[number], color=PALETTE[number], label=label)
        axis.axvline(1, color="#999999", linewidth=0.8)
        axis.set_xlabel(column)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.grid(axis="x")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=2)
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} Every group is enumerated: there is no sampling error.",
        command=command,
        rows=rows,
        figure=figure,
        out=out,
    )
    return word


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
