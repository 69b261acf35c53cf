"""Which problems, or prompts of a step, stay, by how often they were solved."""

import numpy as np
from jaxtyping import Array, Bool, Float


def solvable(correct: Bool[Array | np.ndarray, "N S"], at_least: int = 1) -> Bool[Array | np.ndarray, " N"]:
    """Σ correct >= at_least: the problems with a right answer among S attempts (RIF-RFT, arXiv 2507.05386).

    at_least, and S: unverified, the paper's threshold and number of attempts are not known (8 attempts in a port).
    A problem that is never solved gives a centred credit no gradient, so leaving it out changes the composition and the
    denominators of batches, nothing else. Under a credit that punishes wrong answers its sampled gradient goes too,
    which is 0 in expectation and not on any one batch.
    """
    return correct.sum(axis=1) >= at_least


def in_band(rate: Float[Array | np.ndarray, " N"], low: float, high: float) -> Bool[Array | np.ndarray, " N"]:
    """low <= rate <= high, both ends included; a rate k / S compares exactly with a bound that is spelled k / S.

    PRIME (arXiv 2502.01456) keeps [0.2, 0.8]; Qwen2.5-Math (arXiv 2409.12122) keeps 2 to 5 right of 8, low = 2/8 and
    high = 5/8 (unverified: known second-hand).
    """
    return (rate >= low) & (rate <= high)
