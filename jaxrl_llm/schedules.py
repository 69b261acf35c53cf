"""Learning-rate schedules, named on the command line as tasks and recipes are: `--schedule cosine,warmup=20`."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float

__all__ = ["constant", "cosine", "linear"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """`build(peak, updates)` gives the optax schedule of a run of so many updates. `spec` is its spelling.

    The peak may be traced.
    """

    spec: str
    build: Callable[[float | Float[Array, ""], int], Callable[[Any], Any]]


def constant(warmup: int = 10) -> Schedule:
    """Rises linearly from 0 over `warmup` updates, then stays at the peak."""
    return _after_warmup("constant", warmup, lambda optax, peak, updates: optax.constant_schedule(peak))


def linear(warmup: int = 10) -> Schedule:
    """Rises linearly over `warmup` updates, then falls linearly to 0 at the last."""
    return _after_warmup("linear", warmup, lambda optax, peak, updates: optax.linear_schedule(peak, 0.0, updates))


def cosine(warmup: int = 10) -> Schedule:
    """Rises linearly over `warmup` updates, then falls to 0 along half a cosine."""
    return _after_warmup("cosine", warmup, lambda optax, peak, updates: optax.cosine_decay_schedule(peak, updates))


def _after_warmup(name: str, warmup: int, main: Callable[..., Callable[[Any], Any]]) -> Schedule:
    if warmup < 0:
        raise ValueError(f"warmup must be 0 or more, not {warmup}")

    def build(peak: float | Float[Array, ""], updates: int) -> Callable[[Any], Any]:
        import optax

        # The first update is number 0 and must move: with `warmup` w it runs at peak/(w + 1), not at 0.
        rise = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
        return optax.join_schedules([rise, main(optax, peak, max(updates - warmup, 1))], [warmup])

    return Schedule(spec=f"{name},warmup={warmup}", build=build)
