"""Tables of generated problems, their split, and the device task made of them.

    rows [M W]  ->  keys [M W']  ->  indices of the train rows, indices of the held-out rows  ->  Problems

A row is a problem in numbers. Its key is the same for all problems that are the same question (3+5 and 5+3); a key is
wholly on one side of the split, so that no held-out problem was trained on under another spelling.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.tokenizers import CharTokenizer
from jaxrl_llm.types import Grade, Problems

ROWS = 20_000  # the longest train table
DRAWS = 4 * ROWS  # a larger space of problems is sampled, a smaller one is listed in full
SHARE = 5  # at most one problem in five is held out
MAXIMUM_HELDOUT = ROWS // SHARE

GradeFn = Callable[[Array, Array, Mapping[str, Array]], Grade]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DeviceTask:
    """A `types.Task` whose `grade` is `grade_fn`, a pure function of arrays.

    It is compared by identity, so it is hashable and may be a static argument of `jax.jit`.
    """

    spec: str
    tokenizer: CharTokenizer
    train: Problems
    heldout: Problems
    answer_length: int
    component_names: tuple[str, ...]
    grade_fn: GradeFn
    on_device: bool = True

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end an answer."""
        return (self.tokenizer.eos,)

    def grade(
        self, answer: Int[Array, "P G T"], acted: Bool[Array, "P G T"], truth: Mapping[str, Int[Array, "P ..."]]
    ) -> Grade:
        """Grades of answers to the problems whose truth is given; tokens off `acted` may be anything."""
        return self.grade_fn(answer, acted, truth)


