"""Scores of tool calls written as text (ToolRL, Qian et al., arXiv 2504.13958, released code 8cee13e).

    <think>...</think>
    <tool_call>
    {"name": NAME, "parameters": {...}}       one call a line
    </tool_call>
    <response>...</response>

The kinds of block are those of the reference. An answer is data: it is read as JSON, bounded in size, or not at all.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from jaxrl_llm.rewards.text._json import SIZE, UnreadableError, read, same

CALLS = 64
"""Most calls of an answer that are read: matching takes time in calls of the reference times calls of the answer."""

Detail = Literal["fine", "intermediate", "coarse"]
Call = dict[str, Any]


class ToolScore(NamedTuple):
    """S, and S_max, the most that any answer can reach. S <= S_max."""

    score: float
    most: float


def parse_calls(text: str) -> list[Call] | None:
    """The calls in the first tool_call block, one JSON object a line; None where there is none or it is malformed."""
    if len(text) > SIZE or "<tool_call>" not in text or "</tool_call>" not in text:
        return None
    lines = text.split("<tool_call>", 1)[1].split("</tool_call>", 1)[0].strip().split("\n")
    if len(lines) > CALLS:
        return None
    try:
        calls = [read(line) for line in lines]
    except UnreadableError:
        return None
    return calls if all(_is_call(call) for call in calls) else None


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict):
        return False
    return isinstance(call.get("name"), str) and isinstance(call.get("parameters"), dict)


def overlap(a: Iterable[str], b: Iterable[str], *, exact: bool = False) -> float:
    """J = |a ∩ b| / (|a| + |b| - |a ∩ b|) of multisets; 1 where both are empty, 0 where one is.

    `exact`: 1 for equal multisets and else 0 (the refined variant; the release compares lists, in order).
    """
    left, right = Counter(iter(a)), Counter(iter(b))  # the keys of a mapping, not its values as counts
    if left == right:
        return 1.0
    common = (left & right).total()
    return 0.0 if exact else common / (left.total() + right.total() - common)


def tool_score(
    reference: list[Call], predicted: list[Call], *, detail: Detail = "fine", exact: bool = False
) -> ToolScore:
    """S = J(names) + Σ over reference calls of [J(parameter names) + number of equal values] of the matched call,
    S_max = 1 + Σ (1 + number of parameters).

    Each reference call in turn takes the unused call of its name with the largest term, the first among equals: where
    names repeat, S can depend on the order of either list. "intermediate": the term is 1 for an equal call and else 0,
    S_max = 1 + number of calls. "coarse": S is S_max for equal lists, in order, and else 0.
    """
    if detail == "coarse":
        return ToolScore(float(same(reference, predicted)), 1.0)
    score = overlap((call["name"] for call in reference), (call["name"] for call in predicted), exact=exact)
    most, unused = 1.0, list(range(len(predicted)))
    for call in reference:
        most += 1.0 if detail == "intermediate" else 1.0 + len(call["parameters"])
        terms = [(_term(call, predicted[i], detail, exact), -i) for i in unused if predicted[i]["name"] == call["name"]]
        best, minus = max(terms, default=(0.0, 0))
        if best > 0:
            unused.remove(-minus)
            score += best
    return ToolScore(score, most)


def _term(reference: Call, predicted: Call, detail: Detail, exact: bool) -> float:
    if detail == "intermediate":
        return float(same(reference, predicted))
    wanted, given = reference["parameters"], predicted["parameters"]
    return overlap(wanted, given, exact=exact) + sum(key in given and same(wanted[key], given[key]) for key in wanted)


def correctness(
    reference: str,
    answer: str,
    low: float | int = -3.0,
    high: float | int = 3.0,
    *,
    detail: Detail = "fine",
    exact: bool = False,
) -> float:
    """(high - low) S / S_max + low;  high for equal calls, low where the answer has no call that can be read.

    0 for a reference without a tool call, whatever the answer does: calls that nobody asked for cost nothing here, only
    in `well_formed`. A reference that cannot be read is a ValueError.
    """
    if "<tool_call>" not in reference:
        return 0.0
    wanted, given = parse_calls(reference), parse_calls(answer)
    if wanted is None:
        raise ValueError(f"the reference has no calls that can be read: {reference[:80]!r}")
    if given is None:
        return float(low)
    score, most = tool_score(wanted, given, detail=detail, exact=exact)
    return high if score == most else (high - low) * score / most + low


def well_formed(reference: str, answer: str) -> bool:
    """Whether the answer is <think>…</think>, then the blocks of the reference's kinds, and nothing else."""
    if len(answer) > SIZE:
        return False
    rest = answer.removesuffix("\n")
    kinds = [kind for kind in ("tool_call", "response") if f"<{kind}>" in reference]
    for kind in reversed(kinds):
        edge = "\n" if kind == "tool_call" else ""
        opening, closing = f"\n<{kind}>{edge}", f"{edge}</{kind}>"
        if answer.count(f"<{kind}>") != 1 or answer.count(f"</{kind}>") != 1:
            return False
        before, found, inside = rest.partition(opening)
        if not found or not inside.endswith(closing):
            return False
        rest = before
    return rest.startswith("<think>") and rest.endswith("</think>")


def thought_length(answer: str, target: float | int = 512) -> float:
    """min(words of the last thought / target, 1), the quotient rounded to two digits; 0 without both think tags.

    `target` is a constant, or 384 + 256 t / 105 at step t in the variant whose target grows.
    """
    if "<think>" not in answer or "</think>" not in answer:
        return 0.0
    words = len(answer.rpartition("<think>")[2].partition("</think>")[0].split())
    return min(round(words / target, 2), 1.0)


def tool_reward(
    reference: str, answer: str, low: float | int = -3.0, high: float | int = 3.0, *, detail: Detail = "fine"
) -> float:
    """R = 1[well formed] + R_correct, in [low, high + 1]."""
    return float(well_formed(reference, answer)) + correctness(reference, answer, low, high, detail=detail)
