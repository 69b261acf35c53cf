"""Which constant should a baseline aim at: V, b* = E[r e]/E[e], one of its proxies, or zero?

Claims: b* has the least variance (Weaver and Tao, 2001; Greensmith et al., 2004), and the energy e = |score|² in the
logits, which a forward pass gives, stands in for that in the parameters (OTB, arXiv 2602.07078). A second answer,
length_as_energy, is about the claim that length stands in for it (OPO, Hao et al., arXiv 2505.23585).

The constants are taken from one half of a prompt's pool and judged on the other, both ways, so that b* has to prove
itself on answers that it has not seen. Written before the numbers: b* varies less than V; where more than 60% of the
answers are right and wrong answers have more energy, zero varies less than V; the logit proxy keeps more than half of
the gain of b* (in logs); length is refuted if it keeps less than a quarter.
"""

import numpy as np

from experiments.answers import figure_of, publish
from experiments.decisions import Part, decide
from experiments.pool_reports import arguments, geometric_mean, ratio_of_sums, sizes
from experiments.pools import Laboratory, Pool, pools
from jaxrl_llm.report_plots import PALETTE

NAME = "baseline_target"
QUESTION = "Which constant should a baseline aim at: V, b*, one of its proxies, or zero?"
CLAIM = (
    "The constant of least variance is b* = E[r e]/E[e], e = |score|² (Weaver and Tao, 2001; Greensmith et al., 2004), "
    "and the energy in the logits stands in for e (OTB, arXiv 2602.07078)."
)
LENGTH = "length_as_energy"
LENGTH_QUESTION = "Does a baseline weighted by length come near the best constant?"
LENGTH_CLAIM = "The length of an answer stands in for the energy of its score (OPO, Hao et al., arXiv 2505.23585)."
WEIGHTS = {
    "b*": lambda pool: pool.energy,
    "length": lambda pool: pool.length,
    "logit proxy": lambda pool: pool.token_energy.sum(axis=-1),
}
EASY = 0.6


def constants(pool: Pool) -> dict[str, np.ndarray]:
    """The baselines [P] that a pool suggests."""
    weighted = {name: (of(pool) * pool.reward).sum(axis=1) / of(pool).sum(axis=1) for name, of in WEIGHTS.items()}
    return {"V": pool.pass_rate, **weighted, "zero": np.zeros(len(pool.reward))}


def variances(pool: Pool) -> dict[str, np.ndarray]:
    """E[(r - b)² e] - |g|² [P] of one answer, b from one half, the rest from the other; mean of both ways."""
    total = {}
    for odd in (False, True):
        judge = pool.half(not odd)
        for name, b in constants(pool.half(odd)).items():
            spread = ((judge.reward - b[:, None]) ** 2 * judge.energy).mean(axis=1) - judge.signal
            total[name] = total.get(name, 0) + spread / 2
    return total


def kept(spread: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Share of the gain of b* over V, in logs, that another constant keeps."""
    gain = {key: np.log(spread["V"] / spread[key]) for key in (name, "b*")}
    return ratio_of_sums(gain[name], gain["b*"])


def parts(spread: dict[str, np.ndarray], easy: np.ndarray) -> list[Part]:
    """What is claimed of variances [P]; `easy` marks the prompts on which zero should win."""
    zero = spread["zero"] / spread["V"]
    where = f"on the {easy.sum()} prompts with pass rate > {EASY} and C < 0"
    return [
        Part("variance of b* over that of V", geometric_mean(spread["b*"] / spread["V"]), "below", 1),
        Part("share of that gain that the logit proxy keeps", kept(spread, "logit proxy"), "above", 0.5),
        Part(
            f"variance of zero over that of V, {where}",
            geometric_mean(zero[easy]),
            "below",
            1,
        ),
    ]


def length_parts(spread: dict[str, np.ndarray]) -> list[Part]:
    """What is claimed of length."""
    return [Part("share of the gain of b* over V that length keeps", kept(spread, "length"), "above", 0.25)]


def run(lab: Laboratory, command: str, out=None) -> str:
    """Measure, decide and publish. Returns the verdict."""
    pool = pools(lab)
    spread = variances(pool)
    covariance = ((pool.reward - pool.pass_rate[:, None]) * pool.energy).mean(axis=1)
    easy = (pool.pass_rate > EASY) & (covariance < 0)
    word, reason = decide(parts(spread, easy))
    rows = []
    for name, x in spread.items():
        value, low, high = geometric_mean(x / spread["V"])
        whole = ratio_of_sums(x, spread["V"])
        row = {"constant": name, "variance / that of V": value, "low": low, "high": high}
        row |= {"ratio of sums": whole[0], "sums low": whole[1], "sums high": whole[2]}
        weight = WEIGHTS[name](pool) if name in WEIGHTS else None
        row["correlation with energy"] = "" if weight is None else _correlation(weight, pool.energy)
        rows.append(row | {"prompts": len(x), "better than V on": f"{np.mean(x < spread['V']):.0%}"})
    about = (
        f"{sizes(lab)} Answers are {pool.length.min():.0f} to {pool.length.max():.0f} tokens long, so that length has "
        f"little to tell here."
    )
    figure = _figure(pool, spread)
    shared = {"command": command, "rows": rows, "figure": figure}
    publish(NAME, question=QUESTION, claim=CLAIM, verdict=word, reason=f"{reason} {about}", out=out, **shared)
    other, reason = decide(length_parts(spread))
    shared |= {"question": LENGTH_QUESTION, "claim": LENGTH_CLAIM, "out": out and out / LENGTH}
    publish(LENGTH, verdict=other, reason=f"{reason} {about}", **shared)
    return word


def _correlation(weight: np.ndarray, energy: np.ndarray) -> float:
    """Mean over the prompts whose weights differ."""
    every = [np.corrcoef(w, e)[0, 1] for w, e in zip(weight, energy, strict=True) if w.std() > 0]
    return float(np.mean(every)) if every else float("nan")


def _figure(pool: Pool, spread: dict[str, np.ndarray]):
    figure, (left, right) = figure_of(1, 2, (10, 4), width_ratios=(3, 2))
    shown = [name for name in spread if name != "V"]
    for colour, marker, name in zip(PALETTE, "osD^", shown, strict=False):
        ratio = spread[name] / spread["V"]
        left.scatter(pool.pass_rate, ratio, s=18, color=colour, marker=marker, alpha=0.8, label=name)
        value, low, high = geometric_mean(ratio)
        place = shown.index(name)
        right.errorbar(value, place, xerr=[[value - low], [high - value]], fmt=marker, color=colour, capsize=3)
    left.set(yscale="log", xlabel="pass rate of the prompt", ylabel="variance / that of V, a point a prompt")
    left.axhline(1, color="#999999", linewidth=0.8)
    left.legend(frameon=False)
    right.set_yticks(range(len(shown)), shown)
    right.invert_yaxis()
    right.axvline(1, color="#999999", linewidth=0.8)
    right.set(xscale="log", xlim=(0.1, 1.5), xlabel="geometric mean over prompts, 95% interval")
    right.set_xticks([0.1, 0.2, 0.5, 1], ["0.1", "0.2", "0.5", "1"])
    right.set_xticks([], minor=True)
    right.grid(axis="x")
    return figure


if __name__ == "__main__":
    run(*arguments(NAME, QUESTION))
