"""Does a James-Stein baseline vary less than leave-one-out in small groups, and at which batch may it be estimated?

Claim: shrinking a prompt's mean towards that of the other prompts lowers the gradient variance below leave-one-out's in
small groups (James-Stein baselines, arXiv 2511.03710). Own expectation beside it: the released form, whose weight and
common mean hold the own prompt, is biased; and the estimated weight λ is too noisy in batches below 8 prompts.

Rule, before the numbers, in groups of 2 on pools of prompts whose batch holds each prompt once, so that only answers
are drawn. Geometric means over the pools with 95% intervals over the pools. The variance of the left-out form is below
that of leave-one-out at 3, 4, 8 and 16 prompts, its bias below 1e-9 where enumerated; the released form is biased by
more than 1e-3 of the gradient in every pool enumerated; over the best fixed λ (one for all pools of a size) the
left-out form has more than 1.05 times the variance at 4 prompts and less than that at 8 and at 16.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from experiments.intervals import interval, mean
from experiments.problems import facts, pool
from jaxrl_llm.advantages import (
    AdvantageTransform,
    Traits,
    bare_rollout,
    james_stein,
    james_stein_deployed,
    leave_one_out,
    other_prompts_mean,
    shrunk_leave_one_out,
    stateless,
)
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.exact import moments

NAME = "shrinkage"
QUESTION = (
    "Does a James-Stein baseline vary less than leave-one-out in small groups, and at which batch may it be estimated?"
)
CLAIM = (
    "Shrinking a prompt's mean towards that of the other prompts lowers the gradient variance below leave-one-out's in "
    "small groups (arXiv 2511.03710). Own expectation beside it: the released form is biased, and its weight λ, "
    "estimated from the batch, is too noisy below 8 prompts."
)
BASE, LEFT_OUT, RELEASED, FIXED = "leave-one-out", "James-Stein, left out", "James-Stein, released", "best fixed λ"
NOISELESS = {
    "its λ, exact moments": 1,
    "λ without the noise in s": 0,
}  # the share of u that s, a spread of means, holds
ENUMERATED, DRAWN = (2, 3, 4), (8, 16)
PRICE = 1.05


def fixed(share: float) -> AdvantageTransform:
    """(1-λ) · credit of leave-one-out + λ · credit against the other prompts' mean: James-Stein with a given λ."""
    own, common = leave_one_out(), other_prompts_mean()

    def fn(advantage, rollout):
        return (1 - share) * own.update(advantage, (), rollout)[0] + share * common.update(advantage, (), rollout)[0]

    return stateless(fn, Traits(unbiased="yes", batch_wide=True, needs_iid=True, minimum_prompts=2, minimum_group=2))


ESTIMATORS = {
    BASE: leave_one_out(),
    LEFT_OUT: james_stein(),
    RELEASED: james_stein_deployed(smoothing=0.0),
    "halved leave-one-out": shrunk_leave_one_out(factor=0.5),
    "λ = 1/2": fixed(0.5),
    "λ = 1": fixed(1.0),
}


def measured(tables: tuple, group: int, draws: int) -> dict[str, tuple[float, float]]:
    """Estimator -> variance, and bias over |g|; drawn batches do not resolve the bias: NaN."""
    if len(tables) in ENUMERATED:
        found = {name: moments(x, tables, group, prompts=None) for name, x in ESTIMATORS.items()}
        size = float(jnp.linalg.norm(jnp.mean(jnp.stack([t.gradient for t in tables]), axis=0)))
        return {name: (x.trace_var, x.bias_norm / size) for name, x in found.items()}
    rng = np.random.default_rng(len(tables))
    probs, scores, rewards = (np.stack([getattr(t, name) for t in tables]) for name in ("probs", "scores", "rewards"))
    chosen = (rng.uniform(size=(draws, len(tables), group, 1)) > np.cumsum(probs, axis=1)[:, None, :-1]).sum(axis=-1)
    rows = np.arange(len(tables))[:, None]
    spread = _spread(jnp.asarray(rewards[rows, chosen]), jnp.asarray(scores[rows, chosen]))
    return {name: (float(x), float("nan")) for name, x in spread.items()}


@jax.jit
def _spread(reward, scores):
    """Variance of each estimate over the batches: rewards [M B G], scores [M B G D], the same for all estimators."""

    def of(transform):
        credit = jax.vmap(lambda r: transform.update(r, transform.init(), bare_rollout(r))[0])(reward)
        estimate = jnp.mean(credit[..., None] * scores, axis=(1, 2))
        return jnp.sum(jnp.var(estimate, axis=0, ddof=1))

    return {name: of(transform) for name, transform in ESTIMATORS.items()}


