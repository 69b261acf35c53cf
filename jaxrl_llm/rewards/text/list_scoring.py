"""Scores of judgements that rank a list of answers (RewardAnything, Yu et al., arXiv 2506.03637, code 552877f).

<think>...</think> {"scores": {ID: 1 to 5, ...}, "best-to-worst": [ID, ...]}
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from jaxrl_llm.rewards.text._json import SIZE, UnreadableError, read

IDS = 256
"""Most ids of a judgement that are read: pairs grow with the square of their number."""


class ListScore(NamedTuple):
    """The score, and the share of the true ids that it rests on."""

    score: float
    coverage: float


class Judgement(NamedTuple):
    """What was read of a judgement, and how: scores and ranking hold what JSON gave, of any kind."""

    found: dict[str, Any]
    recovered: bool


def pair_score(truth: Mapping[str, float | int], predicted: Mapping[str, Any], *, too_few: float = 1.0) -> ListScore:
    """max(0, 1 - Σ penalty / Σ weight) over pairs of common ids, weight = 1 + |difference of the true scores|.

    penalty = weight for a reversed pair, weight / 2 for a predicted tie of different true scores, else 0: true ties
    cost nothing whatever is predicted. Pairs with a predicted value that is no finite number are left out; 0 if that
    leaves none.

    Fewer than two common ids score `too_few`. The release gives 1, so that naming a single answer is perfect: set it
    to 0, or weigh by `coverage`, the share of the true ids that hold a finite predicted number.
    """
    common = sorted(truth.keys() & predicted.keys())[:IDS]
    usable = {key: float(predicted[key]) for key in common if _is_number(predicted[key])}
    coverage = len(usable) / max(len(truth), 1)
    if len(common) < 2:
        return ListScore(too_few, coverage)
    penalty = weights = 0.0
    for a, b in itertools.combinations(usable, 2):
        true, said = truth[a] - truth[b], usable[a] - usable[b]
        weight = 1 + abs(true)
        weights += weight
        if true:
            penalty += weight * (0.5 if said == 0 else (said > 0) != (true > 0))
    return ListScore(max(0.0, 1 - penalty / weights) if weights else 0.0, coverage)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def parse_judgement(text: str) -> Judgement:
    """The JSON object after the thought; failing that, what lies between the first { and the last }; or nothing.

    Fences of code around it are taken off. Single quotes, trailing commas and names without quotes are not mended, as
    the release does before it looks for brackets.
    """
    if len(text) > SIZE:
        return Judgement({}, False)
    before, closed, after = text.partition("</think>")
    body = after if closed and "<think>" in before else text
    body = body.replace("```json", "").replace("```", "").strip()
    start, stop = body.find("{"), body.rfind("}")
    for part, recovered in ((body, False), (body[start : stop + 1] if start >= 0 else "", True)):
        try:
            found = read(part)
        except UnreadableError:
            continue
        if isinstance(found, dict):
            return Judgement(found, recovered)
    return Judgement({}, False)


def format_score(truth: Mapping[str, float | int], text: str) -> float:
    """A ladder of parts that sum to one.

        thought       0.15 both tags, +0.05 if it holds more than 50 characters; 0.05 one tag
        JSON          0.20, or 0.15 where it had to be cut out by its brackets; the rest needs it
        keys          0.10 "scores" + 0.10 "best-to-worst" (or "best-to-worse")
        coverage      0.20 · share of the true ids among the scores
        consistency   0.20 · `consistency`

    How the parts and `pair_score` are mixed in training is unverified: the release has the helpers only.
    """
    opened, closed = "<think>" in text, "</think>" in text
    thought = text.partition("<think>")[2].partition("</think>")[0].strip()
    score = (0.15 + 0.05 * (len(thought) > 50)) if opened and closed else 0.05 * (opened or closed)
    found, recovered = parse_judgement(text)
    if not found:
        return score
    scores, ranking = found.get("scores"), found.get("best-to-worst", found.get("best-to-worse"))
    score += (0.15 if recovered else 0.20) + 0.10 * ("scores" in found) + 0.10 * (ranking is not None)
    if isinstance(scores, dict):
        score += 0.20 * len(scores.keys() & truth.keys()) / max(len(truth), 1)
        score += 0.20 * consistency(scores, ranking)
    return min(1.0, score)


def consistency(scores: Mapping[str, Any], ranking: Any) -> float:
    """Share of the pairs of ranked ids, in the order of the ranking, whose scores do not rise; 0 without a pair.

    Unverified: the release calls a check of this name that it does not contain.
    """
    ids = ranking[:IDS] if isinstance(ranking, list) else []
    ranked = [i for i in dict.fromkeys(i for i in ids if isinstance(i, str)) if _is_number(scores.get(i))]
    pairs = list(itertools.combinations(ranked, 2))
    return sum(scores[a] >= scores[b] for a, b in pairs) / len(pairs) if pairs else 0.0
