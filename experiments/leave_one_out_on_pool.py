"""Does the law of leave-one-out's variance hold for the answers of a trained policy, and where does it lose to nothing?

Claim: leave-one-out is a U-statistic (arXiv 2603.01162): tr Var = σ_V²/G + (Var(r) F + |g|²)/(G(G-1)); the group mean
is that estimate times (G-1)/G. It follows that leave-one-out has more variance than no baseline up to a group size that
the same numbers predict, prompt by prompt, and where wrong answers carry the energy at every size (own derivation).

Rule, before the numbers, over groups of 2 to 64 drawn from pools of answers: (1) of the pairs of prompt and size whose
variance is resolved to 2%, at least 99% have measured/law in [0.9, 1.1]; (2) the scale of the group mean over (G-1)/G,
over all prompts, has an interval in [0.9, 1.1] at each size; (3) where leave-one-out and no baseline, on equal groups,
differ by more than 4 standard errors, the sign is as predicted for at least 99% of the pairs; (4) of the prompts whose
predicted size lies between 2 and 64, and of which both have been seen, at least 90% turn there: the largest size at
which leave-one-out loses is below the prediction, the smallest at which it wins above it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import figure_of, publish
from experiments.decisions import Part, decide
from experiments.pool_reports import arguments, geometric_mean, ratio_of_sums, sizes
from experiments.pools import Laboratory, Pool, pools
from jaxrl_llm.advantages import bare_rollout, group_mean, leave_one_out, no_baseline
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.moments import RlooMoments

NAME = "leave_one_out_on_pool"
QUESTION = "Does the law of leave-one-out's variance hold on a trained policy, and where does it lose to no baseline?"
CLAIM = (
    "Leave-one-out is a U-statistic of order 2 (arXiv 2603.01162): tr Var = σ_V²/G + (Var(r) F + |g|²)/(G(G-1)); the "
    "group mean is (G-1)/G of it. With rewards of 0 and 1, leave-one-out has more variance than no baseline in groups "
    "up to 1 + (Var(r) F + |g|²)/(σ_0² - σ_V²) (own derivation)."
)
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
CELLS = 2**21  # inner products held at a time
LEAST = 1000  # groups of a size
NEAR = (0.9, 1.1)
RESOLVED = 0.02  # standard error of a variance, relative to it, above which a pair is left out
CLEAR = 4.0  # standard errors that a difference takes to have a sign
CREDITS = {"rloo": leave_one_out(), "mean": group_mean(), "none": no_baseline()}


class Drawn(NamedTuple):
    """Of prompts and sizes [P S]: E|ĝ - g|² of leave-one-out with its relative standard error, that of no baseline less
    it with its standard error, and <Eĝ, g> of the group mean. Both estimates are unbiased, so E|ĝ - g|² is tr Var."""

    variance: np.ndarray
    error: np.ndarray
    gain: np.ndarray
    gain_error: np.ndarray
    along: np.ndarray


def law_of(pool: Pool) -> RlooMoments:
    """The numbers of each pool, taken as the policy [P]."""
    r, e, value = pool.reward, pool.energy, pool.pass_rate
    gap, fisher, spread = r - value[:, None], e.mean(axis=1), value * (1 - value)
    return RlooMoments(
        value=value,
        reward_variance=spread,
        fisher_trace=fisher,
        energy_covariance=(gap * e).mean(axis=1),
        value_variance=(gap**2 * e).mean(axis=1) - pool.signal,
        pair_variance=spread * fisher + pool.signal,
        gradient_norm2=pool.signal,
    )


@jax.jit
def _figures(reward, gram, chosen):
    """Of groups [C R G] of one pool, a chunk at a time: |ĝ - g|² of leave-one-out and of no baseline, <ĝ, g> of the
    group mean [C R]."""
    along = gram @ reward / len(reward)
    signal = reward @ along / len(reward)

    def chunk(rows):
        own, block = reward[rows], gram[rows[:, :, None], rows[:, None, :]]
        of = {name: t.update(own, (), bare_rollout(own))[0] / own.shape[1] for name, t in CREDITS.items()}
        to = {name: jnp.sum(weight * along[rows], axis=1) for name, weight in of.items()}
        square = lambda name: jnp.einsum("ri,rij,rj->r", of[name], block, of[name]) - 2 * to[name] + signal  # noqa: E731
        return square("rloo"), square("none"), to["mean"]

    return jax.lax.map(chunk, chosen)


def drawn(pool: Pool, groups: tuple[int, ...], answers: int) -> Drawn:
    """Figures over groups drawn with replacement, `answers` in all of each size, in LEAST groups or more; the three
    estimates see the same groups."""
    rows = []
    for p, (reward, gram) in enumerate(zip(pool.reward, pool.gram, strict=True)):
        rng, row = np.random.default_rng(p), []
        for g in groups:
            chunk = min(max(CELLS // g**2, 1), answers // g)
            chosen = rng.integers(0, len(reward), (-(-max(answers // g, LEAST) // chunk), chunk, g))
            row.append(_row(*(np.asarray(x).ravel() for x in _figures(reward, gram, chosen))))
        rows.append(row)
    return Drawn(*np.moveaxis(np.asarray(rows), -1, 0))


def _row(rloo: np.ndarray, none: np.ndarray, along: np.ndarray) -> tuple[float, ...]:
    error = lambda x: x.std(ddof=1) / len(x) ** 0.5  # noqa: E731
    return rloo.mean(), error(rloo) / rloo.mean(), (none - rloo).mean(), error(none - rloo), along.mean()


def crossings(found: Drawn, groups: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The largest size at which leave-one-out is seen to lose, 0 if none, and the smallest at which it is seen to win,
    infinite if none [P]."""
    sign, at = np.sign(found.gain) * (np.abs(found.gain) > CLEAR * found.gain_error), np.asarray(groups, float)
    return np.max(np.where(sign < 0, at, 0), axis=1), np.min(np.where(sign > 0, at, np.inf), axis=1)


