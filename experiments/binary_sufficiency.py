"""Do four numbers of a prompt predict the variance of every scheme for rewards of 0 and 1?

Claim (own derivation): p, the spread of the scores among right and among wrong answers, and |∇p|² give the exact
variance of every scheme that reads only how many answers of a group are right, at every group size.

Written before the numbers: (1) with the four numbers of the pool itself, predicted / observed lies in [0.9, 1.1] for at
least 90% of the pairs of prompt and scheme, where observed is the variance over groups drawn from the pool; (2) with
the four numbers of one half of the answers, the error against groups drawn from the other half is at most 1.05 times
that of drawing groups from the first half instead: what is left then is noise of the half, and not of the formula.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import figure_of, publish
from experiments.decisions import Part, decide
from experiments.pool_reports import arguments, ratio_of_sums, sizes
from experiments.pools import Laboratory, Pool, pools, resample
from jaxrl_llm import advantages as parts_of
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.binary import BinaryMoments, scheme_of

NAME = "binary_sufficiency"
QUESTION = "Do four numbers of a prompt predict the variance of every scheme for rewards of 0 and 1?"
CLAIM = (
    "Pass rate, spread of the scores among right and among wrong answers, and |∇p|² give the variance of every scheme "
    "that reads only how many answers of a group are right, at every group size (own derivation)."
)
SCHEMES = {
    "no baseline": parts_of.no_baseline(),
    "leave-one-out": parts_of.leave_one_out(),
    "group mean": parts_of.group_mean(),
    "group std": parts_of.chain(parts_of.group_mean(), parts_of.group_std(ddof=0, eps=0.0)),
    "MaxRL": parts_of.maxrl_centred(eps=0.0),
    "MaxRL, raw": parts_of.maxrl_raw(),
    "log-odds": parts_of.log_odds(),
    "positives": parts_of.positive_only(),
    "negatives": parts_of.negative_only(),
    "focal": parts_of.focal(gamma=1.0),
    "pass@2": parts_of.pass_at_k(k=2),
    "top gap": parts_of.top_gap(),
}
SIZES = (4, 8, 16)
NEAR = (0.9, 1.1)
ROUNDING = 1e-5  # of E|ĝ|²: the scores are float32, a smaller variance is rounding, or groups that never came up
RESOLVED = 0.05  # standard error of the observed variance, relative to it; a pair above it is left out
ENOUGH = 0.9


def of_pool(pool: Pool) -> BinaryMoments:
    """The four numbers of each pool, taken as the policy."""

    def spread(where):
        n = where.sum(axis=1)
        squares = np.einsum("pm,pm->p", where, pool.energy) / n
        return squares - np.einsum("pm,pmn,pn->p", where, pool.gram, where) / n**2

    right = pool.reward
    return BinaryMoments(
        p=pool.pass_rate, tau_plus=spread(right), tau_minus=spread(1 - right), grad_p_norm2=pool.signal
    )


def predicted(moments: BinaryMoments, group_size: int) -> dict[str, np.ndarray]:
    """Variance [P] of each scheme."""
    each = jax.vmap(BinaryMoments.variance, (0, None))
    return {name: np.asarray(each(moments, scheme_of(t, group_size))) for name, t in SCHEMES.items()}


def observed(pool: Pool, group_size: int, draws: int) -> dict[str, np.ndarray]:
    """Variance [P] over groups drawn from the pool; NaN where too few of them had any credit to tell."""
    found = resample(pool, SCHEMES, group_size, draws=draws, seed=group_size)
    resolved = lambda x: (x.error < RESOLVED) & (x.variance > ROUNDING * x.mean_square)  # noqa: E731
    return {name: np.where(resolved(x), x.variance, np.nan) for name, x in found.items()}


def parts(ratios: np.ndarray, formula: np.ndarray, control: np.ndarray) -> list[Part]:
    """`ratios` [P S]: predicted/observed, pool against pool. `formula`, `control`: |log ratio| between halves [P S].

    NaN: not resolved, left out.
    """
    seen = np.isfinite(ratios)
    inside = (ratios >= NEAR[0]) & (ratios <= NEAR[1])
    both = np.isfinite(formula) & np.isfinite(control)
    some = both.any(axis=1)
    excess = ratio_of_sums(np.where(both, formula, 0).sum(axis=1)[some], np.where(both, control, 0).sum(axis=1)[some])
    share = ratio_of_sums(inside.sum(axis=1)[seen.any(axis=1)], seen.sum(axis=1)[seen.any(axis=1)])
    return [
        Part(f"share of {seen.sum()} pairs with predicted/observed in {list(NEAR)}", share, "above", ENOUGH),
        Part("|log ratio| between halves, formula over resampling", excess, "below", 1.05),
    ]


def run(lab: Laboratory, command: str, out=None, *, draws: int = 8000) -> str:
    """Measure, decide and publish. Returns the verdict."""
    pool = pools(lab)
    halves = pool.half(False), pool.half(True)
    mixed = [np.minimum(half.reward.sum(axis=1), (1 - half.reward).sum(axis=1)) >= 2 for half in halves]
    enough = mixed[0] & mixed[1]
    if not enough.any():
        raise ValueError("no prompt has two right and two wrong answers in both halves of its pool: draw more answers")
    pool, halves = pool.prompts(enough), [half.prompts(enough) for half in halves]
    groups = SIZES if len(lab.steps) > 1 else SIZES[:1]  # a smoke run compiles a third
    rows, ratios, fresh, again, negative = [], [], [], [], 0
    with jax.enable_x64(True):
        whole = of_pool(pool)
        from_half = jax.vmap(BinaryMoments.from_gram)(jnp.asarray(halves[0].reward), jnp.asarray(halves[0].scores))
        for g in groups:
            inside, ahead = predicted(whole, g), predicted(from_half, g)
            seen, first, second = (observed(part, g, draws) for part in (pool, *halves))
            for name in SCHEMES:
                ratios.append(inside[name] / seen[name])
                negative += np.sum((ahead[name] <= 0) & np.isfinite(second[name]))
                fresh.append(np.abs(np.log(np.maximum(ahead[name], 1e-12) / second[name])))
                again.append(np.abs(np.log(first[name] / second[name])))
                rows.append({"G": g, "scheme": name} | _row(ratios[-1], fresh[-1], again[-1]))
    ratios, fresh, again = (np.stack(x, axis=1) for x in (ratios, fresh, again))
    word, reason = decide(parts(ratios, fresh, again))
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} {draws} groups were drawn from each pool or half; {np.isnan(ratios).sum()} of {ratios.size} "
        f"pairs of prompt and scheme were left out: so many groups do not resolve their variance to {RESOLVED:.0%}. "
        f"{negative} predictions from a half were not above 0, as its unbiased estimate of |∇p|² may be negative, and "
        f"count as far off. "
        f"{sizes(lab)}",
        command=command,
        rows=rows,
        figure=_figure(groups, ratios, fresh, again),
        out=out,
    )
    return word


def _row(ratio: np.ndarray, fresh: np.ndarray, again: np.ndarray) -> dict:
    seen = ratio[np.isfinite(ratio)]
    both = np.isfinite(fresh) & np.isfinite(again)
    low, middle, high = np.quantile(seen, [0.05, 0.5, 0.95]) if len(seen) else [np.nan] * 3
    row = {"prompts": len(seen), "predicted/observed: median": middle, "5%": low, "95%": high}
    row["in [0.9, 1.1]"] = np.mean((seen >= NEAR[0]) & (seen <= NEAR[1])) if len(seen) else np.nan
    halves = {"between halves: formula": fresh[both], "resampling": again[both]}
    return row | {key: np.median(x) if len(x) else np.nan for key, x in halves.items()}


def _figure(groups: tuple[int, ...], ratios: np.ndarray, fresh: np.ndarray, again: np.ndarray):
    figure, (left, right) = figure_of(1, 2, (11, 4.2), width_ratios=(3, 2))
    names = list(SCHEMES)
    shift = np.linspace(-0.25, 0.25, len(groups))
    for i, (g, colour) in enumerate(zip(groups, PALETTE, strict=False)):
        block = ratios[:, i * len(names) : (i + 1) * len(names)]
        low, middle, high = np.nanquantile(block, [0.05, 0.5, 0.95], axis=0)
        ends = [middle - low, high - middle]
        place = np.arange(len(names)) + shift[i]
        left.errorbar(middle, place, xerr=ends, fmt="o", markersize=4, color=colour, capsize=2, label=f"G = {g}")
    left.axvspan(*NEAR, color="#000000", alpha=0.06, linewidth=0)
    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()
    left.grid(axis="x")
    left.set_xlabel("predicted / observed variance: median, 5% and 95% of prompts")
    left.legend(frameon=False, loc="lower right")
    both = np.isfinite(again) & np.isfinite(fresh)
    right.scatter(again[both], fresh[both], s=7, alpha=0.4, color=PALETTE[0], linewidth=0)
    top = np.quantile(np.concatenate([again[both], fresh[both]]), 0.99) if both.any() else 1
    right.plot([0, top], [0, top], color="#999999", linewidth=0.8)
    right.set(xlim=(0, top), ylim=(0, top))
    right.set_xlabel("|log ratio| of both halves, resampled")
    right.set_ylabel("|log ratio|, formula of one half against the other")
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
