"""Cut a rollout down to some of its answers or prompts. Slots that are not kept stay, as invalid answers."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm.types import Rollout

OF_ANSWERS = (
    *("answer", "acted", "behaviour_logp", "policy_logp"),
    *("reward", "components", "valid", "truncated", "version"),
)


def take_answers(rollout: Rollout, index: Int[Array, "P G"], keep: Bool[Array, "P G"]) -> Rollout:
    """Answer index[p, g] of each prompt p, in that order; invalid where `keep` is False.

    Extras of one axis belong to prompts and stay; all others belong to answers and are cut likewise.
    """
    pick = jax.vmap(lambda rows, wanted: rows[wanted])
    fields = {name: pick(getattr(rollout, name), index) for name in OF_ANSWERS}
    fields["valid"] = fields["valid"] & keep
    extras = {name: pick(x, index) if x.ndim > 1 else x for name, x in rollout.extras.items()}
    return dataclasses.replace(rollout, **fields, extras=extras)


def take_prompts(rollout: Rollout, index: Int[Array, " P"], keep: Bool[Array, " P"]) -> Rollout:
    """Prompt index[p] with all its answers, in that order; all answers are invalid where `keep` is False."""
    picked = jax.tree.map(lambda leaf: leaf[index], rollout)
    return dataclasses.replace(picked, valid=picked.valid & keep[:, None])


def first_of(where: Bool[Array, "*P N"], keep: int) -> tuple[Int[Array, "*P keep"], Bool[Array, "*P keep"]]:
    """Places of the first `keep` True of each row, in order, and which of them exist: with fewer, the rest is False."""
    if not 1 <= keep <= where.shape[-1]:
        raise ValueError(f"cannot keep {keep} of {where.shape[-1]}")
    index = jnp.argsort(~where, axis=-1, stable=True)[..., :keep]
    return index, jnp.take_along_axis(where, index, axis=-1)


def with_extras(rollout: Rollout, **extras: Float[Array, "..."] | Int[Array, "..."] | Bool[Array, "..."]) -> Rollout:
    """The rollout with more extras, or other ones in their place."""
    return dataclasses.replace(rollout, extras={**rollout.extras, **extras})
