"""The axis table, the one record that crosses from data to learning, and what a task and a tokenizer are.

Axes are spelled the same everywhere:

    P  prompts of a step                   T  answer tokens, the end-of-answer token (EOS) included
    G  answers per prompt (the group)      K  reward components
    L  prompt tokens                       V  vocabulary
    N  problems of a split
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
from jaxtyping import Array, Bool, Float, Int, Shaped

C = TypeVar("C", bound=type)


def pytree(cls: C) -> C:
    """Register a dataclass as a pytree whose leaves are its fields.

    Unflattening skips `__init__`, so that a tree of shapes, shardings or `None` can take the place of the arrays
    while every construction in plain code still has its shapes checked under test.
    """
    names = [field.name for field in dataclasses.fields(cls)]

    def flatten(tree):
        return [(jax.tree_util.GetAttrKey(name), getattr(tree, name)) for name in names], None

    def unflatten(_, leaves):
        tree = object.__new__(cls)
        for name, leaf in zip(names, leaves, strict=True):
            object.__setattr__(tree, name, leaf)
        return tree

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollout:
    """Sampled and graded answers. Token ids travel; text is never tokenised again.

    prompt          [P L]   token ids, padded on the left: the last column is always a real token
    prompt_mask     [P L]   True at real tokens
    answer          [P G T] token ids, padded on the right
    acted           [P G T] True exactly where the policy chose the token: the EOS counts, padding does not
    behaviour_logp  [P G T] nats, under the distribution sampled from (temperature, top-k, top-p applied); 0 off `acted`
    policy_logp     [P G T] nats, under the policy itself (temperature 1, not truncated); 0 off `acted`
    reward          [P G]
    components      [P G K] what the reward is made of
    valid           [P G]   False: the answer does not exist or could not be graded; it must change nothing
    truncated       [P G]   True: the answer ran into the length limit before an EOS
    prompt_id       [P]     row of the problem in its split
    version         [P G]   policy step that sampled the answer
    extras                  optional arrays of single methods, by name
    """

    prompt: Int[Array, "P L"]
    prompt_mask: Bool[Array, "P L"]
    answer: Int[Array, "P G T"]
    acted: Bool[Array, "P G T"]
    behaviour_logp: Float[Array, "P G T"]
    policy_logp: Float[Array, "P G T"]
    reward: Float[Array, "P G"]
    components: Float[Array, "P G K"]
    valid: Bool[Array, "P G"]
    truncated: Bool[Array, "P G"]
    prompt_id: Int[Array, " P"]
    version: Int[Array, "P G"]
    extras: Mapping[str, Shaped[Array, "..."]] = dataclasses.field(default_factory=dict)


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Problems:
    """One split of a task, as a table of N problems.

    prompt         [N L]   token ids, BOS first, padded on the left
    prompt_mask    [N L]   True at real tokens
    solution       [N T]   one right answer with its EOS, padded on the right: what supervised warm-up imitates
    solution_mask  [N T]   True at its tokens; a row of False: no right answer is known
    truth                  arrays [N ...], by name: what the grader needs to know of a problem
    """

    prompt: Int[Array, "N L"]
    prompt_mask: Bool[Array, "N L"]
    solution: Int[Array, "N T"]
    solution_mask: Bool[Array, "N T"]
    truth: Mapping[str, Shaped[Array, "N ..."]]


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Grade:
    """What a grader says of answers: the reward, its components, and whether the answer could be graded at all."""

    reward: Float[Array, "P G"]
    components: Float[Array, "P G K"]
    valid: Bool[Array, "P G"]


@runtime_checkable
class Tokenizer(Protocol):
    """Text <-> ids. Control ids are never produced by `encode`, whatever the text, and never shown by `decode`."""

    pad: int
    bos: int
    eos: int
    vocab_size: int

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without BOS or EOS. Raises ValueError where the text cannot be spelled."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; control ids and ids out of range are left out."""
        ...


@runtime_checkable
class Task(Protocol):
    """Prompts and a grader.

    `spec` is how the command line spells the task. `train` and `heldout` never share a problem. `answer_length` is T;
    an answer ends with the first token among `stops`. A task `on_device` grades in JAX: `grade` is pure and may be
    compiled with what is around it. Any other task is called with host arrays and may take its time, in processes that
    can be killed.
    """

    spec: str
    tokenizer: Tokenizer
    train: Problems
    heldout: Problems
    answer_length: int
    component_names: tuple[str, ...]
    on_device: bool

    @property
    def stops(self) -> tuple[int, ...]:
        """Ids that end an answer, the tokenizer's EOS first."""
        ...

    def grade(self, answer: Any, acted: Any, truth: Mapping[str, Any]) -> Grade:
        """Grades of answers [P G T] (tokens where `acted` [P G T]) to problems whose `truth` has leaves [P ...]."""
        ...
