"""Do three ways to estimate the gradient noise scale agree over training, and how does it move with the pass rate?

Claim: noise / signal = tr Σ₁/|g|² can be read off two batch sizes (McCandlish et al., 2018), off the spread between
units (ANOVA), or off their inner products; and it rises as the pass rate leaves 1/2.

A unit is a prompt with 8 answers and leave-one-out credit. At each checkpoint every estimator has units of its own, so
that they can disagree. Written before the numbers: the ratios of two-batch and of Gram to ANOVA, as geometric means
over the checkpoints at which all are resolved, lie between 0.8 and 1.25 with their intervals; the noise scale at the
checkpoint whose pass rate is farthest from 1/2 is above that at the nearest.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import figure_of, publish
from experiments.decisions import Part, decide
from experiments.pool_reports import arguments, policy_of
from experiments.pools import Laboratory, checkpoints
from jaxrl_llm.advantages import leave_one_out
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.programs import Programs
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.noise_scale import NoiseScale, NoiseScaleInterval, anova, from_gram, over_steps, two_batch

NAME = "noise_scale"
QUESTION = "Do three ways to estimate the gradient noise scale agree over training, and does it rise as p leaves 1/2?"
CLAIM = (
    "The noise scale tr Σ₁/|g|² can be read off two batch sizes (McCandlish et al., 2018), off the spread between "
    "units or off their inner products; and it rises as the pass rate leaves 1/2."
)
GROUP, BATCH, PARTS = 8, 64, 8  # answers of a unit; units of a batch; small batches in it
BOUNDS = (0.8, 1.25)
WAYS = ("two-batch", "ANOVA", "Gram")


def read(units: np.ndarray) -> dict[str, NoiseScaleInterval]:
    """Each way's estimate from its own units [ways S B D], S batches of B each, and its interval."""

    def pair(batch):
        small = jnp.mean(batch.reshape(PARTS, len(batch) // PARTS, -1), axis=1)
        square = lambda x: jnp.sum(x**2, axis=-1)  # noqa: E731
        return two_batch(
            jnp.mean(square(small)), square(jnp.mean(batch, axis=0)), small=len(batch) // PARTS, large=len(batch)
        )

    each = {"two-batch": pair, "ANOVA": anova, "Gram": lambda batch: from_gram(batch @ batch.T)}
    found = {}
    for (name, estimate), batches in zip(each.items(), units, strict=True):
        steps = [estimate(jnp.asarray(batch)) for batch in batches]
        found[name] = over_steps(NoiseScale(*(jnp.stack(x) for x in zip(*steps, strict=True))), level=0.95)
    return found


@functools.partial(jax.jit, static_argnums=0)
def unit_gradients(policy, params, rollout):
    """[P D]: 1/G Σ A s of each prompt's group."""
    credit = leave_one_out()
    advantage, _ = credit.update(rollout.reward, credit.init(), rollout)

    def one(row):
        prompt, mask, answer, acted, a = (x[None] for x in row)

        def objective(params):
            return jnp.sum(
                jnp.where(acted, answer_logp(policy, params, prompt, mask, answer, acted)[0], 0) * a[..., None]
            )

        leaves = jax.tree.leaves(jax.grad(objective)(params))
        return jnp.concatenate([x.reshape(-1) for x in leaves]) / advantage.shape[1]

    rows = (rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted, advantage)
    return jax.lax.map(one, rows)


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed of the rows of the table, one a checkpoint and way."""
    table = {(row["step"], row["way"]): row for row in rows}
    steps = sorted({row["step"] for row in rows})
    sure = [step for step in steps if all(np.isfinite(table[step, way]["high"]) for way in WAYS)]
    wanted = []
    for way in ("two-batch", "Gram"):
        ratio = _ratio([(table[step, way], table[step, "ANOVA"]) for step in sure])
        for side, bound in zip(("above", "below"), BOUNDS, strict=True):
            wanted.append(Part(f"{way} over ANOVA, mean of {len(sure)} checkpoints", ratio, side, bound))
    far, near = (pick(steps, key=lambda s: abs(table[s, "Gram"]["pass rate"] - 0.5)) for pick in (max, min))
    last = "noise scale where the pass rate is farthest from 1/2 over that where it is nearest (mean of the ways)"
    pairs = [(table[far, way], table[near, way]) for way in WAYS] if {far, near} <= set(sure) else []
    return [*wanted, Part(last, _ratio(pairs), "above", 1)]


def _ratio(pairs: list[tuple[dict, dict]]) -> np.ndarray:
    """Geometric mean of above/below with an interval, from intervals of independent estimates."""
    if not pairs:
        return np.full(3, np.nan)
    value = np.mean([np.log(a["noise scale"] / b["noise scale"]) for a, b in pairs])
    halves = [np.log(row["high"] / row["low"]) / 2 for pair in pairs for row in pair]
    half = np.sqrt(np.sum(np.square(halves))) / len(pairs)
    return np.exp([value, value - half, value + half])


def run(lab: Laboratory, command: str, out=None, *, batches: int = 40) -> str:
    """Measure, decide and publish. Returns the verdict."""
    lab, batches, batch = _looks(lab, batches)
    programs = Programs(lab.config)
    count = len(WAYS) * batches
    every = {"prompts_per_step": count * batch, "answers_per_prompt": GROUP}
    sampler = Programs(dataclasses.replace(lab.config, **every))
    rows = []
    for step, params in checkpoints(lab, programs).items():
        # A step that training never reaches, and another than those of the pools.
        answers = sampler.sample(params, 2 * 10**6 + step)
        cuts = [jax.tree.map(lambda x, i=i: x[i * batch : (i + 1) * batch], answers) for i in range(count)]
        units = np.stack([np.asarray(unit_gradients(programs.policy, params, cut)) for cut in cuts])
        found = read(units.reshape(len(WAYS), batches, batch, -1))
        for way, x in found.items():
            row = {
                "step": step,
                "pass rate": float(answers.reward.mean()),
                "way": way,
                "noise scale": float(x.b_simple),
            }
            row |= {"low": float(x.bounds[0]), "high": float(x.bounds[1]), "signal": float(x.signal)}
            rows.append(row | {"noise": float(x.noise), "units": batches * batch})
    word, reason = decide(parts(rows))
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} Units are prompts with {GROUP} answers; {batches} batches of {batch} units for each way at "
        f"each checkpoint, small batches of {batch // PARTS}. Intervals of 95% by jackknife over batches. Checkpoints: "
        f"{policy_of(lab)}; there is one run, so nothing is said of other seeds.",
        command=command,
        rows=rows,
        figure=_figure(rows),
        out=out,
    )
    return word


def _looks(lab: Laboratory, batches: int) -> tuple[Laboratory, int, int]:
    """The same run, looked at more often; next to nothing of it in a smoke run."""
    last = lab.steps[-1]
    more = tuple(sorted({last * i // 16 for i in (0, 1, 2, 4, 8, 16)}))
    return (lab, 3, 8) if last == 0 else (dataclasses.replace(lab, steps=more), batches, BATCH)


def _figure(rows: list[dict]):
    figure, (left, right) = figure_of(1, 2, (11, 4))
    for i, (way, colour, marker) in enumerate(zip(WAYS, PALETTE, "osD", strict=False)):
        mine = [row for row in rows if row["way"] == way]
        for axis, key, shift in ((left, "step", i - 1), (right, "pass rate", 0)):
            x = np.array([row[key] for row in mine], float)
            x = x + shift * (x.max() - x.min()) * 0.012
            y, low, high = (np.array([row[name] for row in mine]) for name in ("noise scale", "low", "high"))
            sure = np.isfinite(high)
            if sure.any():
                ends = [(y - low)[sure], (high - y)[sure]]
                style = {"fmt": marker, "color": colour, "capsize": 3, "markersize": 5}
                axis.errorbar(x[sure], y[sure], yerr=ends, label=way, **style)
            axis.scatter(x[~sure], low[~sure], marker="^", color=colour, facecolor="none")
    left.set(xlabel="step of RL", ylabel="noise scale, units of 8 answers, 95%", yscale="log")
    right.set(xlabel="pass rate at the checkpoint", yscale="log")
    for axis in (left, right):
        axis.set_yticks([30, 50, 100, 200, 300], ["30", "50", "100", "200", "300"])
        axis.set_yticks([], minor=True)
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False)
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