def parts(found: Drawn, law: RlooMoments, groups: tuple[int, ...]) -> list[Part]:
    """What is claimed. Fields of `found` are [P S], of `law` [P]."""
    at = np.asarray(groups, float)
    ratio = found.variance / np.stack([np.asarray(law.leave_one_out_variance(g)) for g in groups], axis=1)
    seen = found.error < RESOLVED
    inside = seen & (ratio >= NEAR[0]) & (ratio <= NEAR[1])
    signal = np.asarray(law.gradient_norm2)
    scales = [ratio_of_sums(along, signal * (1 - 1 / g)) for g, along in zip(groups, found.along.T, strict=True)]
    turn = np.asarray(law.break_even_group_size)
    clear = np.abs(found.gain) > CLEAR * found.gain_error
    right = clear & ((found.gain > 0) == (at > turn[:, None]))
    lost, won = crossings(found, groups)
    between = (turn > groups[0]) & (turn < groups[-1]) & (lost > 0) & np.isfinite(won)
    agree = (lost <= turn) & (turn <= won)
    return [
        Part(f"share of {seen.sum()} pairs with measured/law in {list(NEAR)}", _share(inside, seen), "above", 0.99),
        Part("lowest scale of the group mean over (G-1)/G", min(scales, key=lambda x: x[1]), "above", NEAR[0]),
        Part("highest scale of the group mean over (G-1)/G", max(scales, key=lambda x: x[2]), "below", NEAR[1]),
        Part(f"share of {clear.sum()} clear signs that are as predicted", _share(right, clear), "above", 0.99),
        Part(
            f"share of {between.sum()} prompts seen on both sides of a predicted crossing that turn there",
            _share(agree[between, None], np.ones((between.sum(), 1))),
            "above",
            0.9,
        ),
    ]


