"""Which ways of penalising the KL divergence have its gradient, and with how much variance?

Claim: k1 in the reward has the gradient of KL(π‖π_ref), k1 in the loss has one of mean 0, k2 of the answer in the loss
is k1 in the reward answer by answer, and k3 in the loss is biased (arXiv 2510.01555, 2512.21852). Own expectation
beside it: cost per token in the loss, as libraries place them, miss what a token does to the divergence of later ones,
so that k2 is biased there too, and so is the exact divergence unless it stands in the reward as well.

Rule, before the numbers, on a bigram policy, exactly, one answer an estimate: biases below 1e-9 where unbiasedness is
claimed and above 1e-3 where bias is; the mean of k1 in the loss below 1e-9; k2 of the answer within 1e-9 of k1 in the
reward for every answer; k2, the exact divergence and k3 with its score term have one mean in the loss, to 1e-9; and the
exact divergence, in the loss and to go, has less variance than k1 to go. (The biases of k2 and k3 were known from the
theorems' tests on the same policy when this was written.)
"""

import dataclasses
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.answers import command_line, decided, exact, figure_of, publish
from experiments.decisions import Part
from experiments.problems import BIGRAM, LENGTH, PATHS, bigram
from jaxrl_llm.advantages import (
    AdvantageTransform,
    at_end,
    bare_rollout,
    chain,
    dense_rewards,
    no_baseline,
    reward_to_go,
)
from jaxrl_llm.losses.aggregate import answer_sum
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.penalties import Penalty, k1, k2, k3, k3_unbiased, kl, rao_blackwell
from jaxrl_llm.losses.surrogates import reinforce
from jaxrl_llm.losses.tokens import Tokens, bare_tokens
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.exact import GradientMoments, moments_of
from jaxrl_llm.variance.tables import last_token, path_logp

NAME = "kl_gradients"
QUESTION = "Which ways of penalising the KL divergence have its gradient, and with how much variance?"
CLAIM = (
    "k1 in the reward has the gradient of KL(π‖π_ref), k1 in the loss one of mean 0, k2 of the answer in the loss is "
    "k1 in the reward, and k3 in the loss is biased (arXiv 2510.01555, 2512.21852). Own expectation beside it: costs "
    "per token in the loss miss the divergence of later tokens, so k2 and the exact divergence are biased there too."
)
TO_GO = chain(at_end(no_baseline()), dense_rewards(), reward_to_go(discount=1.0))
ACTED = np.asarray([[t < len(path) for t in range(LENGTH)] for path in PATHS])
ROWS = np.asarray([[last_token(path[:t]) if t < len(path) else 0 for t in range(LENGTH)] for path in PATHS])


class Way(NamedTuple):
    """Penalties, the credit, what is paid at tokens, and whether the answer counts as a single token."""

    penalties: tuple[Penalty, ...] = ()
    credit: AdvantageTransform = no_baseline()
    paid: str = ""  # "k1", or "later": the exact divergence of the next step
    whole: bool = False


WAYS = {
    "k1 in the reward": Way((kl(k1, 1.0, "reward"),)),
    "k1 to go": Way((), TO_GO, "k1"),
    "exact in loss and reward": Way((rao_blackwell(1.0, "loss"), rao_blackwell(1.0, "reward"))),
    "exact in loss and to go": Way((rao_blackwell(1.0, "loss"),), TO_GO, "later"),
    "k2 in the loss, answer": Way((kl(k2, 1.0, "loss"),), whole=True),
    "k2 in the loss, tokens": Way((kl(k2, 1.0, "loss"),)),
    "k3 in the loss, tokens": Way((kl(k3, 1.0, "loss"),)),
    "k3 with score in the loss, tokens": Way((kl(k3_unbiased, 1.0, "loss"),)),
    "exact in the loss, tokens": Way((rao_blackwell(1.0, "loss"),)),
    "k3 in the loss, answer": Way((kl(k3, 1.0, "loss"),), whole=True),
    "k3 in the reward": Way((kl(k3, 1.0, "reward"),)),
    "k1 in the loss": Way((kl(k1, 1.0, "loss"),)),
}
UNBIASED = tuple(WAYS)[:5]
SAME_MEAN = ("k2 in the loss, tokens", "k3 with score in the loss, tokens", "exact in the loss, tokens")
BIASED = (*SAME_MEAN, "k3 in the loss, tokens", "k3 in the loss, answer", "k3 in the reward")


def record(logits: Float[Array, "C V"], whole: bool) -> Tokens:
    """What is known of the tokens of every answer [1 N T]; of the answers as tokens [1 N 1] where `whole`."""
    acted = jnp.asarray(ACTED)
    of = lambda x: path_logp(x, PATHS, last_token, LENGTH)  # noqa: E731
    new, reference = jax.nn.log_softmax(logits), jax.nn.log_softmax(jnp.asarray(BIGRAM["reference"]))
    divergence = jnp.sum(jnp.exp(new) * (new - reference), axis=-1)
    each = {"logp": of(logits), "reference_logp": of(jnp.asarray(BIGRAM["reference"])), "exact_kl": divergence[ROWS]}
    if whole:
        acted, each = (
            acted[:, :1],
            {name: jnp.sum(x, axis=1, keepdims=True) for name, x in each.items() if "logp" in name},
        )
    return bare_tokens(acted[None], **{name: x[None] for name, x in each.items()})


