"""In which order do off-policy weights vary on a trained policy, as its answers grow stale?

The same question as `off_policy_frontier`, which enumerates a bigram policy, here with the answers of one checkpoint
and the gradient of later ones.

Written before the numbers, in groups of 8 with leave-one-out: with whole-answer weights the trace of the covariance at
the latest checkpoint is above that at the answers' own; at the latest checkpoint it falls from whole-answer weights to
CISPO, from CISPO to weights truncated at 1.15, and from these to VESPO, as on the bigram policy, each ratio with its
whole interval below 1.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import figure_of, publish
from experiments.bnpo_variance import RUN
from experiments.decisions import Part, decide
from experiments.off_policy_frontier import WEIGHTS
from experiments.pool_reports import arguments, policy_of
from experiments.pools import STANDARD, Laboratory, checkpoints
from experiments.present import MARKERS
from jaxrl_llm.advantages import leave_one_out, per_token
from jaxrl_llm.losses.aggregate import answer_sum
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.programs import Programs
from jaxrl_llm.report_plots import DASHES, PALETTE
from jaxrl_llm.sharding import fetch
from jaxrl_llm.variance.credit import Estimator
from jaxrl_llm.variance.empirical import score_gram, tokens_at
from jaxrl_llm.variance.empirical_backends import count_sketch
from jaxrl_llm.variance.empirical_compare import compare_scores
from jaxrl_llm.variance_run import frozen_batch

NAME = "stale_weights"
QUESTION = "In which order do off-policy weights vary on a trained policy, as its answers grow stale?"
CLAIM = (
    "Whole-answer importance weights vary more and more with staleness, and the harder a weight is bounded the less it "
    "varies: whole answer, CISPO (arXiv 2506.13585), truncated, VESPO (arXiv 2602.10693)."
)
WHOLE, CISPO, CUT, VESPO = ORDER = ("whole answer", "CISPO", "truncated at 1.15", "VESPO")
SHOWN = ("whole answer", "prefix", "token", "truncated at 1.15", "CISPO", "TOPR", "VESPO", "PPO", "GSPO")
GROUP, UNIT = 8, 4


def estimators() -> dict[str, Estimator]:
    """Leave-one-out with each weight, summed over the tokens of an answer."""
    credit = per_token(leave_one_out())
    return {name: Estimator(credit, Objective(surrogate=WEIGHTS[name], aggregate=answer_sum())) for name in SHOWN}


def rows_of(lab: Laboratory, replicates: int) -> list[dict]:
    """A row a checkpoint and weight; the answers are those of the first checkpoint."""
    programs, rows = Programs(lab.config), []
    each = checkpoints(lab, programs)
    batch = frozen_batch(programs, each[min(each)], 10**6, prompts=lab.prompts, answers=lab.answers)
    batch = jax.tree.map(jnp.asarray, fetch(batch))  # on one device, like the parameters
    settings = {"group_size": GROUP, "prompts": UNIT, "replicates": replicates, "off_policy": True}
    for step, params in each.items():
        tokens = tokens_at(programs.policy, params, batch)
        ratio = np.exp(np.where(batch.acted, tokens.logp - tokens.behaviour_logp, 0).sum(axis=-1))
        gram = score_gram(
            programs.policy, params, batch, segments=batch.answer.shape[-1], backend=count_sketch(size=4096)
        )
        found = compare_scores(estimators(), gram, batch, tokens, baseline=WHOLE, **settings)
        following = {}
        for above, below in itertools.pairwise(ORDER):
            pair = {name: estimators()[name] for name in (above, below)}
            again = compare_scores(pair, gram, batch, tokens, baseline=above, **settings)
            following[below] = again.ratios[below]["trace_var"]
        for name, x in found.moments.items():
            low, high = x.intervals["trace_var"]
            after, whole = following.get(name, ("", "", "")), found.ratios[name]["trace_var"]
            rows.append(
                {
                    **{"step": step, "E w²": float(np.mean(ratio**2)), "weight": name, "trace": x.trace_var},
                    **{"low": low, "high": high, "over the weight before it": after[0], "its low": after[1]},
                    **{"its high": after[2], "over whole answer's": whole[0], "whole low": whole[1]},
                    **{"whole high": whole[2], "cosine": x.cos, "scale": x.scale},
                }
            )
    return rows


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed."""
    table = {(row["step"], row["weight"]): row for row in rows}
    first, last = min(row["step"] for row in rows), max(row["step"] for row in rows)
    fresh, stale = table[first, WHOLE], table[last, WHOLE]
    ends = (stale["low"] / fresh["high"], stale["high"] / fresh["low"])
    growth = (stale["trace"] / fresh["trace"], *ends)
    wanted = [Part("whole answer: trace at the latest over that at the first", growth, "above", 1)]
    for above, below in itertools.pairwise(ORDER):
        row = table[last, below]
        ratio = (row["over the weight before it"], row["its low"], row["its high"])
        wanted.append(Part(f"trace with {below} over that with {above}", ratio, "below", 1))
    return wanted


def run(lab: Laboratory, command: str, out=None, *, replicates: int = 2000) -> str:
    """Measure, decide and publish. Returns the verdict."""
    if lab is STANDARD:
        lab = dataclasses.replace(RUN, prompts=128, answers=16)
    else:
        lab, replicates = dataclasses.replace(lab, prompts=32, answers=16), 200
    rows, whose = rows_of(lab, replicates), policy_of(lab).removesuffix(", exact scores of all parameters")
    word, reason = decide(parts(rows))
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} {lab.answers} answers to each of {lab.prompts} training problems from the first of {whose}, "
        f"scored at each of them; units of {UNIT} prompts in groups of {GROUP}, prompts and answers drawn anew; 95% "
        f"intervals by bootstrap over units, of the ratio to the first step as if the two were independent. Scores of "
        f"tokens are sketched to 4,096 numbers.",
        command=command,
        rows=rows,
        figure=_figure(rows),
        out=out,
    )
    return word


def _figure(rows: list[dict]):
    figure, (left, right) = figure_of(1, 2, (11, 4.2))
    steps = sorted({row["step"] for row in rows})
    for number, name in enumerate(SHOWN):
        mine = [row for row in rows if row["weight"] == name]
        trace, low, high = (np.array([row[key] for row in mine]) for key in ("trace", "low", "high"))
        style = {"color": PALETTE[number % 7], "marker": MARKERS[number % 7], "markersize": 5, "label": name}
        style["linestyle"] = DASHES[number // 7]
        at = np.arange(len(steps)) + 0.04 * (number - 4)
        left.errorbar(at, trace, yerr=np.maximum([trace - low, high - trace], 0), capsize=2, **style)
        ratio, low, high = (
            np.array([row[key] for row in mine]) for key in ("over whole answer's", "whole low", "whole high")
        )
        right.errorbar(at, ratio, yerr=np.maximum([ratio - low, high - ratio], 0), capsize=2, **style)
    for axis in (left, right):
        axis.set_xticks(range(len(steps)), [str(step) for step in steps])
        axis.set_xlabel("steps of RL after the answers")
    left.set(ylabel=f"tr Var ĝ of {UNIT} prompts, 95%", yscale="log")
    right.set(ylabel="the same over whole-answer weights', paired, 95%")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
