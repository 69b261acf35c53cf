"""Grades of answers on the host, each process its share of them."""

from collections.abc import Mapping

import numpy as np

from jaxrl_llm.distributed import joined, several, share, together
from jaxrl_llm.sharding import fetch
from jaxrl_llm.types import Grade, Task


def graded(task: Task, answer: np.ndarray, acted: np.ndarray, truth: Mapping[str, np.ndarray]) -> Grade:
    """Grades of answers [P G T] to questions with truths [P ...], whole on every process, as numpy.

    All processes have to call it. What one grades, it grades alone, so a time-out is the same answer everywhere; where
    its grader raises, all raise RankError, and none waits for it.
    """
    if not several():
        return fetch(task.grade(answer, acted, truth))
    mine = share(len(answer))
    asked = answer[mine], acted[mine], {name: np.asarray(x)[mine] for name, x in truth.items()}
    return joined(together(lambda: fetch(task.grade(*asked))), len(answer))
