"""What a rollout becomes when the learner has scored its answers again (the field `exact_logp`)."""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float

from jaxrl_llm.types import Rollout

Rescoring = Callable[[Rollout, Float[Array, "P G T"]], Rollout]


def of_the_policy(rollout: Rollout, logp: Float[Array, "P G T"]) -> Rollout:
    """Both log-probabilities move by logp - policy_logp: for a sampler that is the policy itself, but for rounding.

    What the sampling rules left out keeps its share. Without such rules the ratio to what was sampled is exactly 1.
    """
    shift = rollout.behaviour_logp - rollout.policy_logp
    return dataclasses.replace(rollout, policy_logp=logp, behaviour_logp=logp + shift)


def of_another(rollout: Rollout, logp: Float[Array, "P G T"]) -> Rollout:
    """Only `policy_logp` is replaced: a rounded copy or a server has drawn the tokens, and `behaviour_logp` stays what
    they were drawn with. To replace it would pass answers of one distribution off as those of another."""
    return dataclasses.replace(rollout, policy_logp=logp)


def rescoring(exact: bool, same: bool) -> Rescoring | None:
    """How answers are scored again; `same`: the sampler is the policy. None: they are not."""
    return (of_the_policy if same else of_another) if exact else None
