"""Sorting of digits: `52914=` -> `12459`."""

import numpy as np
from jaxtyping import Int

from jaxrl_llm.tasks._table import DeviceTask, draw, exact_task, require, require_split, spelled, split


def canonical(rows: Int[np.ndarray, "M W"]) -> Int[np.ndarray, "M W"]:
    """Digits in ascending order: two orders of the same digits are one problem, as they have one answer."""
    return np.sort(rows, axis=1)


def digit_sort(length: int = 5, heldout: int = 512, split_seed: int = 0) -> DeviceTask:
    """`52914=` -> `12459`: `length` digits, each uniform on 0 ... 9, in ascending order with their repetitions.

    In train the same digits may be asked in several orders; held-out digits are asked in one, and in train in none.

    Raises:
        ValueError: length outside 2 ... 32, heldout outside 1 ... 4000, or a negative split_seed.
    """
    require(2, 32, length=length)
    require_split(heldout, split_seed)

    def asked(row: Int[np.ndarray, " W"]) -> tuple[str, str]:
        return "".join(map(str, row)) + "=", "".join(map(str, sorted(row)))

    rows = draw((10,) * length, split_seed)
    train, held = split(canonical(rows), heldout)
    return exact_task(
        spec=spelled(digit_sort, length=length, heldout=heldout, split_seed=split_seed),
        alphabet="0123456789=",
        questions=([asked(row) for row in rows[train]], [asked(row) for row in rows[held]]),
        lengths=(1 + length + 1, length + 1),
    )
