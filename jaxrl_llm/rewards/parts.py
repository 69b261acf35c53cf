"""What a reward can be made of besides correctness: each public function gives one number of one answer.

Texts are hostile and long: every function here reads a text in one pass.
"""

import dataclasses

from jaxrl_llm.rewards.finals import after_hashes, last_boxed

__all__ = ["boxed", "correct", "finished", "hashes", "length", "think"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """One answer.

    text      what it says; "" where it did not end by itself, as such an answer is not read
    correct   what the grader says of it
    tokens    its length, what ends it included
    room      tokens that an answer may have
    finished  whether it ended by itself
    """

    text: str
    correct: float
    tokens: int
    room: int
    finished: bool


def correct(seen: Seen) -> float:
    """What the grader says: 1 where the answer is right."""
    return seen.correct


def finished(seen: Seen) -> float:
    """1 where the answer ended by itself within its length."""
    return float(seen.finished)


def length(seen: Seen) -> float:
    """Tokens of the answer as a share of those that it may have; with a negative weight, a price of words."""
    return seen.tokens / seen.room


def boxed(seen: Seen) -> float:
    r"""1 where the text gives its final answer in \boxed{...}, with something in it."""
    return float(bool(last_boxed(seen.text)))


def hashes(seen: Seen) -> float:
    """1 where the text ends in a line "#### ANSWER", as those of GSM8K do."""
    return float("####" in seen.text.rstrip().rpartition("\n")[2] and bool(after_hashes(seen.text)))


def think(seen: Seen) -> float:
    """1 where the text is one block <think>...</think> and an answer behind it."""
    inside, closing, behind = seen.text.strip().removeprefix("<think>").partition("</think>")
    once = seen.text.strip().startswith("<think>") and "<think>" not in inside
    return float(once and bool(closing and behind.strip()) and "think>" not in behind)
