"""What do off-policy weights trade, as the answers grow stale, and may a baseline be subtracted from them?

Claim: whole-answer importance weights are unbiased and vary more and more; truncated ones trade bias for variance
(CISPO, arXiv 2506.13585; VESPO, arXiv 2602.10693), and with them a baseline changes the objective (TOPR, arXiv
2503.14286), which it does not with plain ratios.

Rule, before the numbers, on a bigram policy with logits moved by k steps: the whole-answer weight is unbiased to 1e-9
at every k and its variance at the largest k is above twice that at 0; at k = 2 two or more of the truncated weights
are on the Pareto front of bias and variance; between baselines 0.2 and 0.6 the mean gradient moves by less than 1e-9
with plain ratios and by more than 1e-3 with each truncated one. Self-normalised weights and GSPO were added later, and
estimates of two answers for one; the rule stayed. Of a self-normalised weight, which is neither plain nor truncated,
nothing is claimed.
"""

import functools
import pathlib

import jax.numpy as jnp
import numpy as np

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from experiments.problems import bigram, facts
from jaxrl_llm.advantages import constant
from jaxrl_llm.losses.aggregate import answer_sum
from jaxrl_llm.losses.corrections import self_normalised_group
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.ratios import answer_log_ratio
from jaxrl_llm.losses.surrogates import (
    cispo,
    clipped,
    gspo,
    prefix_ratio,
    reinforce,
    sequence_ratio,
    tapered,
    token_ratio,
    topr,
    vespo,
)
from jaxrl_llm.report_plots import DASHES, PALETTE
from jaxrl_llm.variance.exact import GradientMoments, moments

NAME = "off_policy_frontier"
QUESTION = "What do off-policy weights trade, as the answers grow stale, and may a baseline be subtracted from them?"
CLAIM = (
    "Whole-answer importance weights are unbiased and vary more and more with staleness; truncated ones trade bias for "
    "variance (CISPO, arXiv 2506.13585; VESPO, arXiv 2602.10693). With them a baseline changes the objective (TOPR, "
    "arXiv 2503.14286); with plain ratios it does not."
)


def _at_most(x):
    return jnp.minimum(jnp.exp(x), 1.15)


WEIGHTS = {
    "whole answer": sequence_ratio(),
    "prefix": prefix_ratio(),
    "token": token_ratio(),
    "truncated at 1.15": tapered(positive=_at_most, negative=_at_most, ratio=answer_log_ratio),
    "CISPO": cispo(low=0.1, high=0.1),
    "TOPR": topr(),
    "VESPO": vespo(),
    "PPO": clipped(low=0.1, high=0.1),
    "GSPO": gspo(low=0.05, high=0.05),  # its weight alone: the sum over tokens, not their mean
    "self-normalised": reinforce(),
}
PLAIN = ("whole answer", "prefix", "token")
NORMALISED = "self-normalised"
GROUP = 2  # a self-normalised weight of a single answer is 1
BASELINES = (0.2, 0.6)
FRONT_AT = 2.0


@functools.cache
def stale(staleness: float):
    """The bigram policy with answers of a policy that is `staleness` steps away."""
    return bigram(staleness)


def found_of(name: str, staleness: float, baseline: float) -> GradientMoments:
    """Exactly, `GROUP` answers an estimate."""
    corrections = (self_normalised_group(),) if name == NORMALISED else ()
    objective = Objective(surrogate=WEIGHTS[name], aggregate=answer_sum(), corrections=corrections)
    return moments(constant(value=baseline), stale(staleness), GROUP, objective=objective)


def measured(levels: tuple[float, ...]) -> list[dict]:
    """A row a weight and staleness; b is the value of the prompt."""
    value, rows = float(facts(bigram()).value), []
    for name in WEIGHTS:
        for k in levels:
            x, table = found_of(name, k, value), stale(k)
            low, high = (np.asarray(found_of(name, k, b).mean_grad) for b in BASELINES)
            rows.append(
                {
                    "weight": name,
                    "staleness": k,
                    "E w²": float(jnp.sum(table.probs**2 / table.drawn)),
                    "bias": x.bias_norm,
                    "variance": x.trace_var,
                    "MSE": x.mse,
                    "cosine": x.cos,
                    "scale": x.scale,
                    "moved by the baseline": float(np.linalg.norm(high - low)),
                }
            )
    return rows


def front(rows: list[dict]) -> set[str]:
    """The weights that none beats in both bias and variance."""
    better = lambda x, y: x["bias"] < y["bias"] and x["variance"] < y["variance"]  # noqa: E731
    return {row["weight"] for row in rows if not any(better(other, row) for other in rows)}


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed."""
    whole = {row["staleness"]: row for row in rows if row["weight"] == "whole answer"}
    growth = whole[max(whole)]["variance"] / whole[0.0]["variance"]
    at = [row for row in rows if row["staleness"] == FRONT_AT]
    moved = {row["weight"]: row["moved by the baseline"] for row in at}
    cut = moved.keys() - {*PLAIN, NORMALISED}
    return [
        Part("whole answer: largest bias", exact(max(row["bias"] for row in whole.values())), "below", 1e-9),
        Part(f"whole answer: variance at k = {max(whole):g} over that at 0", exact(growth), "above", 2),
        Part("truncated weights on the front", exact(len(front(at) & cut)), "above", 1.5),
        Part("plain ratios: most moved by a baseline", exact(max(moved[name] for name in PLAIN)), "below", 1e-9),
        Part("truncated: least moved", exact(min(moved[name] for name in cut)), "above", 1e-3),
    ]


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, decide and publish. Returns the verdict."""
    rows = measured((0.0, FRONT_AT) if smoke else (0.0, 0.5, 1.0, FRONT_AT, 4.0))
    word, reason = decided(parts(rows))
    figure, axes = figure_of(1, 2, (12, 4.6))
    for number, name in enumerate(WEIGHTS):
        mine = [row for row in rows if row["weight"] == name]
        style = {"color": PALETTE[number % len(PALETTE)], "linestyle": DASHES[number // len(PALETTE)], "markersize": 5}
        style |= {"marker": "osD^vPX*<>"[number], "linewidth": 1.2, "label": name}
        bias, variance = ([row[key] for row in mine] for key in ("bias", "variance"))
        axes[0].plot(bias, variance, **style)
        at = [row["staleness"] for row in mine]
        axes[1].plot(at, [row["MSE"] for row in mine], **style)
    axes[0].set(xlabel="bias (norm); lines go from staleness 0 upwards", ylabel="variance", yscale="log")
    axes[1].set(xlabel="staleness k, in steps of the logits", ylabel="mean square error, two answers", yscale="log")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, handlelength=3.5)
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} Every answer of the bigram policy is enumerated: there is no sampling error.",
        command=command,
        rows=rows,
        figure=figure,
        out=out,
    )
    return word


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