def pools(prompts: int, group: int, count: int, draws: int) -> list[dict]:
    """A row an estimator: its variance over leave-one-out's, geometric mean over the pools with its interval."""
    found = [measured(pool(prompts, seed=seed), group, draws) for seed in range(count)]
    ratio = {name: np.array([x[name][0] / x[BASE][0] for x in found]) for name in ESTIMATORS}
    of_share = functools.partial(parabola, ratio[BASE], ratio["λ = 1/2"], ratio["λ = 1"])
    shares = np.linspace(0, 1, 101)[:, None]
    fixed_shares = of_share(shares)
    best = int(np.argmin(np.mean(np.log(fixed_shares), axis=1)))
    ratio[FIXED] = fixed_shares[best]
    for name, held in NOISELESS.items():
        ratio[name] = of_share(np.array([limit(pool(prompts, seed=seed), group, held) for seed in range(count)]))
    how = "enumerated" if prompts in ENUMERATED else f"{draws} batches"
    rows = []
    for name, values in ratio.items():
        value, low, high = geometric(values)
        row = {"prompts": prompts, "G": group, "how": how, "pools": count, "estimator": name}
        row |= {"variance / leave-one-out's": value, "low": low, "high": high}
        if name in ESTIMATORS and prompts in ENUMERATED:
            bias = [x[name][1] for x in found]
            row |= {"least bias over the gradient": min(bias), "largest bias over the gradient": max(bias)}
        if name == FIXED:
            row |= {"λ": float(shares[best, 0])}
        if name == LEFT_OUT:
            row |= dict(
                zip(("over fixed λ", "its low", "its high"), geometric(values / fixed_shares[best]), strict=True)
            )
        rows.append(row)
    return rows


def parabola(none: np.ndarray, half: np.ndarray, one: np.ndarray, share: np.ndarray | float) -> np.ndarray:
    """The variance at a fixed λ from those at 0, 1/2 and 1: the estimate mixes two, so its variance is a parabola."""
    return none + share * (4 * half - 3 * none - one) + share**2 * (2 * none + 2 * one - 4 * half)


def limit(tables: tuple, group: int, held: int) -> float:
    """u/(u + s) of the exact moments: u the mean variance of a prompt's mean, s the spread of the means that are seen,
    which holds u · (1 - 1/B) of noise, or of the values themselves (held = 0)."""
    each = [facts(table) for table in tables]
    u = float(np.mean([m.reward_variance for m in each])) / group
    return u / (u + float(np.var([m.value for m in each])) + held * u * (1 - 1 / len(tables)))


def geometric(values: np.ndarray) -> tuple[float, float, float]:
    """Geometric mean over pools: value, low, high."""
    found = interval(np.log(values), mean)
    return tuple(float(np.exp(x)) for x in (found.point, found.low, found.high))


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed, in groups of 2."""
    at = {(row["prompts"], row["estimator"]): row for row in rows if row["G"] == 2}
    sizes = sorted({prompts for prompts, _ in at})
    wanted = []
    for b in sizes:
        row = at[b, LEFT_OUT]
        if b > 2:
            ends = [row[key] for key in ("variance / leave-one-out's", "low", "high")]
            wanted.append(Part(f"{b} prompts: variance of the left-out form over leave-one-out's", ends, "below", 1))
        if b in (4, *DRAWN):
            price = [row[key] for key in ("over fixed λ", "its low", "its high")]
            wanted.append(
                Part(f"{b} prompts: the same over the best fixed λ's", price, "above" if b == 4 else "below", PRICE)
            )
        if b in ENUMERATED:
            own, leaky = row["largest bias over the gradient"], at[b, RELEASED]["least bias over the gradient"]
            wanted.append(Part(f"{b} prompts: largest bias of the left-out form", exact(own), "below", 1e-9))
            wanted.append(Part(f"{b} prompts: least bias of the released form", exact(leaky), "above", 1e-3))
    return wanted


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, draw, decide and publish. Returns the verdict."""
    count, draws, sizes = (4, 200, (2, 3, 8)) if smoke else (24, 4000, (*ENUMERATED, *DRAWN))
    measure = functools.partial(pools, count=count, draws=draws)
    rows = [row for b in sizes for row in measure(b, 2)] + [row for g in (4, 8) for row in measure(8, g)]
    word, reason = decided(parts(rows))
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} {count} pools of each size: 3 answers a prompt, 4 shared parameters, rewards uniform in "
        f"[0, 1). Up to 4 prompts every batch is enumerated; beyond, all estimators see the same batches. The "
        f"released form is run without smoothing of λ over steps. Of the price over the best fixed λ, rows with λ of "
        f"the exact moments tell what is the formula, in which the spread of means holds their noise, and what is the "
        f"noise of the estimate.",
        command=command,
        rows=rows,
        figure=_figure(rows),
        out=out,
    )
    return word


def _figure(rows: list[dict]):
    figure, axes = figure_of(1, 2, (11, 4.2))
    for axis, key, fixed_key, at, label in (
        (axes[0], "prompts", "G", 2, "prompts a batch, groups of 2"),
        (axes[1], "G", "prompts", 8, "answers a prompt, 8 prompts"),
    ):
        for number, name in enumerate((LEFT_OUT, RELEASED, FIXED, "λ = 1", *NOISELESS)):
            mine = [row for row in rows if row[fixed_key] == at and row["estimator"] == name]
            x, value, low, high = (
                np.array([r[k] for r in mine]) for k in (key, "variance / leave-one-out's", "low", "high")
            )
            style = {"color": PALETTE[number], "marker": "osD^vP"[number], "markersize": 5, "capsize": 2, "label": name}
            axis.errorbar(x * 1.02 ** (number - 2), value, yerr=[value - low, high - value], **style)
        axis.axhline(1, color="#999999", linewidth=0.8)
        axis.set_xscale("log", base=2)
        ticks = sorted({row[key] for row in rows if row[fixed_key] == at})
        axis.set_xticks(ticks, map(str, ticks))
        axis.set(xlabel=label, ylabel="variance / leave-one-out's, 95% over pools")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
