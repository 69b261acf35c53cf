"""What experiments on pools share: intervals over prompts, the laboratory of a command, and a word on the sizes."""

import pathlib
import tempfile

import numpy as np

from experiments.answers import flags
from experiments.pools import BETWEEN, STANDARD, Laboratory, smoke
from jaxrl_llm.policies.policy import Policy


def arguments(name: str, question: str, argv: list[str] | None = None) -> tuple[Laboratory, str, pathlib.Path | None]:
    """`python -m experiments.NAME [--smoke] [--out DIR]` -> laboratory, the command, and where the answer goes."""
    small, command, out = flags(name, question, argv)
    return smoke(pathlib.Path(tempfile.gettempdir()) / "jaxrl_llm-smoke") if small else STANDARD, command, out


def policy_of(lab: Laboratory) -> str:
    """Whose answers were measured, in a few words."""
    c = lab.config
    count = Policy(c.model, c.vocab_size).parameter_count()
    return (
        f"steps {', '.join(map(str, lab.steps))} of one run (task {c.task.spec}, recipe {c.recipe.spec}, seed "
        f"{c.seed}) of a policy of {count:,} parameters, rewards 0 and 1, exact scores of all parameters"
    )


def sizes(lab: Laboratory) -> str:
    """What the pools are, in two sentences."""
    return (
        f"Pools of {lab.answers} answers to {lab.prompts} prompts at each of {policy_of(lab)}; prompts were chosen on "
        f"other answers by pass rates between {BETWEEN[0]} and {BETWEEN[1]}. Intervals of 95% by bootstrap over "
        f"prompts; there is one run, so nothing is said of other seeds."
    )


def ratio_of_sums(above: np.ndarray, below: np.ndarray, *, level: float = 0.95, seed: int = 0) -> np.ndarray:
    """(Σ above)/(Σ below) over prompts, and its interval: prompts are drawn anew 4000 times. [3]: value, low, high.

    NaN of fewer than four prompts.
    """
    if len(above) < 4:
        return np.full(3, np.nan)
    rows = np.random.default_rng(seed).integers(0, len(above), (4000, len(above)))
    spread = above[rows].sum(axis=1) / below[rows].sum(axis=1)
    return np.array([above.sum() / below.sum(), *np.quantile(spread, [(1 - level) / 2, (1 + level) / 2])])


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over prompts with its interval [3]."""
    return ratio_of_sums(values, np.ones(len(values)))


def geometric_mean(ratios: np.ndarray) -> np.ndarray:
    """exp of the mean log over prompts with its interval [3]: each prompt counts the same, whatever its energy."""
    return np.exp(mean(np.log(ratios)))
