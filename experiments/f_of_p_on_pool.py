"""Do groups of a trained policy's answers push the pass rate of a prompt with the weight that a scheme's F'(p) says?

Claim: every scheme for rewards of 0 and 1 ascends the mean of some F(p) (Davis and Recht, arXiv 2510.13651). In groups
of G the mean estimate is F'(p) times the gradient of p, with F' a polynomial of degree G - 1 (own derivation): nearly
flat for GRPO at G = 8, where its limit is 1/sqrt(p(1-p)), and a truncation of 1/p of order G - 1 for centred MaxRL
(arXiv 2602.02710).

Rule, before the numbers, over groups of 8 drawn from pools of answers, 12 schemes, with <Eĝ, ∇p>/|∇p|² as the measured
weight: (1) of the pairs of prompt and scheme whose weight is resolved to 1% of F'(p), at least 99% are within 5% of it;
(2) the slope of GRPO's log weight over that of its limit, -1/2 log(p(1-p)), is below 1/2: nearer to flat than to the
limit; (3) with centred MaxRL's weight as (1 - (1-p)^n)/p, the n that fits best lies between 6.5 and 7.5. Intervals are
over prompts.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import figure_of, publish
from experiments.binary_sufficiency import SCHEMES
from experiments.decisions import Part, decide
from experiments.pool_reports import arguments, ratio_of_sums, sizes
from experiments.pools import Laboratory, Pool, pools
from jaxrl_llm.advantages import bare_rollout
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.bernstein import slope
from jaxrl_llm.variance.binary import scheme_of

NAME = "f_of_p_on_pool"
QUESTION = "Do groups of a trained policy push the pass rate of a prompt with the weight that a scheme's F'(p) says?"
CLAIM = (
    "Every scheme ascends the mean of some F(p) (Davis and Recht, arXiv 2510.13651). Tested here, own derivation: the "
    "mean estimate is F'(p) ∇p with a polynomial F' of degree G - 1, so that GRPO is nearly flat in groups of 8 and "
    "centred MaxRL (arXiv 2602.02710) is a truncation of 1/p of order G - 1."
)
GROUP = 8
NEAR = (0.95, 1.05)
RESOLVED = 0.01  # standard error of a weight, relative to F', above which a pair is left out
GRPO, MAXRL = "group std", "MaxRL"
ORDERS = np.arange(2.0, 16.0, 0.01)
LIMITS = {GRPO: lambda p: (p * (1 - p)) ** -0.5, MAXRL: lambda p: 1 / p, "log-odds": lambda p: 1 / (p * (1 - p))}


class Weights(NamedTuple):
    """By scheme, over prompts [P]: the measured weight on ∇p, its standard error, and F'(p)."""

    measured: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    law: dict[str, np.ndarray]

    def seen(self, name: str) -> np.ndarray:
        """Which prompts resolve the weight."""
        return self.error[name] < RESOLVED * np.abs(self.law[name])


@functools.partial(jax.jit, static_argnums=0)
def _along(name: str, reward, along, chosen):
    """<ĝ, g> of groups [R G] of one pool; `along` [M] is <s, g> of each answer."""
    own, scheme = reward[chosen], SCHEMES[name]
    credit, _ = scheme.update(own, scheme.init(), bare_rollout(own))
    return jnp.sum(credit * along[chosen], axis=1) / own.shape[1]


def weights(pool: Pool, draws: int) -> Weights:
    """Over groups of 8 drawn with replacement, the same for all schemes. The gradient of a pool's pass rate is g."""
    m, rows = pool.reward.shape[1], []
    for p, (reward, gram) in enumerate(zip(pool.reward, pool.gram, strict=True)):
        along, chosen = gram @ reward / m, np.random.default_rng(p).integers(0, m, (draws, GROUP))
        signal = reward @ along / m
        each = [np.asarray(_along(name, reward, along, chosen)) / signal for name in SCHEMES]
        rows.append([(x.mean(), x.std(ddof=1) / draws**0.5) for x in each])
    found, law = np.asarray(rows), jnp.asarray(pool.pass_rate)
    by_scheme = lambda column: dict(zip(SCHEMES, found[:, :, column].T, strict=True))  # noqa: E731
    curve = {name: np.asarray(slope(scheme_of(t, GROUP).coefficients, law)) for name, t in SCHEMES.items()}
    return Weights(by_scheme(0), by_scheme(1), curve)


def parts(found: Weights, rate: np.ndarray) -> list[Part]:
    """What is claimed; `rate` [P] are the pass rates."""
    seen = np.stack([found.seen(name) for name in SCHEMES], axis=1)
    ratio = np.stack([found.measured[name] / found.law[name] for name in SCHEMES], axis=1)
    inside = seen & (ratio >= NEAR[0]) & (ratio <= NEAR[1])
    some = seen.any(axis=1)
    share = ratio_of_sums(inside[some].sum(axis=1).astype(float), seen[some].sum(axis=1).astype(float))
    steep, order = over_prompts(flatness, found, rate, GRPO), over_prompts(truncation, found, rate, MAXRL)
    return [
        Part(f"share of {seen.sum()} pairs with measured/F' in {list(NEAR)}", share, "above", 0.99),
        Part("GRPO: slope of the log weight over that of the limit", steep, "below", 0.5),
        Part("centred MaxRL: order of the truncation", order, "above", GROUP - 1.5),
        Part("centred MaxRL: the same", order, "below", GROUP - 0.5),
    ]


