"""Sums of non-negative integers: `37+5=` -> `42`."""

import numpy as np
from jaxtyping import Int

from jaxrl_llm.tasks._table import DeviceTask, draw, exact_task, require, require_split, spelled, split


def canonical(rows: Int[np.ndarray, "M W"]) -> Int[np.ndarray, "M W"]:
    """Operands in ascending order: 3+5 and 5+3 are one problem."""
    return np.sort(rows, axis=1)


def addition(digits: int = 2, terms: int = 2, heldout: int = 512, split_seed: int = 0) -> DeviceTask:
    """`a+b=` -> a + b, for `terms` operands, each uniform on 0 ... 10^digits - 1.

    Numbers are written without leading zeros, and the answer must be, too. In train a sum may be asked in several
    orders; a held-out sum is asked in one, and in train in none.

    Raises:
        ValueError: digits outside 1 ... 9, terms outside 2 ... 9, heldout outside 1 ... 4000, or a negative split_seed.
    """
    require(1, 9, digits=digits)
    require(2, 9, terms=terms)
    require_split(heldout, split_seed)

    def asked(row: Int[np.ndarray, " W"]) -> tuple[str, str]:
        return "+".join(map(str, row)) + "=", str(row.sum())

    rows = draw((10**digits,) * terms, split_seed)
    train, held = split(canonical(rows), heldout)
    return exact_task(
        spec=spelled(addition, digits=digits, terms=terms, heldout=heldout, split_seed=split_seed),
        alphabet="0123456789+=",
        questions=([asked(row) for row in rows[train]], [asked(row) for row in rows[held]]),
        lengths=(1 + terms * (digits + 1), len(str(terms * (10**digits - 1))) + 1),
    )
