"""A verdict from intervals and bounds that were stated before: no number is looked at by a person first."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

WORDS = ("reproduced", "refuted", "undecided")


class Part(NamedTuple):
    """One statement of a claim: a figure with its interval, and the side of `bound` on which the claim puts it."""

    what: str
    interval: Sequence[float]  # value, low, high
    side: str  # "below" or "above"
    bound: float

    @property
    def holds(self) -> bool | None:
        """True: the whole interval is on the claimed side. False: the whole of it is on the other. None: neither."""
        _, low, high = self.interval
        if not (math.isfinite(low) and math.isfinite(high)):
            return None
        claimed, other = high < self.bound, low > self.bound
        if self.side == "above":
            claimed, other = other, claimed
        return True if claimed else False if other else None

    def __str__(self) -> str:
        value, low, high = self.interval
        answer = {True: "yes", False: "no", None: "not resolved"}[self.holds]
        return f"{self.what}: {value:.4g} [{low:.4g}, {high:.4g}], claimed {self.side} {self.bound:g}: {answer}"


def decide(parts: Sequence[Part]) -> tuple[str, str]:
    """The verdict and its reason: refuted by any part that fails, reproduced where all hold, else undecided."""
    if not parts:
        raise ValueError("a verdict needs at least one part")
    held = [part.holds for part in parts]
    word = WORDS[1 if False in held else 2 if None in held else 0]
    return word, listed(map(str, parts))


def listed(parts: Iterable[str]) -> str:
    """A list in Markdown, apart from what stands before and behind it."""
    return "\n\n" + "".join(f"- {part}\n" for part in parts) + "\n"


def shown(word: str, reason: str) -> str:
    """The verdict as an answer has it."""
    text = f"**Verdict: {word}** at this scale. {reason}".strip()
    return re.sub(r" *\n *", "\n", text)