def flatness(rate: np.ndarray, weight: np.ndarray) -> float:
    """Least squares slope of log weight over -1/2 log(p(1-p)): 1 in the limit of large groups, 0 for a flat weight."""
    if np.ptp(rate) == 0:  # a bootstrap sample of one prompt
        return np.nan
    return float(np.polyfit(-0.5 * np.log(rate * (1 - rate)), np.log(weight), 1)[0])


def truncation(rate: np.ndarray, weight: np.ndarray) -> float:
    """n of the (1 - (1-p)^n)/p that is nearest to the weights, in squares of the relative distance."""
    curve = (1 - (1 - rate) ** ORDERS[:, None]) / rate
    return float(ORDERS[np.argmin(np.sum((weight / curve - 1) ** 2, axis=1))])


def over_prompts(figure, found: Weights, rate: np.ndarray, name: str, *, level: float = 0.95) -> np.ndarray:
    """A figure of the prompts that resolve the scheme's weight, and its bootstrap interval [3]; NaN of fewer than 4."""
    seen = found.seen(name)
    p, w = rate[seen], found.measured[name][seen]
    if len(p) < 4:
        return np.full(3, np.nan)
    rows = np.random.default_rng(0).integers(0, len(p), (1000, len(p)))
    spread = [figure(p[row], w[row]) for row in rows]
    return np.array([figure(p, w), *np.nanquantile(spread, [(1 - level) / 2, (1 + level) / 2])])


def run(lab: Laboratory, command: str, out=None, *, draws: int = 1_000_000) -> str:
    """Measure, decide and publish. Returns the verdict."""
    draws = draws if len(lab.steps) > 1 else 4000  # a smoke run
    pool = pools(lab)
    pool = pool.prompts((pool.pass_rate > 0) & (pool.pass_rate < 1))
    with jax.enable_x64(True):
        found = weights(pool, draws)
    word, reason = decide(parts(found, pool.pass_rate))
    seen = sum(found.seen(name).sum() for name in SCHEMES)
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} {draws} groups of {GROUP} were drawn with replacement from each of {len(pool.reward)} pools, "
        f"whose pass rates lie between {pool.pass_rate.min():.3f} and {pool.pass_rate.max():.3f}; "
        f"{len(pool.reward) * len(SCHEMES) - seen} pairs of prompt and scheme were left out, whose weight is not "
        f"resolved to {RESOLVED:.0%}. p and its gradient are those of the pool, taken as the policy. {sizes(lab)}",
        command=command,
        rows=[_row(name, found) for name in SCHEMES],
        figure=_figure(found, pool.pass_rate),
        out=out,
    )
    return word


def _row(name: str, found: Weights) -> dict:
    seen = found.seen(name)
    ratio = (found.measured[name] / found.law[name])[seen]
    low, middle, high = np.quantile(ratio, [0.05, 0.5, 0.95]) if len(ratio) else [np.nan] * 3
    worst = np.max(np.abs(ratio - 1), initial=0.0)
    ends = {"smallest F'": found.law[name].min(), "largest F'": found.law[name].max()}
    row = {"scheme": name, "prompts resolved": seen.sum(), "measured/F': median": middle, "5%": low, "95%": high}
    return row | {"farthest from 1": worst} | ends


def _figure(found: Weights, rate: np.ndarray):
    figure, axes = figure_of(3, 4, (12, 8))
    p = np.linspace(0.02, 0.98, 193)
    with jax.enable_x64(True):
        law = lambda t: np.asarray(slope(scheme_of(t, GROUP).coefficients, jnp.asarray(p)))  # noqa: E731
        curves = {name: law(t) for name, t in SCHEMES.items()}
    for axis, (name, curve) in zip(axes.ravel(), curves.items(), strict=True):
        if name in LIMITS:
            axis.plot(p, LIMITS[name](p), ":", color="#777777", linewidth=1, label="limit of large groups")
            axis.legend(frameon=False, fontsize=8, loc="lower left")
        axis.plot(p, curve, color=PALETTE[0], linewidth=1)
        ends = 1.96 * found.error[name]
        axis.errorbar(rate, found.measured[name], yerr=ends, fmt="o", color=PALETTE[1], markersize=2.5, elinewidth=0.8)
        top = max(float(np.max(curve)), float(np.max(found.measured[name] + ends)))
        axis.set(xlim=(0, 1), ylim=(0, 1.15 * top))
        axis.set_title(name, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("pass rate p")
    for axis in axes[:, 0]:
        axis.set_ylabel("weight on ∇p")
    figure.suptitle(f"lines: F'(p) in groups of {GROUP}; points: measured, 95% over the groups drawn", fontsize=9)
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