def _share(some: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Σ some/Σ of with an interval over prompts [3]."""
    any_ = of.sum(axis=1) > 0
    return ratio_of_sums(some.sum(axis=1)[any_].astype(float), of.sum(axis=1)[any_].astype(float))


def run(lab: Laboratory, command: str, out=None, *, answers: int = 4_000_000) -> str:
    """Measure, decide and publish. Returns the verdict."""
    groups = SIZES if len(lab.steps) > 1 else (2, 4, 8)
    answers = answers if len(lab.steps) > 1 else 4000  # a smoke run
    pool = pools(lab)
    pool = pool.prompts(np.minimum(pool.reward.sum(axis=1), (1 - pool.reward).sum(axis=1)) >= 2)
    with jax.enable_x64(True):
        law = law_of(pool)
        found = drawn(pool, groups, answers)
        word, reason = decide(parts(found, law, groups))
        rows = [*_rows(pool, law, found, groups)]
        figure = _figure(law, found, groups)
        never = int(np.isinf(np.asarray(law.break_even_group_size)).sum())
    left_out = (found.error >= RESOLVED).sum()
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} {answers}/G groups of each size G were drawn with replacement from each of "
        f"{len(pool.reward)} pools with two right and two wrong answers or more; {left_out} of {found.error.size} "
        f"pairs of prompt and size were left out of the first part: their variance is not resolved to {RESOLVED:.0%}. "
        f"The law is that of the pool taken as the policy, so the gap to it is sampling of groups alone. By the law "
        f"{never} prompts cross at no size: 0 is a better constant there than the pass rate. {sizes(lab)}",
        command=command,
        rows=rows,
        figure=figure,
        out=out,
    )
    return word


def _rows(pool: Pool, law: RlooMoments, found: Drawn, groups: tuple[int, ...]):
    """A row a size; a prompt's own numbers are in the figure."""
    turn = np.asarray(law.break_even_group_size)
    for i, g in enumerate(groups):
        ratio = found.variance[:, i] / np.asarray(law.leave_one_out_variance(g))
        seen = found.error[:, i] < RESOLVED
        clear = np.abs(found.gain[:, i]) > CLEAR * found.gain_error[:, i]
        value, low, high = geometric_mean(ratio[seen])
        scale = ratio_of_sums(found.along[:, i], np.asarray(law.gradient_norm2))
        yield {
            "G": g,
            "prompts resolved": seen.sum(),
            "measured/law": value,
            "low": low,
            "high": high,
            "farthest from 1": np.max(np.abs(ratio[seen] - 1), initial=0.0),
            "largest standard error": np.max(found.error[seen, i], initial=0.0),
            "scale of group mean": scale[0],
            "(G-1)/G": 1 - 1 / g,
            "seen to win": np.sum(clear & (found.gain[:, i] > 0)),
            "seen to lose": np.sum(clear & (found.gain[:, i] < 0)),
            "predicted to win": np.sum(turn < g),
            "prompts": len(turn),
        }


def _figure(law: RlooMoments, found: Drawn, groups: tuple[int, ...]):
    figure, (left, right) = figure_of(1, 2, (11, 4.4))
    at = np.asarray(groups, float)
    ratio = found.variance / np.stack([np.asarray(law.leave_one_out_variance(g)) for g in groups], axis=1)
    seen = found.error < RESOLVED
    for p in range(len(ratio)):
        left.plot(at[seen[p]], ratio[p][seen[p]], "-", color=PALETTE[0], alpha=0.25, linewidth=0.8)
    middle = np.array([geometric_mean(ratio[seen[:, i], i]) for i in range(len(groups))])
    ends = [middle[:, 0] - middle[:, 1], middle[:, 2] - middle[:, 0]]
    left.errorbar(at, middle[:, 0], yerr=ends, fmt="o", color=PALETTE[1], markersize=4, capsize=2)
    left.axhspan(*NEAR, color="#000000", alpha=0.06, linewidth=0)
    left.axhline(1, color="#999999", linewidth=0.8)
    left.set(xscale="log", xlabel="group size G", ylabel="variance of leave-one-out, measured / law")
    left.set_title("lines: prompts; points: geometric mean, 95% over prompts", fontsize=9)
    left.set_xticks(groups, groups)
    left.minorticks_off()
    turn = np.asarray(law.break_even_group_size)
    inside = (turn > groups[0]) & (turn < groups[-1])
    for p in np.argsort(inside, kind="stable"):
        colour, width = (PALETTE[1], 1.2) if inside[p] else (PALETTE[0], 0.8)
        right.plot(at, 1 + found.gain[p] / found.variance[p], color=colour, linewidth=width, alpha=0.6)
    right.plot(turn[inside], np.ones(inside.sum()), "k|", markersize=11)
    right.axhline(1, color="#999999", linewidth=0.8)
    right.set(xscale="log", yscale="log", xlabel="group size G")
    right.set_ylabel("variance of no baseline / of leave-one-out, measured")
    right.set_title("above 1 leave-one-out wins; bars: where the law lets a prompt cross", fontsize=9)
    right.set_xticks(groups, groups)
    right.minorticks_off()
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
