"""When does a tracker of a prompt's pass rate have less gradient variance than leave-one-out, as the policy moves?

Claim: a tracker that keeps the share ρ of its memory at each answer (SPO, arXiv 2509.13232) stands for (1+ρ)/(1-ρ)
fresh answers, so it beats groups of G while that is above G - 1, until the lag behind a pass rate that moves by δ an
answer, δ/(1-ρ), takes the gain away. Own derivation: the lag also enters times the covariance C of reward and energy,
so that up and down are not alike.

Rule, before the numbers, at one answer a visit, against groups of G at equal answers: without drift the tracker wins
where (1+ρ)/(1-ρ) is above 1.3 (G-1) and loses where it is below (G-1)/1.3; for every ρ that wins, the drift at which
the two vary alike is within 30% of the one predicted, in both directions and on both problems. Restated after the smoke
run, before the whole one: only drifts count that the pass rate, which is between 0 and 1, can have kept up for two lags
(2/(1-ρ) answers) even at 1.3 times the drift predicted.
"""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from experiments.answers import command_line, decided, figure_of, publish
from experiments.decisions import Part
from experiments.problems import facts, named
from jaxrl_llm.advantages import bare_rollout, beta_tracker
from jaxrl_llm.report_plots import PALETTE
from jaxrl_llm.variance.tables import OutcomeTable

NAME = "tracker_drift"
QUESTION = "When does a tracker of a prompt's pass rate beat leave-one-out, as the policy moves?"
CLAIM = (
    "A Beta tracker of memory ρ (SPO, arXiv 2509.13232) stands for (1+ρ)/(1-ρ) fresh answers and has less gradient "
    "variance than leave-one-out while that is above G - 1, until the square of its lag dominates. Own derivation: the "
    "lag also enters times the covariance of reward and energy."
)
PROBLEMS = ("A2", "B")
MEMORIES = (0.5, 0.75, 0.875, 0.96)
GROUPS = (2, 4, 8, 16, 32)
DRIFTING = (4, 8, 16)  # groups whose crossing is looked for
LAGS = 2  # how long a drift must last to count
MARGIN = 0.3
FACTORS = (0.5, 1 - MARGIN, 0.85, 1.0, 1.15, 1 + MARGIN, 1.5)  # of the drift predicted
EDGE = 0.01  # a pass rate stays this far from 0 and 1


def worth(memory: float) -> float:
    """(1+ρ)/(1-ρ): fresh answers whose mean is as noisy as the tracker."""
    return (1 + memory) / (1 - memory)


def of_group(table: OutcomeTable, group: int) -> float:
    """N tr Var of leave-one-out: σ_V² + (v F + |g|²)/(G-1)."""
    return group * float(facts(table).leave_one_out_variance(group))


def crossing(table: OutcomeTable, memory: float, group: int, direction: int, covariance: bool = True) -> float:
    """The drift an answer at which both vary alike, 0 where leave-one-out wins without drift.

    With x = δ/(1-ρ), the lag, and v(1-ρ)/(1+ρ) + x² the tracker's error: F x² + 2 C x = spare, where spare is what
    leave-one-out has more without drift; `covariance` False leaves C out.
    """
    m = facts(table)
    noise = m.reward_variance / worth(memory)
    spare = of_group(table, group) - float(m.independent_variance(mse=noise, bias=0.0, group_size=1))
    f, c = float(m.fisher_trace), direction * float(m.energy_covariance) * covariance
    return (1 - memory) * (math.sqrt(c**2 + f * spare) - c) / f if spare > 0 else 0.0


def reachable(table: OutcomeTable, memory: float, drift: float) -> bool:
    """Whether a pass rate can have come to the table's by this drift an answer for `LAGS` lags."""
    start = float(facts(table).value) - drift * LAGS / (1 - memory)
    return EDGE <= start <= 1 - EDGE


def span(memory: float) -> int:
    """Answers after which the start is forgotten."""
    return math.ceil(8 / (1 - memory))


def history(table: OutcomeTable, memory: float, drift: float) -> np.ndarray:
    """The pass rates of the answers that the tracker has seen, the oldest first."""
    return np.clip(float(facts(table).value) - drift * np.arange(span(memory), 0, -1), EDGE, 1 - EDGE)