def require(low: int, high: int, **values: int) -> None:
    """Raise ValueError unless every named value is an integer from `low` to `high`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{name} must be an integer from {low} to {high}, not {value!r}")


def require_split(heldout: int, split_seed: int) -> None:
    """Raise ValueError where the split of a task is asked for in numbers that cannot be met."""
    require(1, MAXIMUM_HELDOUT, heldout=heldout)
    require(0, 2**32 - 1, split_seed=split_seed)


def spelled(function: Callable[..., Any], **arguments: int) -> str:
    """`name,key=value,...`: the call as `spec.build` reads it, arguments at their defaults left out."""
    defaults = {name: p.default for name, p in inspect.signature(function).parameters.items()}
    changed = [f"{name}={value}" for name, value in arguments.items() if value != defaults[name]]
    return ",".join([function.__name__, *changed])


def draw(radices: tuple[int, ...], seed: int) -> Int[np.ndarray, "M W"]:
    """Distinct rows of range(radices[0]) x range(radices[1]) x ..., in random order.

    All of them where there are at most DRAWS, else those among DRAWS uniform draws. Only the raw bits of the generator
    are used: numpy promises that they stay the same for ever, and does not promise it of `permutation` or `integers`,
    where a new numpy could move a problem from one side of the split to the other.
    """
    bits = np.random.PCG64(seed)
    size = math.prod(radices)
    if size <= DRAWS:
        rows = np.stack(np.unravel_index(np.arange(size), radices), axis=1)
        return rows[np.argsort(bits.random_raw(size), kind="stable")]
    raw = bits.random_raw(DRAWS * len(radices)).reshape(DRAWS, len(radices))
    rows = (raw % np.asarray(radices, np.uint64)).astype(np.int64)
    return rows[distinct(rows)]


def _groups(keys: Int[np.ndarray, "M W"]) -> tuple[Int[np.ndarray, " C"], Int[np.ndarray, " M"]]:
    """First row of each distinct key, in the order in which the keys appear, and the group of each row."""
    index: dict[bytes, int] = {}
    width = keys.shape[1] * keys.itemsize
    blob = np.ascontiguousarray(keys).tobytes()
    group = [index.setdefault(blob[at : at + width], len(index)) for at in range(0, len(blob), width)]
    _, first = np.unique(group, return_index=True)
    return first, np.asarray(group)


def distinct(keys: Int[np.ndarray, "M W"]) -> Int[np.ndarray, " C"]:
    """Index of the first row of each distinct key, ascending."""
    return _groups(keys)[0]


def split(keys: Int[np.ndarray, "M W"], heldout: int) -> tuple[Int[np.ndarray, " A"], Int[np.ndarray, " B"]]:
    """Indices of the train rows and of the held-out rows; no key is on both sides.

    Held out are the first rows of the first `heldout` keys, at most a fifth of all keys: one row per key, so that they
    are independent questions. Train are the first ROWS rows of all other keys: a question that can be asked in several
    orders may be there in several. As the rows come in random order, both sides have the distribution of the draws.
    """
    first, group = _groups(keys)
    held = max(1, min(heldout, len(first) // SHARE))
    return np.flatnonzero(group >= held)[:ROWS], first[:held]


def table(
    tokenizer: CharTokenizer,
    questions: list[tuple[str, str]],
    lengths: tuple[int, int],
    **truth: Int[np.ndarray, "N ..."],
) -> Problems:
    """Problems of `(prompt, solution)` texts, in arrays of `lengths` = (L, T); `answer` is added to an empty truth.

    truth["answer"] [N T] holds the ids of the only right answer with its EOS, padded on the right.
    """
    L, T = lengths
    prompt = np.full((len(questions), L), tokenizer.pad, np.int32)
    solution = np.full((len(questions), T), tokenizer.pad, np.int32)
    for row, (asked, answered) in enumerate(questions):
        ids = [tokenizer.bos, *tokenizer.encode(asked)]
        prompt[row, L - len(ids) :] = ids
        ids = [*tokenizer.encode(answered), tokenizer.eos]
        solution[row, : len(ids)] = ids
    return Problems(
        prompt=jnp.asarray(prompt),
        prompt_mask=jnp.asarray(prompt != tokenizer.pad),
        solution=jnp.asarray(solution),
        solution_mask=jnp.asarray(solution != tokenizer.pad),
        truth={name: jnp.asarray(x, jnp.int32) for name, x in (truth or {"answer": solution}).items()},
    )


COMPONENTS = ("correct", "format")


def right_or_wrong(correct: Bool[Array, "P G"], formed: Bool[Array, "P G"]) -> Grade:
    """Reward 1 where correct, else 0, whatever the form. Components: COMPONENTS. Every answer can be graded."""
    reward: Float[Array, "P G"] = correct.astype(jnp.float32)
    components = jnp.stack([reward, formed.astype(jnp.float32)], axis=-1)
    return Grade(reward=reward, components=components, valid=jnp.ones_like(correct))


def same_tokens(tokenizer: CharTokenizer) -> GradeFn:
    """Grader of tasks with one right answer: right where the acted tokens are those of truth["answer"], to the last.

    The EOS is one of them, so an answer that was cut off is wrong, as is one that goes on behind it. Its form is right
    where it is one or more digits and then the EOS.
    """
    digits = jnp.asarray(tokenizer.encode("0123456789"))

    def grade(answer: Array, acted: Array, truth: Mapping[str, Array]) -> Grade:
        right = truth["answer"][:, None, :]
        as_long = acted == (right != tokenizer.pad)
        correct = jnp.all(as_long & (~acted | (answer == right)), axis=-1)
        digit = acted & jnp.isin(answer, digits)
        end = acted & (answer == tokenizer.eos)
        before_end = jnp.cumsum(end[..., ::-1], axis=-1)[..., ::-1] > 0
        one_end = (jnp.sum(end, axis=-1) == 1) & jnp.any(digit, axis=-1)
        formed = one_end & jnp.all(~acted | end | (digit & before_end), axis=-1)
        return right_or_wrong(correct, formed)

    return grade


def exact_task(
    spec: str,
    alphabet: str,
    questions: tuple[list[tuple[str, str]], list[tuple[str, str]]],
    lengths: tuple[int, int],
) -> DeviceTask:
    """A task whose questions (train, held-out) have one right answer each."""
    tokenizer = CharTokenizer(alphabet)
    train, heldout = (table(tokenizer, part, lengths) for part in questions)
    return DeviceTask(
        spec=spec,
        tokenizer=tokenizer,
        train=train,
        heldout=heldout,
        answer_length=lengths[1],
        component_names=COMPONENTS,
        grade_fn=same_tokens(tokenizer),
    )
