"""Does BNPO's gradient carry less noise than its peers' during training?

A shrunken gradient has less variance, so what is compared is the noise in units of the signal, tr Var ĝ / |E ĝ|², of
each method's own mean gradient. All methods see the same checkpoints and the same answers.

Written before the numbers: over the checkpoints of a run, the noise of BNPO is below that of each peer, as a geometric
mean of their ratios with its whole interval.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import figure_of, publish
from experiments.decisions import Part, decide
from experiments.pool_reports import arguments
from experiments.pools import STANDARD, Laboratory, checkpoints
from experiments.standard import BASE
from jaxrl_llm.estimators import estimators_of, needs_of
from jaxrl_llm.programs import Programs
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.sharding import fetch
from jaxrl_llm.variance.empirical_backends import exact
from jaxrl_llm.variance.empirical_pool import compare_pool
from jaxrl_llm.variance.empirical_units import Settings
from jaxrl_llm.variance_run import frozen_batch

NAME = "bnpo_variance"
QUESTION = "Does BNPO's gradient carry less noise than its peers' during training?"
CLAIM = (
    "Its Beta normalisation lowers the variance of the policy gradient below that of REINFORCE, ReMax, GRPO and "
    "REINFORCE++ (Xiao et al., 2025, arXiv 2506.02864). Dr. GRPO is added here."
)
METHODS = {
    "BNPO": "bnpo",
    "REINFORCE": "reinforce",
    "GRPO": "grpo,kl_coefficient=0.0",
    "Dr. GRPO": "dr_grpo",
    "REINFORCE++": "reinforce_pp",
    "ReMax": "remax",
}
GROUP = 8
RUN = Laboratory(
    config=dataclasses.replace(BASE, recipe="rloo", learning_rate=3e-5), steps=(0, 50, 100, 200), prompts=32, answers=64
)


def rows_of(lab: Laboratory, replicates: int) -> list[dict]:
    """A row a checkpoint and method; a batch is one group of each prompt."""
    programs, rows = Programs(lab.config), []
    estimators = dict(zip(METHODS, estimators_of(list(METHODS.values())).values(), strict=True))
    for step, params in checkpoints(lab, programs).items():
        sizes = {"prompts": lab.prompts, "answers": lab.answers}
        batch = frozen_batch(programs, params, 10**6 + step, needs=needs_of(estimators), **sizes)
        batch = jax.tree.map(jnp.asarray, fetch(batch))  # on one device, like the parameters
        settings = Settings(group_size=GROUP, replicates=replicates)
        found = compare_pool(estimators, programs.policy, params, batch, settings, backend=exact(max_bytes=2**32))
        for name, x in found.moments.items():
            low, high = x.intervals["snr"]
            rows.append(
                {
                    **{"step": step, "pass rate": float(batch.reward.mean()), "method": name, "noise": 1 / x.snr},
                    **{"low": 1 / high, "high": 1 / low if low > 0 else np.inf, "cosine": x.cos, "scale": x.scale},
                    "rescaled MSE over BNPO's": found.ratios[name]["mse_rescaled"][0],
                }
            )
    return rows


def parts(rows: list[dict]) -> list[Part]:
    """Of each peer: noise of BNPO over its own, geometric mean over the checkpoints, intervals taken as independent."""
    steps = sorted({row["step"] for row in rows})
    table = {(row["step"], row["method"]): row for row in rows}
    wanted = []
    for peer in list(METHODS)[1:]:
        pairs = [(table[step, "BNPO"], table[step, peer]) for step in steps]
        centre = np.mean([np.log(own["noise"] / other["noise"]) for own, other in pairs])
        width = lambda row: np.log(row["high"] / row["low"]) / 2 if row["low"] > 0 else np.inf  # noqa: E731
        halves = [width(row) for pair in pairs for row in pair]
        half = np.sqrt(np.sum(np.square(halves))) / len(pairs)
        interval = np.exp([centre, centre - half, centre + half])
        wanted.append(Part(f"noise of BNPO over that of {peer}", interval, "below", 1))
    return wanted


def run(lab: Laboratory, command: str, out=None, *, replicates: int = 2000) -> str:
    """Measure, decide and publish. Returns the verdict."""
    if lab is STANDARD:
        lab = RUN
    else:
        lab, replicates = dataclasses.replace(lab, prompts=8), 200  # a smoke run; any number of devices up to 8
    rows = rows_of(lab, replicates)
    word, reason = decide(parts(rows))
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} Noise is tr Var/|E ĝ|² of a batch of {lab.prompts} prompts in groups of {GROUP}, over "
        f"answers alone: pools of {lab.answers} answers to each of {lab.prompts} training problems at steps "
        f"{', '.join(map(str, lab.steps))} of one run of RLOO ({lab.config.task.spec}), drawn anew {replicates} times; "
        f"95% intervals over the draws, so nothing is said of other prompts or seeds. The rescaled MSE also counts "
        f"what a method turns the mean gradient by, which is what its normalisation is for.",
        command=command,
        rows=rows,
        figure=_figure(rows),
        out=out,
    )
    return word


def _figure(rows: list[dict]):
    figure, (left, right) = figure_of(1, 2, (10, 4))
    for number, name in enumerate(METHODS):
        mine = [row for row in rows if row["method"] == name]
        at, noise, low, high = (np.array([row[key] for row in mine]) for key in ("step", "noise", "low", "high"))
        style = {"color": PALETTE[number], "marker": "osD^vP"[number], "markersize": 5, "label": name}
        ends = np.nan_to_num([noise - low, high - noise], posinf=0)  # no upper bound: none is drawn
        left.errorbar(at + number - 2.5, noise, yerr=ends, capsize=2, **style)
        right.plot(at, [row["cosine"] for row in mine], **style)
    left.set(xlabel="step of RL", ylabel="tr Var ĝ / |E ĝ|², one batch, 95%", yscale="log")
    right.set(xlabel="step of RL", ylabel="cosine of E ĝ and the gradient of the pass rate")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
