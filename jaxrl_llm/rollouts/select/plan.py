"""What the trainer draws for a step, and what it keeps of it."""

import dataclasses
from collections.abc import Callable

from jaxrl_llm.types import Rollout

Select = Callable[[Rollout], Rollout]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Draw `prompts` times the prompts of a step with `answers` answers each, grade all, train on what `select` keeps.

    prompts  factor on the prompts of a step, so that a selector of prompts has some to refuse
    answers  answers drawn for each prompt; None: as many as are trained on
    select   graded pool [P' G' T] -> the rollout [P G T] that is trained on; pure, fixed shapes
    """

    select: Select
    prompts: int = 1
    answers: int | None = None

    def __post_init__(self):
        if self.prompts < 1:
            raise ValueError(f"prompts must be 1 or more, not {self.prompts}")
        if self.answers is not None and self.answers < 1:
            raise ValueError(f"answers must be 1 or more, not {self.answers}")
