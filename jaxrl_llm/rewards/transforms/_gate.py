"""The format as a factor of another reward."""

from collections.abc import Callable

from jaxtyping import Array, Float

from jaxrl_llm.rewards._base import RewardTransform, stateless
from jaxrl_llm.types import Rollout


def gated(
    fn: Callable[[Rollout], Float[Array, "P G"]],
    format: int | None,
    needs: tuple[str, ...] = (),
    components: int = 0,
) -> RewardTransform:
    """r = fn(rollout) · c_format, or fn(rollout) where `format` is None."""
    if format is None:
        return stateless(fn, needs=needs, components=components)
    needed = max(components, format + 1)
    return stateless(lambda rollout: fn(rollout) * rollout.components[..., format], needs=needs, components=needed)
