"""What the tests of text tasks share: a table, and the way back from ids to text."""

import importlib

import numpy as np

from jaxrl_llm.tasks._host import HostTask
from jaxrl_llm.types import Problems

SUMS = [{"prompt": f"{a}+{b}=", "answer": str(a + b)} for a in range(10) for b in range(5)]


def prompts(task: HostTask, problems: Problems) -> list[str]:
    """Texts of the prompts, read back through the mask."""
    ids, mask = np.asarray(problems.prompt), np.asarray(problems.prompt_mask)
    assert (ids[np.arange(len(ids)), mask.argmax(1)] == task.tokenizer.bos).all()
    return [task.tokenizer.decode(row[where].tolist()) for row, where in zip(ids, mask, strict=True)]


def solutions(task: HostTask, problems: Problems) -> list[str]:
    """Texts of the solutions; each ends with its EOS."""
    ids, mask = np.asarray(problems.solution), np.asarray(problems.solution_mask)
    return [task.tokenizer.decode(row[where].tolist()) for row, where in zip(ids, mask, strict=True)]


def as_parquet(table: list[dict], path) -> bytes:
    datasets = importlib.import_module("datasets")
    datasets.Dataset.from_list(table).to_parquet(path)
    return path.read_bytes()
