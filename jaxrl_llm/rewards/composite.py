"""A reward that is a weighted sum of named parts, as the command line spells it: `correct+0.2*boxed-0.1*length`."""

import dataclasses
import re
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxrl_llm.rewards import parts
from jaxrl_llm.rewards.parts import Seen
from jaxrl_llm.spec import nearest, public_functions
from jaxrl_llm.types import Grade

TERM = re.compile(r"([+-]?)(?:([0-9]+(?:\.[0-9]+)?)\*)?([A-Za-z_]+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Composite:
    """Names of parts, and what a unit of each earns."""

    names: tuple[str, ...] = ("correct",)
    weights: tuple[float, ...] = (1.0,)

    def grade(
        self,
        texts: Sequence[Sequence[str]],
        correct: Float[np.ndarray, "P G"],
        valid: Bool[np.ndarray, "P G"],
        finished: Bool[np.ndarray, "P G"],
        tokens: Int[np.ndarray, "P G"],
        room: int,
    ) -> Grade:
        """Grades of answers: each part is a column of `components` [P G K], the reward their weighted sum.

        texts, correct, valid  texts [P][G], what the grader says of them, and whether it could
        finished, tokens       whether an answer ended by itself, and its length
        room                   tokens that an answer may have
        What could not be graded earns nothing in any part.
        """
        functions = [public_functions(parts)[name] for name in self.names]
        columns = np.zeros((*correct.shape, len(functions)), np.float32)
        for p, g in np.argwhere(valid).tolist():
            seen = Seen(
                text=texts[p][g] if finished[p, g] else "",
                correct=float(correct[p, g]),
                tokens=int(tokens[p, g]),
                room=room,
                finished=bool(finished[p, g]),
            )
            columns[p, g] = [function(seen) for function in functions]
        reward = columns @ np.asarray(self.weights, np.float32)
        return Grade(reward=jnp.asarray(reward), components=jnp.asarray(columns), valid=jnp.asarray(valid))


def read_composite(text: str) -> Composite:
    """The reward that a text spells: terms [WEIGHT*]PART with + or - between them.

    `correct` must be among them, as 0*correct at least, since the accuracy is read off it. Raises ValueError, which
    names what cannot be read and the nearest part.
    """
    known = sorted(public_functions(parts))
    at, names, weights = 0, [], []
    while at < len(text):
        term = TERM.match(text, at)
        if not term or (at > 0 and not term[1]):
            raise ValueError(f"reward {text!r}: {text[at:]!r} is no sum of [WEIGHT*]PART{nearest(text[at:], known)}")
        sign, weight, name = term.groups()
        if name not in known:
            raise ValueError(f"reward {text!r}: there is no part {name!r}{nearest(name, known)}")
        if name in names:
            raise ValueError(f"reward {text!r}: {name} is given twice")
        names.append(name)
        weights.append(float(f"{sign}{weight or 1}"))
        at = term.end()
    if "correct" not in names:
        raise ValueError(f"reward {text!r} lacks correct, off which the accuracy is read: write 0*correct at least")
    return Composite(names=tuple(names), weights=tuple(weights))
