"""How the reference policy moves: functions (reference, policy, steps done) -> reference. Without one it stays.

It moves after every step. A step whose batch was refused is one too: the reference follows the policy as it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

Params = Any
Anchor = Callable[[Params, Params, Int[Array, ""]], Params]


def moving_average(*, decay: float) -> Anchor:
    """θ_ref ← decay · θ_ref + (1 - decay) · θ after every step: decay 1 stays, decay 0 is always the newest policy.

    A reference of this kind is named in T1 (arXiv 2501.11651).
    """
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be from 0 to 1, not {decay}")

    def move(reference: Params, policy: Params, step: Int[Array, ""]) -> Params:
        del step
        return _mixed(reference, policy, 1 - decay)

    return move


def refreshed(*, every: int, mixing: float = 1.0) -> Anchor:
    """θ_ref ← (1 - mixing) · θ_ref + mixing · θ after each `every` steps; in between it stays.

    mixing 1 copies the policy; TRL's synchronisation mixes 0.6 every 512 steps.
    """
    if every < 1:
        raise ValueError(f"every must be 1 or more, not {every}")
    if not 0 < mixing <= 1:
        raise ValueError(f"mixing must be above 0 and at most 1, not {mixing}")

    def move(reference: Params, policy: Params, step: Int[Array, ""]) -> Params:
        return _mixed(reference, policy, jnp.where(step % every == 0, mixing, 0.0))

    return move


def _mixed(reference: Params, policy: Params, share: Array | float) -> Params:
    """(1 - share) · θ_ref + share · θ: exactly one of them at 0 and 1. In float32 at least, as in less 0.999 is 1."""

    def mix(old, new):
        wide = jnp.promote_types(old.dtype, jnp.float32)
        part = jnp.asarray(share, wide)
        return ((1 - part) * old.astype(wide) + part * new.astype(wide)).astype(old.dtype)

    return jax.tree.map(mix, reference, policy)
