"""Which function of the pass rate does a scheme for 0/1 rewards ascend at a finite group size?

Claim: every scheme ascends the mean of some F(p) (Davis and Recht, arXiv 2510.13651), GRPO 2 arcsin sqrt(p), whose
weight 1/sqrt(p(1-p)) favours prompts that are nearly always or never solved; MaxRL (arXiv 2602.02710) a truncation of
log p. At a finite G the weight is a polynomial of degree G - 1 (own derivation).

Rule, before the numbers, in groups of 8: for 12 schemes the enumerated weight on the gradient of the pass rate is the
polynomial to 1e-9, on a single logit and on two policies, whose mean gradients are parallel to the true one; the weight
of GRPO at p = 0.05 is below 1.5 times that at 0.5 (its limit: 2.29); centred MaxRL is (1 - q^(G-1))/p, not (1 - q^G)/p.
"""

import pathlib

import jax.numpy as jnp
import numpy as np

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from experiments.problems import named
from jaxrl_llm.advantages import (
    chain,
    fixed_beta_density,
    focal,
    group_mean,
    group_quantile,
    group_std,
    leave_one_out,
    log_odds,
    maxrl_centred,
    maxrl_raw,
    negative_only,
    no_baseline,
    pass_at_k,
    positive_only,
    top_gap,
)
from jaxrl_llm.variance.bernstein import curves, slope
from jaxrl_llm.variance.binary import scheme_of
from jaxrl_llm.variance.exact import moments
from jaxrl_llm.variance.plots import plot_f_prime, plot_objective
from jaxrl_llm.variance.tables import bernoulli

NAME = "f_of_p"
QUESTION = "Which function of the pass rate does a scheme for 0/1 rewards ascend at a finite group size?"
CLAIM = (
    "Every scheme ascends the mean of some F(p) (Davis and Recht, arXiv 2510.13651). Tested here, own derivation: the "
    "weight F'(p) at a finite G is a polynomial of degree G - 1, so GRPO is nearly flat in groups of 8 where its limit "
    "is 1/sqrt(p(1-p)), and centred MaxRL (arXiv 2602.02710) truncates log p at order G - 1."
)
SCHEMES = {
    "none": no_baseline(),
    "leave-one-out": leave_one_out(),
    "group mean": group_mean(),
    "GRPO (std)": chain(group_mean(), group_std(ddof=0, eps=0.0)),
    "MaxRL, centred": maxrl_centred(eps=0.0),
    "MaxRL, raw": maxrl_raw(),
    "log odds": log_odds(),
    "pass@2": pass_at_k(k=2),
    "BNPO (2, 3)": chain(group_mean(), fixed_beta_density(alpha=2.0, beta=3.0)),
    "focal 2": focal(gamma=2.0),
    "quantile 0.4": group_quantile(level=0.4),
    "lone success": top_gap(),
    "right only": positive_only(),
    "wrong only": negative_only(),
}
LIMITS = {
    "GRPO (std)": lambda p: 1 / np.sqrt(p * (1 - p)),
    "MaxRL, centred": lambda p: 1 / p,
    "log odds": lambda p: 1 / (p * (1 - p)),
}
SHOWN = ("leave-one-out", "GRPO (std)", "MaxRL, centred", "log odds", "pass@2", "focal 2", "quantile 0.4")


def measured(group: int, rates: tuple[float, ...], policies: dict[str, int]) -> list[dict]:
    """A row a scheme and policy: the scale of the mean gradient, its cosine, and the polynomial."""
    rows = []
    for name, transform in SCHEMES.items():
        for p in rates:
            rows.append(_row(name, transform, f"p = {p}", bernoulli(p), group))
        for policy, size in policies.items():
            rows.append(_row(name, transform, policy, named(policy), size))
    return rows


def _row(name, transform, policy, table, group):
    p = float(table.probs @ table.rewards)
    x, law = moments(transform, table, group), float(slope(scheme_of(transform, group).coefficients, p))
    return {"scheme": name, "policy": policy, "p": p, "G": group, "F'": x.scale, "polynomial": law, "cosine": x.cos}


def parts(rows: list[dict], group: int) -> list[Part]:
    """What is claimed."""
    gap = max(abs(row["F'"] - row["polynomial"]) / max(abs(row["polynomial"]), 1e-3) for row in rows)
    turned = max(1 - row["cosine"] for row in rows if row["polynomial"] > 1e-6)
    grpo, centred = (scheme_of(SCHEMES[name], group).coefficients for name in ("GRPO (std)", "MaxRL, centred"))
    p = 0.05
    flat = float(slope(grpo, p) / slope(grpo, 0.5))
    order = lambda n: abs(float(slope(centred, p)) * p / (1 - (1 - p) ** n) - 1)  # noqa: E731
    return [
        Part("largest relative gap between enumeration and polynomial", exact(gap), "below", 1e-9),
        Part("largest distance of a cosine from 1", exact(turned), "below", 1e-9),
        Part("GRPO: weight at p = 0.05 over that at 0.5", exact(flat), "below", 1.5),
        Part("centred MaxRL: distance from (1 - q^(G-1))/p", exact(order(group - 1)), "below", 1e-9),
        Part("centred MaxRL: distance from (1 - q^G)/p", exact(order(group)), "above", 0.01),
    ]


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, decide and publish. Returns the verdict."""
    group = 4 if smoke else 8
    rates = (0.05, 0.5) if smoke else (0.05, 0.25, 0.5, 0.75, 0.95)
    rows = measured(group, rates, {"A2": 3} if smoke else {"A2": 5, "B": 3})
    word, reason = decided(parts(rows, group))
    figure, axes = figure_of(1, 2, (11, 4.4))
    shown = curves({name: SCHEMES[name] for name in SHOWN}, group, jnp.linspace(0.02, 0.98, 193))
    plot_f_prime(axes[0], shown, LIMITS)
    for row in rows:
        if row["scheme"] in SHOWN and row["G"] == group:
            axes[0].plot(row["p"], row["F'"], "k.", markersize=4)
    axes[0].set_ylim(0, 8)
    axes[0].set_title(f"groups of {group}; points: enumerated; thin dots: limit of large G", fontsize=9)
    plot_objective(axes[1], shown)
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
