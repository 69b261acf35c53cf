"""The algebra of credit: pure transforms of rewards, composed as optax composes transforms of gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxrl_llm.types import Rollout

State = Any
Update = Callable[[Float[Array, "P G"], State, Rollout], tuple[Float[Array, "..."], State]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traits:
    """What is claimed of an estimator; tests check every field by enumeration or by law, so a false trait fails.

    unbiased       "yes"; "scaled": the exact gradient times a known `scale`; "no": its direction is another one
    scale          (P, G) -> that factor
    uses_self      the credit of an answer depends on its own reward in a nonlinear or baseline-coupled way
    minimum_group  smallest G that gives a signal at all
    minimum_prompts  smallest P for which the estimate exists
    batch_wide     the credit of a prompt's answers depends on the other prompts of the batch
    needs_iid      its claim on the bias holds only for answers drawn independently of each other
    domain         rewards it is defined for: "any", "unit" for [0, 1], "binary" for 0 and 1
    centred        a group whose rewards are all equal gets exactly 0
    keeps_zero     a credit of 0 stays 0, so a centred link before it in a chain stays centred
    needs          names of `Rollout.extras` that it reads
    f_prime        (p, G) -> expected weight on the gradient of the pass rate p, for 0/1 rewards, where it is known
    """

    unbiased: Literal["yes", "scaled", "no"]
    scale: Callable[[int, int], float] | None = None
    uses_self: bool = False
    minimum_group: int = 1
    minimum_prompts: int = 1
    batch_wide: bool = False
    needs_iid: bool = False
    domain: Literal["any", "unit", "binary"] = "any"
    centred: bool = False
    keeps_zero: bool = True
    needs: tuple[str, ...] = ()
    f_prime: Callable[[float, int], float] | None = None

    @property
    def least_batch(self) -> int:
        """Smallest number of prompts on which it is what it is in training."""
        return max(self.minimum_prompts, 2) if self.batch_wide else self.minimum_prompts


class AdvantageTransform(NamedTuple):
    """`init() -> state` and `update(advantage, state, rollout) -> (advantage, state)`, both pure.

    The first transform of a chain receives the rewards [P G]. Invalid answers get 0 and influence nothing.
    """

    init: Callable[[], State]
    update: Update
    traits: Traits


def stateless(fn: Callable[[Float[Array, "P G"], Rollout], Float[Array, "..."]], traits: Traits) -> AdvantageTransform:
    """Lift `fn(advantage, rollout) -> advantage` into a transform without state."""
    return AdvantageTransform(lambda: (), lambda advantage, state, rollout: (fn(advantage, rollout), state), traits)


def chain(*transforms: AdvantageTransform) -> AdvantageTransform:
    """Apply transforms from left to right; the state is the tuple of their states."""

    def update(advantage, state, rollout):
        states = []
        for transform, old in zip(transforms, state, strict=True):
            advantage, new = transform.update(advantage, old, rollout)
            states.append(new)
        return advantage, tuple(states)

    return AdvantageTransform(
        lambda: tuple(t.init() for t in transforms), update, _chained([t.traits for t in transforms])
    )


def _chained(traits: list[Traits]) -> Traits:
    """Claims that survive composition: the worst of each, and no closed form beyond a single link.

    Two links that both compare answers leave no claim on the bias, that is "no": the second sees credits that are no
    longer independent. Only the first link sees rewards as they were given.
    """
    if len(traits) == 1:
        return traits[0]
    only_scaled = [t for t in traits if t.unbiased != "yes"]
    comparing = [t for t in traits if t.minimum_group > 1 or t.needs_iid or t.uses_self]
    unclaimed = any(t.unbiased == "no" for t in traits) or len(only_scaled) > 1 or len(comparing) > 1
    unbiased = "no" if unclaimed else "scaled" if only_scaled else "yes"
    return Traits(
        unbiased=unbiased,
        scale=only_scaled[0].scale if unbiased == "scaled" else None,
        uses_self=any(t.uses_self for t in traits),
        minimum_group=max(t.minimum_group for t in traits),
        minimum_prompts=max(t.minimum_prompts for t in traits),
        batch_wide=any(t.batch_wide for t in traits),
        needs_iid=any(t.needs_iid for t in traits),
        domain=max((t.domain for t in traits), key=("any", "unit", "binary").index),
        centred=traits[0].centred and all(t.keeps_zero for t in traits[1:]),
        keeps_zero=all(t.keeps_zero for t in traits),
        needs=tuple(dict.fromkeys(name for t in traits for name in t.needs)),
    )


def per_token(transform: AdvantageTransform) -> AdvantageTransform:
    """Give every acted token the credit of its answer: [P G] -> [P G T]."""
    return _lifted(transform, lambda acted: acted)


def at_end(transform: AdvantageTransform) -> AdvantageTransform:
    """Give the last acted token the credit of its answer, the others 0: a reward paid at the end, [P G] -> [P G T].

    What follows in a chain spreads it over the answer: `chain(at_end(group_mean()), reward_to_go(discount=0.99))`.
    """
    last = lambda acted: acted & (jnp.cumsum(acted[..., ::-1], axis=-1)[..., ::-1] == 1)  # noqa: E731
    return _lifted(transform, last)


def _lifted(transform: AdvantageTransform, tokens: Callable[[Bool[Array, "P G T"]], Bool[Array, "P G T"]]):
    """The only place where [P G] becomes [P G T]."""

    def update(advantage, state, rollout):
        advantage, state = transform.update(advantage, state, rollout)
        where = tokens(rollout.acted) & rollout.valid[..., None]
        return jnp.where(where, advantage[..., None], 0), state

    return AdvantageTransform(transform.init, update, transform.traits)


def apply(
    transform: AdvantageTransform,
    reward: Float[Array, "P G"],
    valid: Bool[Array, "P G"] | None = None,
    acted: Bool[Array, "P G T"] | None = None,
    **extras: Shaped[Array, "..."],
) -> Float[Array, "..."]:
    """One-shot use on bare rewards, with a fresh state: `apply(leave_one_out(), reward)`."""
    return transform.update(reward, transform.init(), bare_rollout(reward, valid, acted, **extras))[0]


def bare_rollout(
    reward: Float[Array, "P G"],
    valid: Bool[Array, "P G"] | None = None,
    acted: Bool[Array, "P G T"] | None = None,
    **extras: Shaped[Array, "..."],
) -> Rollout:
    """A rollout around given rewards, for notebooks and tests; answers of one token where `acted` is not given."""
    p, g = reward.shape
    acted = jnp.ones((p, g, 1), bool) if acted is None else acted
    answer = acted.shape
    return Rollout(
        prompt=jnp.zeros((p, 1), jnp.int32),
        prompt_mask=jnp.ones((p, 1), bool),
        answer=jnp.zeros(answer, jnp.int32),
        acted=acted,
        behaviour_logp=jnp.zeros(answer),
        policy_logp=jnp.zeros(answer),
        reward=reward,
        components=reward[..., None],
        valid=jnp.ones((p, g), bool) if valid is None else valid,
        truncated=jnp.zeros((p, g), bool),
        prompt_id=jnp.arange(p),
        version=jnp.zeros((p, g), jnp.int32),
        extras=extras,
    )
