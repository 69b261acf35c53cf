"""Chat templates come with a model from elsewhere: a process that can be killed compiles them and fills them in."""

import os
import threading
from typing import Any

from jaxrl_llm.rewards.pool import GraderPool

SECONDS = 10.0
"""Time to fill in a template."""

SOURCE, LONGEST = 200_000, 2_000_000
"""Characters of the longest template, and of the longest text that one may write."""

MEMORY = 1 << 30
"""Bytes of address space of the process that does it."""

_lock = threading.Lock()
_pools: dict[int, GraderPool] = {}  # by process: a fork of this one has no threads of its pool


def render(source: str, named: str = "the chat template", **variables: Any) -> str:
    """The text of a template. Raises ValueError, with its name and why, for one that fails, reaches for what it may
    not, writes too much or does not end. `variables` have to be what JSON can say."""
    if len(source) > SOURCE:
        raise ValueError(f"{named} fails: it has {len(source)} characters, more than {SOURCE}")
    with _lock:
        pool = _pools.get(os.getpid())
        if pool is None:
            options = {"memory": MEMORY, "longest": LONGEST}
            pool = _pools[os.getpid()] = GraderPool("template", options, workers=1, seconds=SECONDS)
        late = pool.counts["timeouts"]
        (text,) = pool.ask([{"source": source, "variables": variables}], SECONDS)
        if text is None:
            reason = f"it is not done within {SECONDS:g} s" if pool.counts["timeouts"] > late else pool.last_error
            raise ValueError(f"{named} fails: {reason}")
        return text


def close() -> None:
    """End the process, if there is one; the next template starts another."""
    with _lock:
        pool = _pools.pop(os.getpid(), None)
    if pool is not None:
        pool.close()
