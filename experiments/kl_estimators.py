"""Do exact divergences of each step always vary less than the log-ratio of the path?

Claim: the Rao-Blackwellised estimate of the KL divergence, the exact divergence of each step along a sampled path,
never varies more than the plain log-ratio (Amini et al., arXiv 2504.10637).

Rule, before the numbers: refuted by any policy on which both are unbiased to 1e-9 and its variance is the larger one. A
bigram policy and a policy of two steps are enumerated; k3 is unbiased to 1e-9 and never negative, k2 is biased.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from experiments.problems import BIGRAM, PATHS, bigram
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.tables import last_token

NAME = "kl_estimators"
QUESTION = "Do exact divergences of each step always vary less than the log-ratio of the path?"
CLAIM = (
    "The Rao-Blackwellised estimate of the KL divergence, the exact divergence of each step along a sampled path, "
    "never varies more than the plain one (Amini et al., arXiv 2504.10637)."
)
TWO_STEPS = {
    "first": ([0.5, 0.5], [0.3, 0.7]),
    "then": ([[0.5, 0.5], [0.999, 0.001]], [[0.5, 0.5], [0.43, 0.57]]),
}


def of_bigram() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Probabilities of the answers of B, and each estimate of its divergence from the reference."""
    table = bigram()
    ratio = np.asarray(jnp.where(table.acted, table.logp - table.extras["reference_logp"], 0))
    new, reference = (np.asarray(jax.nn.log_softmax(jnp.asarray(BIGRAM[k]), axis=-1)) for k in ("logits", "reference"))
    of_row = np.sum(np.exp(new) * (new - reference), axis=1)
    steps = np.array([sum(of_row[last_token(path[:t])] for t in range(len(path))) for path in PATHS])
    return np.asarray(table.probs), _estimates(ratio, steps)


def of_two_steps() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The same of two steps, where the second undoes the noise of the first."""
    (pi, ref), (then, ref_then) = (tuple(map(np.array, TWO_STEPS[key])) for key in ("first", "then"))
    ratio = np.stack([np.repeat(np.log(pi / ref), 2), np.log(then / ref_then).reshape(-1)], axis=1)
    second = np.sum(then * np.log(then / ref_then), axis=1)
    steps = np.sum(pi * np.log(pi / ref)) + np.repeat(second, 2)
    return (pi[:, None] * then).reshape(-1), _estimates(ratio, steps)


def _estimates(ratio, steps):
    return {
        "k1": ratio.sum(axis=1),
        "k2": (ratio**2 / 2).sum(axis=1),
        "k3": (np.exp(-ratio) - 1 + ratio).sum(axis=1),
        "each step exact": steps,
    }


def measured() -> list[dict]:
    """A row a policy and estimate: mean, bias, variance and least value, enumerated."""
    rows = []
    for policy, (pi, estimates) in {"bigram": of_bigram(), "two steps": of_two_steps()}.items():
        kl = pi @ estimates["k1"]
        for name, x in estimates.items():
            mean = pi @ x
            figures = {"KL": kl, "bias": mean - kl, "variance": pi @ (x - mean) ** 2, "least": x.min()}
            rows.append({"policy": policy, "estimate": name} | {key: float(value) for key, value in figures.items()})
    return rows


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed."""
    wanted = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        each = {row["estimate"]: row for row in rows if row["policy"] == policy}
        steps, ratio = each["each step exact"], each["each step exact"]["variance"] / each["k1"]["variance"]
        wanted += [
            Part(f"{policy}: bias of exact steps", exact(abs(steps["bias"])), "below", 1e-9),
            Part(f"{policy}: variance of exact steps over k1's", exact(ratio), "below", 1 + 1e-9),
            Part(f"{policy}: bias of k3", exact(abs(each["k3"]["bias"])), "below", 1e-9),
            Part(f"{policy}: least value of k3", exact(each["k3"]["least"]), "above", -1e-9),
            Part(f"{policy}: bias of k2", exact(abs(each["k2"]["bias"])), "above", 1e-3),
        ]
    return wanted


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, decide and publish; a smoke run is the whole. Returns the verdict."""
    rows = measured()
    word, reason = decided(parts(rows))
    figure, axes = figure_of(1, 2, (9, 3.2))
    for axis, policy in zip(axes, ("bigram", "two steps"), strict=True):
        mine = [row for row in rows if row["policy"] == policy]
        axis.bar([row["estimate"] for row in mine], [row["variance"] for row in mine], color=PALETTE[:4])
        for place, row in enumerate(mine):
            biased = "" if abs(row["bias"]) < 1e-9 else f"\nbias {row['bias']:.2g}"
            axis.annotate(
                f"{row['variance']:.3g}{biased}", (place, row["variance"]), ha="center", va="bottom", fontsize=8
            )
        axis.set_yscale("log")
        axis.margins(y=0.2)
        axis.set(ylabel="variance, nats²", title=f"{policy}, KL = {mine[0]['KL']:.3f} nats")
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} The noise of one step can undo that of an earlier one; its conditional mean cannot.",
        command=command,
        rows=rows,
        figure=figure,
        out=out,
    )
    return word


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