def law(table: OutcomeTable, memory: float, drift: float) -> float:
    """The variance that follows from this very history, with its own noise at each pass rate: nothing is stationary."""
    rates, m = history(table, memory, drift), facts(table)
    weight = (1 - memory) * memory ** np.arange(len(rates) - 1, -1, -1)
    bias = weight @ rates + (1 - weight.sum()) * rates[0] - float(m.value)
    return float(m.independent_variance(mse=bias**2 + weight**2 @ (rates * (1 - rates)), bias=bias, group_size=1))


def tracked(table: OutcomeTable, memory: float, drift: float, copies: int) -> tuple[float, float, float]:
    """One-answer variance of the tracker's estimate when the pass rate has come to the table's by `drift` an answer.

    Each copy of the prompt has had a history of its own. Given it the estimate is unbiased, so its variance is the mean
    of those of all histories, and each of these is a sum over the outcomes. Value and its 95% interval.
    """
    rates, steps = history(table, memory, drift), span(memory)
    transform = beta_tracker(minimum_decay=memory, maximum_decay=memory, slots=copies, rate=float(rates[0]))
    right = np.random.default_rng(0).uniform(size=(steps, copies, 1)) < rates[:, None, None]
    state = _history(memory, copies, transform.init(), jnp.asarray(right, jnp.float64))
    answers = jnp.broadcast_to(table.rewards[:, None, None], (len(table.probs), copies, 1))
    credit = jax.vmap(lambda reward: _step(transform, state, reward)[0])(answers)[..., 0]
    energy = jnp.sum(table.scores**2, axis=-1)
    each = np.asarray((table.probs * energy) @ credit**2 - table.gradient @ table.gradient)
    reach = 1.96 * each.std(ddof=1) / copies**0.5
    return each.mean(), each.mean() - reach, each.mean() + reach


@functools.partial(jax.jit, static_argnums=(0, 1))
def _history(memory, copies, state, rewards):
    """The state after an answer a step to each copy of the prompt."""
    transform = beta_tracker(minimum_decay=memory, maximum_decay=memory, slots=copies)
    return jax.lax.scan(lambda state, reward: (_step(transform, state, reward)[1], None), state, rewards)[0]


def _step(transform, state, reward):
    return transform.update(reward, state, bare_rollout(reward, drift=jnp.zeros(len(reward))))


def measured(memories: tuple[float, ...], copies: int) -> list[dict]:
    """A row a problem, memory, group and drift; drift 0 and multiples of the crossing that is predicted."""
    rows = []
    for problem in PROBLEMS:
        table = named(problem)
        for memory in memories:
            still = tracked(table, memory, 0.0, copies)
            rows += [_row(problem, table, memory, group, 0.0, still) for group in GROUPS]
            for group in DRIFTING:
                for direction in (1, -1):
                    predicted = crossing(table, memory, group, direction)
                    plain = crossing(table, memory, group, direction, covariance=False)
                    counts = reachable(table, memory, direction * (1 + MARGIN) * predicted)
                    for factor in FACTORS if predicted else ():
                        drift = direction * factor * predicted
                        row = _row(problem, table, memory, group, drift, tracked(table, memory, drift, copies))
                        row |= {"of the predicted": factor, "predicted without C": plain / predicted}
                        rows.append(row | {"reachable": counts})
    return rows


def _row(problem, table, memory, group, drift, found):
    base = of_group(table, group)
    value, low, high = (float(x) / base for x in found)
    row = {"problem": problem, "ρ": memory, "worth": worth(memory), "G": group, "drift": drift}
    row |= {"variance / leave-one-out's": value, "low": low, "high": high}
    return row | {"over the law of its history": found[0] / law(table, memory, drift)}


def parts(rows: list[dict]) -> list[Part]:
    """What is claimed; of each kind the case that is nearest to failing."""
    ends = lambda row: [row[key] for key in ("variance / leave-one-out's", "low", "high")]  # noqa: E731
    still = [row for row in rows if row["drift"] == 0]
    clear = 1 + MARGIN
    wins = [ends(row) for row in still if row["worth"] > clear * (row["G"] - 1)]
    losses = [ends(row) for row in still if row["worth"] < (row["G"] - 1) / clear]
    highest, lowest = (lambda found: max(found, key=lambda x: x[2])), (lambda found: min(found, key=lambda x: x[1]))
    wanted = [
        Part(f"no drift, {len(wins)} long memories: highest ratio to leave-one-out", highest(wins), "below", 1),
        Part(f"no drift, {len(losses)} short memories: lowest ratio", lowest(losses), "above", 1),
    ]
    for problem in PROBLEMS:
        for way, sign in (("rises", 1), ("falls", -1)):
            mine = [row for row in rows if row["problem"] == problem and row["drift"] * sign > 0 and row["reachable"]]
            before, after = ([ends(row) for row in mine if row["of the predicted"] == 1 + s * MARGIN] for s in (-1, 1))
            if mine:  # on A2 the lag of a rising pass rate helps too much for a crossing to be reached
                name = f"{problem}, pass rate {way}: {{}} ratio at {{:g}} of the drift predicted"
                wanted.append(Part(name.format("highest", 1 - MARGIN), highest(before), "below", 1))
                wanted.append(Part(name.format("lowest", 1 + MARGIN), lowest(after), "above", 1))
    return wanted


