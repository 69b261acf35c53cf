"""Rewards scaled by progress of the Pareto front (dynamic reward weighting, arXiv 2509.11452, code 238fe65)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import masked
from jaxrl_llm.rewards._base import RewardTransform, cleaned, with_reward
from jaxrl_llm.rewards.controllers._front import contribution


class Front(NamedTuple):
    """State: the points kept, which slots hold one, the first point seen, how many were seen, the factor in force."""

    points: Float[Array, "C K"]
    used: Bool[Array, " C"]
    reference: Float[Array, " K"]
    seen: Int[Array, ""]
    factor: Float[Array, ""]


def dynamic_hypervolume(maximise: tuple[bool, ...], capacity: int = 32) -> RewardTransform:
    """r ← m r,  m = 1/2 + 3/2 tanh(HV(front + v) - HV(front)), in [1/2, 2);  1 until a second point is seen.

    v holds the K objectives, `maximise` says which are to be large; the first v is the reference point of the volumes.
    Extras "objective_point" [K], where given, is v of the policy that sampled the batch (a validation after the last
    update) and scales this batch. Without it v is the batch mean of the first K components and scales the next batch,
    so that m never depends on the rewards that it multiplies. A v that is not finite is passed over.

    Every reward of a batch gets the same m: an estimator that divides by a std does not see it at all (eps aside), and
    Adam sees only how it varies.

    A v that adds volume joins the front and the points it dominates leave. When all slots are taken, the point whose
    loss costs least volume leaves; what is lost can be earned again. Points that are not better than the reference in
    every objective add 0 (see `hypervolume`), where the release adds a negative volume and may stop.
    """
    if not 1 <= len(maximise) <= 3:
        raise ValueError(f"dynamic_hypervolume takes 1 to 3 objectives, not {len(maximise)}")
    if capacity < 1:
        raise ValueError(f"capacity must be positive, not {capacity}")
    k = len(maximise)

    def init():
        points = jnp.zeros((capacity, k), jnp.float32)
        seen, factor = jnp.zeros((), jnp.int32), jnp.ones((), jnp.float32)
        return Front(points, jnp.zeros(capacity, bool), jnp.zeros(k, jnp.float32), seen, factor)

    def update(rollout, state):
        new = _observed(rollout, state, maximise)
        factor = new.factor if "objective_point" in rollout.extras else state.factor
        return with_reward(rollout, cleaned(rollout).reward * factor.astype(rollout.reward.dtype)), new

    return RewardTransform(init, update)


def _observed(rollout, state, maximise):
    """The state after the point of this rollout."""
    if "objective_point" in rollout.extras:
        point, exists = rollout.extras["objective_point"], True
    else:
        parts = cleaned(rollout).components[..., : len(maximise)]
        if parts.shape[-1] < len(maximise):
            raise ValueError(f"{len(maximise)} objectives, {parts.shape[-1]} components: give extras objective_point")
        where = jnp.broadcast_to(rollout.valid[..., None], parts.shape)
        point, exists = masked.mean(parts.astype(jnp.float32), where, axis=(0, 1)), jnp.any(rollout.valid)
    exists = exists & jnp.all(jnp.isfinite(point))
    sign = jnp.asarray([1 if m else -1 for m in maximise], jnp.float32)
    point = jnp.where(exists, point, 0).astype(jnp.float32) * sign
    gain = contribution(point, state.points, state.used, state.reference)
    first = state.seen == 0
    joins = exists & ~first & (gain > 0)
    points, used = _joined(point, state)
    factor = jnp.where(first, 1, 0.5 + 1.5 * jnp.tanh(gain)).astype(jnp.float32)
    return Front(
        jnp.where(joins, points, state.points),
        jnp.where(joins, used, state.used),
        jnp.where(exists & first, point, state.reference),
        state.seen + jnp.asarray(exists, jnp.int32),
        jnp.where(exists, factor, state.factor),
    )


def _joined(point, state):
    """Points and used slots with the new point in a free slot, or in that of the least useful of them all."""
    everything = jnp.concatenate([state.points, point[None]])
    kept = jnp.append(state.used & ~jnp.all(state.points <= point[None], axis=-1), True)
    index = jnp.arange(kept.shape[0])
    own = lambda i: contribution(everything[i], everything, kept & (index != i), state.reference)  # noqa: E731
    leaves = jnp.argmin(jnp.where(kept, jax.vmap(own)(index), -1))
    taken = index[:-1] == leaves
    return jnp.where(taken[:, None], point[None], state.points), kept[:-1] | taken
