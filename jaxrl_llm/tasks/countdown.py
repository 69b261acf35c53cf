"""Countdown: an expression of given numbers that makes a target: `3 5 7>22:` -> `3*5+7`.

    expression = term { ("+" | "-") term }           term = factor { "*" factor }
    factor     = number | "(" expression ")"         number: a given one, in decimal without leading zeros

No sign stands in front of a number, there is no division and no space, and every given number is used exactly once.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxrl_llm.tasks._table import (
    COMPONENTS,
    DeviceTask,
    GradeFn,
    distinct,
    draw,
    require,
    require_split,
    right_or_wrong,
    spelled,
    split,
    table,
)
from jaxrl_llm.tokenizers import CharTokenizer
from jaxrl_llm.types import Grade, Problems

OPERATORS = "+-*"
CHARACTERS = "0123456789()" + OPERATORS  # what an answer is made of; the kind of a token is its index in here
OPENING, CLOSING, PLUS, MINUS, TIMES = range(10, 15)
NO_NUMBER = -1
HUGE = 10**6  # a number stops growing here while it is read: beyond all given ones, and far from the end of int32


class _Reader(NamedTuple):
    """What has been read so far. Of each open bracket, total + sign · product is the value up to here.

    stack [D 3] keeps (total, sign, product) of the brackets around the innermost. `number` is the number that is being
    read; `operand` is True right behind a complete number or bracket. Once `bad`, the rest means nothing.

    Each given number enters once and all are at least 1, so no part of an expression that is not bad exceeds
    maximum ** numbers, which `countdown` keeps within int32.
    """

    total: Int[Array, ""]
    sign: Int[Array, ""]
    product: Int[Array, ""]
    stack: Int[Array, "D 3"]
    depth: Int[Array, ""]
    number: Int[Array, ""]
    operand: Bool[Array, ""]
    used: Bool[Array, " n"]
    bad: Bool[Array, ""]


def _empty(depth: int, numbers: int) -> _Reader:
    zero, one, no = jnp.int32(0), jnp.int32(1), jnp.bool_(False)
    stack, used = jnp.zeros((depth, 3), jnp.int32), jnp.zeros(numbers, bool)
    return _Reader(zero, one, one, stack, zero, jnp.int32(NO_NUMBER), no, used, no)


def _where(condition: Bool[Array, ""], new: _Reader, old: _Reader) -> _Reader:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)


def _finish_number(r: _Reader, numbers: Int[Array, " n"]) -> _Reader:
    """Multiply the number that was read into the product, and cross one like it off the given ones."""
    hits = ~r.used & (numbers == r.number)
    first = hits & (jnp.cumsum(hits) == 1)
    finished = r._replace(
        product=r.product * r.number,
        number=jnp.int32(NO_NUMBER),
        operand=jnp.bool_(True),
        used=r.used | first,
        bad=r.bad | ~jnp.any(hits),
    )
    return _where(r.number != NO_NUMBER, finished, r)


def _digit(r: _Reader, value: Int[Array, ""]) -> _Reader:
    """One more digit. Wrong behind a leading zero, and at the start of a number right behind a bracket."""
    goes_on = r.number != NO_NUMBER
    wrong = jnp.where(goes_on, r.number == 0, r.operand)
    number = jnp.where(goes_on, jnp.minimum(10 * r.number + value, HUGE), value)
    return r._replace(number=number, bad=r.bad | wrong)


def _symbol(r: _Reader, kind: Int[Array, ""]) -> _Reader:
    """One more bracket or operator; any other kind is bad."""
    value = r.total + r.sign * r.product
    zero, one, no = jnp.int32(0), jnp.int32(1), jnp.bool_(False)

    top = (jnp.arange(r.stack.shape[0]) == r.depth)[:, None]
    kept = jnp.where(top, jnp.stack([r.total, r.sign, r.product])[None], r.stack)
    opened = r._replace(total=zero, sign=one, product=one, stack=kept, depth=r.depth + 1)
    opened = opened._replace(bad=r.bad | r.operand)

    total, sign, product = r.stack[jnp.maximum(r.depth - 1, 0)]
    closed = r._replace(total=total, sign=sign, product=product * value, depth=r.depth - 1)
    closed = closed._replace(bad=r.bad | ~r.operand | (r.depth == 0))

    times = r._replace(operand=no, bad=r.bad | ~r.operand)
    plus = times._replace(total=value, sign=jnp.where(kind == MINUS, -one, one), product=one)

    after = _where(kind == OPENING, opened, r._replace(bad=jnp.bool_(True)))
    after = _where(kind == CLOSING, closed, after)
    after = _where(kind == TIMES, times, after)
    return _where((kind == PLUS) | (kind == MINUS), plus, after)


def evaluate(
    kinds: Int[Array, " T"], live: Bool[Array, " T"], numbers: Int[Array, " n"]
) -> tuple[Int[Array, ""], Bool[Array, ""]]:
    """Value of the expression spelled by the `live` kinds, and whether it is one that uses each number exactly once.

    Where it is not, the value means nothing. An empty expression is not one.
    """
    # A bracket takes two tokens and stands around one at least, and the EOS is one more: brackets that are opened any
    # deeper find no place on the stack, and cannot all be closed either.
    depth = max(1, (kinds.shape[0] - 2) // 2)

    def read(r: _Reader, token: tuple[Array, Array]) -> tuple[_Reader, None]:
        kind, here = token
        is_digit = (kind >= 0) & (kind < OPENING)
        after = _where(is_digit, _digit(r, kind), _symbol(_finish_number(r, numbers), kind))
        return _where(here, after, r), None

    r, _ = jax.lax.scan(read, _empty(depth, numbers.shape[0]), (kinds, live))
    r = _finish_number(r, numbers)
    return r.total + r.sign * r.product, ~r.bad & r.operand & (r.depth == 0) & jnp.all(r.used)


def expression_grader(tokenizer: CharTokenizer) -> GradeFn:
    """Grader of countdown: truth["numbers"] [P n] and truth["target"] [P]; any right expression has reward 1, any
    expression of the right numbers is well-formed.

    The acted tokens must be a prefix of the answer that ends with its only EOS; control ids, ids that spell nothing
    and ids outside of the vocabulary make the answer wrong.
    """
    ids = jnp.asarray([tokenizer.encode(c)[0] for c in CHARACTERS], jnp.int32)

    def correct(
        answer: Int[Array, " T"], acted: Bool[Array, " T"], numbers: Int[Array, " n"], target: Int[Array, ""]
    ) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
        matches = answer[:, None] == ids[None, :]
        kinds = jnp.where(jnp.any(matches, axis=-1), jnp.argmax(matches, axis=-1), len(CHARACTERS)).astype(jnp.int32)
        length = jnp.sum(acted)
        prefix = jnp.all(acted == (jnp.arange(acted.shape[0]) < length))
        last = jnp.arange(acted.shape[0]) == length - 1
        ends = prefix & jnp.any(last & (answer == tokenizer.eos))
        value, well_formed = evaluate(kinds, acted & ~last, numbers)
        formed = ends & well_formed
        return formed & (value == target), formed

    def grade(answer: Array, acted: Array, truth: Mapping[str, Array]) -> Grade:
        of_group = jax.vmap(correct, (0, 0, None, None))
        return right_or_wrong(*jax.vmap(of_group)(answer, acted, truth["numbers"], truth["target"]))

    return grade


def canonical(numbers: Int[np.ndarray, "M n"], target: Int[np.ndarray, " M"]) -> Int[np.ndarray, "M n+1"]:
    """Numbers in ascending order, then the target: how a problem is asked, and so what makes it the same problem."""
    return np.concatenate([np.sort(numbers, axis=1), target[:, None]], axis=1)


def _values(rows: Int[np.ndarray, "M W"], numbers: int) -> Int[np.ndarray, " M"]:
    """Values of the expressions that `_expression` spells."""
    values, operators, merges = rows[:, :numbers], rows[:, numbers : 2 * numbers - 1], rows[:, 2 * numbers - 1 :]
    at = np.arange(len(rows))
    for step in range(numbers - 1):
        place = merges[:, step]
        left, right = values[at, place], values[at, place + 1]
        value = np.choose(operators[:, step], [left + right, left - right, left * right])
        columns = np.arange(values.shape[1] - 1)[None]
        values = np.take_along_axis(values, columns + (columns > place[:, None]), axis=1)
        values[at, place] = value
    return values[:, 0]


def _expression(row: Int[np.ndarray, " W"], numbers: int) -> str:
    """The expression of a row, with no bracket that its value does not need.

    A row is n numbers, n-1 operators and n-1 places: step k joins the parts at place k and behind it by operator k.
    """
    parts = [(str(x), TIMES) for x in row[:numbers]]
    for operator, place in zip(row[numbers : 2 * numbers - 1], row[2 * numbers - 1 :], strict=True):
        kind = PLUS + operator
        (left, below_left), (right, below_right) = parts[place : place + 2]
        if kind == TIMES and below_left != TIMES:
            left = f"({left})"
        if below_right != TIMES and kind != PLUS:
            right = f"({right})"
        parts[place : place + 2] = [(f"{left}{OPERATORS[operator]}{right}", TIMES if kind == TIMES else PLUS)]
    return parts[0][0]


def countdown(
    numbers: int = 3, maximum: int = 9, target_maximum: int = 99, heldout: int = 512, split_seed: int = 0
) -> DeviceTask:
    """`3 5 7>22:` -> `3*5+7`, or any other expression of value 22 that uses 3, 5 and 7 exactly once each.

    The `numbers` numbers are from 1 to `maximum`, repetitions allowed, shown in ascending order. Targets are from 1 to
    `target_maximum`, and are values of random expressions of the numbers, so each problem can be solved. No problem
    (numbers and target) is in a table twice, or in both. An answer may hold as many brackets as any solution needs.

    Raises:
        ValueError: numbers outside 2 ... 6, maximum outside 2 ... 99 or with maximum ** numbers beyond int32,
            target_maximum outside maximum ... 9999, heldout outside 1 ... 4000, or a negative split_seed.
    """
    require(2, 6, numbers=numbers)
    require(2, min(99, int((2**31 - 1) ** (1 / numbers))), maximum=maximum)
    require(maximum, 9999, target_maximum=target_maximum)
    require_split(heldout, split_seed)

    rows = draw((maximum,) * numbers + (len(OPERATORS),) * (numbers - 1) + tuple(range(numbers - 1, 0, -1)), split_seed)
    rows[:, :numbers] += 1
    target = _values(rows, numbers)
    rows, target = (x[(target >= 1) & (target <= target_maximum)] for x in (rows, target))
    keys = canonical(rows[:, :numbers], target)
    first = distinct(keys)
    rows, keys = rows[first], keys[first]
    width, T = len(str(maximum)), numbers * len(str(maximum)) + (numbers - 1) + 2 * (numbers - 2) + 1
    lengths = (1 + numbers * (width + 1) + len(str(target_maximum)) + 1, T)
    tokenizer = CharTokenizer(CHARACTERS + " >:")

    def asked(key: Int[np.ndarray, " n"], row: Int[np.ndarray, " W"]) -> tuple[str, str]:
        return " ".join(map(str, key[:-1])) + f">{key[-1]}:", _expression(row, numbers)

    def part(chosen: Int[np.ndarray, " N"]) -> Problems:
        questions = [asked(key, row) for key, row in zip(keys[chosen], rows[chosen], strict=True)]
        return table(tokenizer, questions, lengths, numbers=keys[chosen, :-1], target=keys[chosen, -1])

    train, held = (part(chosen) for chosen in split(keys, heldout))
    arguments = {"numbers": numbers, "maximum": maximum, "target_maximum": target_maximum}
    return DeviceTask(
        spec=spelled(countdown, **arguments, heldout=heldout, split_seed=split_seed),
        tokenizer=tokenizer,
        train=train,
        heldout=held,
        answer_length=T,
        component_names=COMPONENTS,
        grade_fn=expression_grader(tokenizer),
    )
