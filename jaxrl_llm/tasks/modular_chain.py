"""Chains of modular arithmetic, read from left to right: `3+4*2-5%10=` -> `9`."""

import numpy as np
from jaxtyping import Int

from jaxrl_llm.tasks._table import DeviceTask, draw, exact_task, require, require_split, spelled, split

OPERATORS = "+-*"
TIMES = OPERATORS.index("*")


def canonical(rows: Int[np.ndarray, "M W"]) -> Int[np.ndarray, "M (W+1)//2"]:
    """Steps sorted within each run of sums and within each run of products, where their order makes no difference.

    rows [M 2n-1] are value, operator, value, ..., value. The first value counts as a step like the operator behind it
    (`+` for a sum), so 3+4*2-5 and 4+3*2-5 are one problem; 3+4-5*2 and 3-5+4*2 are another one.
    """
    values, operators = rows[:, ::2], rows[:, 1::2]
    start = np.where(operators[:, :1] == TIMES, TIMES, 0)
    steps = np.concatenate([start, operators], axis=1)
    run = np.cumsum(np.diff(steps == TIMES, axis=1, prepend=steps[:, :1] == TIMES), axis=1)
    return np.sort((run * len(OPERATORS) + steps) * (values.max() + 1) + values, axis=1)


def modular_chain(terms: int = 4, modulus: int = 10, heldout: int = 512, split_seed: int = 0) -> DeviceTask:
    """`3+4*2-5%10=` -> (((3 + 4) · 2) - 5) mod 10 = 9.

    The chain has no precedence: each operator (+ - *) takes all that stands left of it. `%m` at the end names the
    modulus of the whole. Operands are uniform on 0 ... modulus - 1 and the answer is one of these numbers, written
    without leading zeros. In train a chain may be there in several orders of its steps; a held-out one is in none.

    Raises:
        ValueError: terms outside 2 ... 16, modulus outside 2 ... 1000, heldout outside 1 ... 4000, or a negative
            split_seed.
    """
    require(2, 16, terms=terms)
    require(2, 1000, modulus=modulus)
    require_split(heldout, split_seed)

    def asked(row: Int[np.ndarray, " W"]) -> tuple[str, str]:
        value, text = int(row[0]), str(row[0])
        for operator, operand in row[1:].reshape(-1, 2).tolist():
            value = (value + operand, value - operand, value * operand)[operator] % modulus
            text += f"{OPERATORS[operator]}{operand}"
        return f"{text}%{modulus}=", str(value)

    rows = draw((modulus,) + (len(OPERATORS), modulus) * (terms - 1), split_seed)
    train, held = split(canonical(rows), heldout)
    width = len(str(modulus - 1))
    return exact_task(
        spec=spelled(modular_chain, terms=terms, modulus=modulus, heldout=heldout, split_seed=split_seed),
        alphabet="0123456789+-*%=",
        questions=([asked(row) for row in rows[train]], [asked(row) for row in rows[held]]),
        lengths=(1 + terms * (width + 1) + len(str(modulus)) + 1, width + 1),
    )
