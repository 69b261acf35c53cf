"""Rewards of written judgements of a solution (Critique-Coder, arXiv 2509.22824, released code 662e89f)."""

VERDICTS = {"t": True, "true": True, "f": False, "false": False}


def verdict(text: str, marker: str) -> bool | None:
    """The last conclusion T or F (true, false) that follows a `marker`, white space and marks around it aside.

    None where there is none. A marker that something else follows is passed over.
    """
    for part in reversed(text.split(marker)[1:]):
        words = part[:64].split(maxsplit=1)
        found = VERDICTS.get(words[0].strip("*_`'\"().,;:[]{}").lower()) if words else None
        if found is not None:
            return found
    return None


def critique_reward(label: bool, text: str, marker: str = "Conclusion:") -> float:
    """1 if the last conclusion equals the label, else 0; 0 without a conclusion. The marker is unverified.

    Guessing earns 1/2 on balanced labels, and a constant answer the share of the commoner label: keep them balanced.
    """
    return float(verdict(text, marker) is label)