def estimates(way: Way) -> np.ndarray:
    """[N D]: the gradient step of each answer alone, by the loss that trains, of a reward of 0."""
    objective = Objective(surrogate=reinforce(), aggregate=answer_sum(), penalties=way.penalties)
    logits = jnp.asarray(BIGRAM["logits"])
    now = record(logits, way.whole)
    later = jnp.pad(now.exact_kl[..., 1:], ((0, 0), (0, 0), (0, 1)))  # what a token does to its own is in the loss
    paid = {"k1": -k1(now), "later": -later, "": jnp.zeros_like(now.logp)}[way.paid]
    reward = objective.shaped_reward(jnp.zeros(now.where.shape[:2]), now)
    rollout = bare_rollout(reward, acted=now.where, token_reward=paid)
    credit, _ = way.credit.update(reward, way.credit.init(), rollout)
    credit = jnp.where(now.where, credit if credit.ndim == 3 else credit[..., None], 0)

    def losses(logits):
        tokens = dataclasses.replace(record(logits, way.whole), advantage=credit)
        alone = lambda x: jax.tree.map(lambda y: y[None, None], x)  # noqa: E731
        one = lambda row: objective.loss(objective.aggregate(alone(row).where), alone(row))  # noqa: E731
        return jax.vmap(one)(jax.tree.map(lambda x: x[0], tokens))

    return -np.asarray(jax.jit(jax.jacobian(losses))(logits)).reshape(len(PATHS), -1)


def target() -> Float[Array, " D"]:
    """-∇KL(π‖π_ref), from the definition."""

    def divergence(logits):
        tokens = record(logits, True)
        return jnp.sum(jnp.exp(tokens.logp) * k1(tokens))

    return -jax.grad(divergence)(jnp.asarray(BIGRAM["logits"])).reshape(-1)


def measured() -> tuple[dict[str, GradientMoments], float]:
    """Way -> its exact moments; and how far k2 of the answer is from k1 in the reward, of any answer."""
    found = {name: estimates(way) for name, way in WAYS.items()}
    gap = np.abs(found["k2 in the loss, answer"] - found["k1 in the reward"]).max()
    probs, g = bigram().probs, target()
    return {name: moments_of(jnp.asarray(x), probs, g) for name, x in found.items()}, float(gap)


def parts(found: dict[str, GradientMoments], gap: float) -> list[Part]:
    """What is claimed."""
    means = [np.asarray(found[name].mean_grad) for name in SAME_MEAN]
    apart = max(float(np.linalg.norm(x - means[0])) for x in means[1:])
    ratio = found["exact in loss and to go"].trace_var / found["k1 to go"].trace_var
    none = float(np.linalg.norm(np.asarray(found["k1 in the loss"].mean_grad)))
    return [
        *(Part(f"bias, {name}", exact(found[name].bias_norm), "below", 1e-9) for name in UNBIASED),
        *(Part(f"bias, {name}", exact(found[name].bias_norm), "above", 1e-3) for name in BIASED),
        Part("norm of the mean, k1 in the loss", exact(none), "below", 1e-9),
        Part("k2 of the answer in the loss and k1 in the reward, largest gap of an answer", exact(gap), "below", 1e-9),
        Part("k2, exact and k3 with score in the loss, gap of their means", exact(apart), "below", 1e-9),
        Part("variance of the exact divergence to go over k1's", exact(ratio), "below", 1),
    ]


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Enumerate, decide and publish; a smoke run is the whole. Returns the verdict."""
    found, gap = measured()
    word, reason = decided(parts(found, gap))
    size = float(jnp.linalg.norm(target()))
    figures = ("trace_var", "bias_norm", "cos", "scale", "mse_rescaled")
    rows = [{"way": name, **{figure: getattr(x, figure) for figure in figures}} for name, x in found.items()]
    for row in rows:
        row["mse_rescaled"] = (
            row["mse_rescaled"] if abs(row["scale"]) > 1e-9 else np.inf
        )  # a scale of 0, but for rounding
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} The norm of the gradient is {size:.4g}. Every answer of the bigram policy is enumerated: "
        f"there is no sampling error.",
        command=command,
        rows=rows,
        figure=_figure(rows, size),
        out=out,
    )
    return word


def _figure(rows: list[dict], size: float):
    figure, axes = figure_of(1, 2, (12, 4.4))
    names = [row["way"] for row in rows]
    colours = [PALETTE[0] if name in UNBIASED else PALETTE[1] for name in names]
    bias = [row["bias_norm"] / size if row["bias_norm"] > 1e-9 else 0 for row in rows]
    for axis, values, label in (
        (axes[0], bias, "bias / norm of the gradient; 1: nothing is left"),
        (axes[1], [row["trace_var"] for row in rows], "variance, one answer"),
    ):
        bars = axis.barh(range(len(names)), values, color=colours)
        axis.bar_label(bars, [f" {x:.3g}" for x in values], fontsize=8)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.grid(visible=False, axis="y")
        axis.grid(visible=True, axis="x")
        axis.margins(x=0.1)
        axis.set_xlabel(label)
    return figure


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
