"""The algebra of rewards: pure transforms of graded rollouts, applied before any credit is formed."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import masked
from jaxrl_llm.types import Rollout

State = Any


class RewardTransform(NamedTuple):
    """`init() -> state` and `update(rollout, state) -> (rollout, state)`, both pure.

    The rollout comes back with another `reward` [P G], or with more `components`. Invalid answers get 0 and influence
    nothing.

    needs       names of `Rollout.extras` that it reads
    components  smallest number of reward components that it needs
    added       number of components that it appends
    """

    init: Callable[[], State]
    update: Callable[[Rollout, State], tuple[Rollout, State]]
    needs: tuple[str, ...] = ()
    components: int = 0
    added: int = 0


def cleaned(rollout: Rollout, components: int = 0) -> Rollout:
    """The rollout with 0 in every per-answer field of invalid answers: they may hold anything, NaN included.

    A ValueError if it has fewer reward components than are needed, since an index out of range would read the last.
    """
    if rollout.components.shape[-1] < components:
        raise ValueError(f"needs {components} reward components, has {rollout.components.shape[-1]}")
    one, each = rollout.valid, rollout.valid[..., None]
    return dataclasses.replace(
        rollout,
        acted=rollout.acted & each,
        behaviour_logp=jnp.where(each, rollout.behaviour_logp, 0),
        policy_logp=jnp.where(each, rollout.policy_logp, 0),
        reward=jnp.where(one, rollout.reward, 0),
        components=jnp.where(each, rollout.components, 0),
        truncated=rollout.truncated & one,
    )


def with_reward(rollout: Rollout, reward: Float[Array, "P G"]) -> Rollout:
    """The rollout with these rewards in its own dtype, 0 at invalid answers."""
    return dataclasses.replace(rollout, reward=jnp.where(rollout.valid, reward, 0).astype(rollout.reward.dtype))


def with_component(rollout: Rollout, component: Float[Array, "P G"]) -> Rollout:
    """The rollout with one component more, as the last, 0 at invalid answers."""
    last = jnp.where(rollout.valid, component, 0).astype(rollout.components.dtype)[..., None]
    return dataclasses.replace(rollout, components=jnp.concatenate([rollout.components, last], axis=-1))


def lengths(rollout: Rollout) -> Float[Array, "P G"]:
    """Number of acted tokens, the EOS included; at least float32, since bfloat16 cannot count beyond 256."""
    dtype = jnp.promote_types(rollout.reward.dtype, jnp.float32)
    return masked.count(rollout.acted, axis=-1).astype(dtype)


def stateless(
    fn: Callable[[Rollout], Float[Array, "P G"]], *, needs: tuple[str, ...] = (), components: int = 0
) -> RewardTransform:
    """Lift `fn(rollout) -> reward` into a transform without state. `fn` sees zeros at invalid answers."""
    return RewardTransform(
        lambda: (),
        lambda rollout, state: (with_reward(rollout, fn(cleaned(rollout, components))), state),
        needs,
        components,
    )


def component(fn: Callable[[Rollout], Float[Array, "P G"]], *, needs: tuple[str, ...] = ()) -> RewardTransform:
    """Lift `fn(rollout) -> component` into a transform that appends it to the components and leaves the reward."""
    return RewardTransform(
        lambda: (),
        lambda rollout, state: (with_component(with_reward(rollout, rollout.reward), fn(cleaned(rollout))), state),
        needs,
        added=1,
    )


def identity() -> RewardTransform:
    """r ← r; invalid answers get 0."""
    return stateless(lambda rollout: rollout.reward)


def chain(*transforms: RewardTransform) -> RewardTransform:
    """Apply transforms from left to right; the state is the tuple of their states."""

    def update(rollout, state):
        states = []
        for transform, old in zip(transforms, state, strict=True):
            rollout, new = transform.update(rollout, old)
            states.append(new)
        return rollout, tuple(states)

    needed, added = 0, 0
    for transform in transforms:
        needed, added = max(needed, transform.components - added), added + transform.added
    return RewardTransform(
        lambda: tuple(t.init() for t in transforms),
        update,
        tuple(dict.fromkeys(name for t in transforms for name in t.needs)),
        needed,
        added,
    )