def _beside(rows: list[dict]) -> str:
    """What the rule does not ask for, in words."""
    counted = [row for row in rows if row.get("reachable")]
    before, after = ([r for r in counted if r["of the predicted"] == 1 + s * MARGIN] for s in (-1, 1))
    inside = sum(b["high"] < 1 < a["low"] for b, a in zip(before, after, strict=True))
    plain = [row["predicted without C"] for row in before]
    off = max(abs(row["over the law of its history"] - 1) for row in rows)
    return (
        f"Of {len(before)} crossings {inside} are inside for sure. With C left out the prediction would be "
        f"{min(plain):.2g} to {max(plain):.2g} times as far. The law of the very history, with the noise of answers at "
        f"other pass rates, is met to {off:.1%} at worst: a crossing elsewhere is the fault of the short form."
    )


def run(smoke: bool, command: str, out: pathlib.Path | None) -> str:
    """Follow the tracker, decide and publish. Returns the verdict."""
    memories, copies = ((0.5, 0.875), 500) if smoke else (MEMORIES, 20_000)
    rows = measured(memories, copies)
    word, reason = decided(parts(rows))
    publish(
        NAME,
        question=QUESTION,
        claim=CLAIM,
        verdict=word,
        reason=f"{reason} {_beside(rows)} {copies} histories each; the outcomes of the last answer are enumerated, "
        f"leave-one-out is its law. The pass rate moves by the drift at each answer and ends at that of the problem; "
        f"it is held within {EDGE:g} of 0 and 1.",
        command=command,
        rows=rows,
        figure=_figure(rows, memories),
        out=out,
    )
    return word


def _figure(rows: list[dict], memories):
    figure, axes = figure_of(1, 1 + len(PROBLEMS), (13, 4.2))
    for number, memory in enumerate(memories):
        style = {"color": PALETTE[number], "marker": "osD^"[number], "markersize": 4, "linewidth": 1}
        mine = [row for row in rows if row["ρ"] == memory and row["problem"] == "B"]
        still = [row for row in mine if row["drift"] == 0]
        label = f"ρ = {memory:g}, worth {worth(memory):.3g}"
        axes[0].plot(
            [r["G"] - 1 for r in still], [r["variance / leave-one-out's"] for r in still], label=label, **style
        )
        axes[0].axvline(worth(memory), color=PALETTE[number], linewidth=0.8, linestyle=":")
        for axis, problem in zip(axes[1:], PROBLEMS, strict=True):
            for group, dash in zip(DRIFTING, (":", "--", "-"), strict=True):
                moved = [r for r in rows if (r["problem"], r["ρ"], r["G"]) == (problem, memory, group)]
                moved = [r for r in moved if r["drift"] and r["reachable"]]
                for sign in (1, -1):
                    side = [r for r in moved if r["drift"] * sign > 0]
                    at = [sign * r["of the predicted"] for r in side]
                    axis.plot(at, [r["variance / leave-one-out's"] for r in side], linestyle=dash, **style)
    axes[0].set(xlabel="G - 1; dotted: (1+ρ)/(1-ρ)", ylabel="variance / leave-one-out's", xscale="log")
    axes[0].set_title("problem B, no drift", fontsize=10)
    for axis, problem in zip(axes[1:], PROBLEMS, strict=True):
        axis.set(xlabel="drift / the drift predicted", title=f"problem {problem}, G = 4 dotted, 8 dashed, 16 solid")
        axis.title.set_fontsize(10)
        for at in (-1, 1):
            axis.axvline(at, color="#999999", linewidth=0.8)
    for axis in axes:
        axis.axhline(1, color="#999999", linewidth=0.8)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", frameon=False, ncols=4)
    return figure


if __name__ == "__main__":
    command_line(NAME, QUESTION, run)
