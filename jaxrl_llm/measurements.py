"""What a learning step reads off a rollout: the extras that methods need, and metrics."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm import masked
from jaxrl_llm.losses import Objective, Tokens, k3
from jaxrl_llm.losses.tokens import masked as masked_tokens
from jaxrl_llm.policies.logp import answer_energy, answer_logp
from jaxrl_llm.types import Rollout

Gradient = Callable[[Rollout], Any]


def token_energy(learner: Any, params: Any, rollout: Rollout) -> Float[Array, "P G T"]:
    """Squared norm of each token's score in the logits."""
    return answer_energy(learner.policy, params, *_tokens(rollout))


def energy(learner: Any, params: Any, rollout: Rollout) -> Float[Array, "P G"]:
    """Sum of `token_energy` over the answer: the mean of the squared norm of its score in the logits."""
    return jnp.sum(token_energy(learner, params, rollout), axis=-1)


def entropy(learner: Any, params: Any, rollout: Rollout) -> Float[Array, "P G T"]:
    """Entropy of the distribution each token was drawn from, nats."""
    return answer_logp(learner.policy, params, *_tokens(rollout))[1]


def duration(learner: Any, params: Any, rollout: Rollout) -> Float[Array, "P G"]:
    """How long an answer took, in decoding steps."""
    return masked.count(rollout.acted, axis=-1).astype(jnp.float32)


def drift(learner: Any, params: Any, rollout: Rollout) -> Float[Array, " P"]:
    """0: how far the policy has moved on a prompt since it was last asked is not measured."""
    del learner, params
    return jnp.zeros(rollout.prompt_id.shape)


def answer_key(learner: Any, params: Any, rollout: Rollout) -> Int[Array, "P G"]:
    """Equal answers of a group have equal keys (the index of the first of them); an empty or invalid one has -1."""
    del learner, params
    here = rollout.acted & rollout.valid[..., None]
    same = (here[:, :, None] == here[:, None]) & (
        ~here[:, None] | (rollout.answer[:, :, None] == rollout.answer[:, None])
    )
    return jnp.where(jnp.any(here, axis=-1), jnp.argmax(jnp.all(same, axis=-1), axis=-1), -1)


def role(learner: Any, params: Any, rollout: Rollout) -> Int[Array, "P G"]:
    """0: all answers play the same part."""
    del learner, params
    return jnp.zeros(rollout.reward.shape, jnp.int32)


MEASURED = {
    "token_energy": token_energy,
    "energy": energy,
    "entropy": entropy,
    "duration": duration,
    "answer_key": answer_key,
    "drift": drift,
    "role": role,
}


def with_measurements(learner: Any, state: Any, reference: Any, rollout: Rollout, gradient: Gradient) -> Rollout:
    """The rollout with the extras that the method needs and nobody has given yet.

    `gradient` maps a rollout to the gradient of the objective that its rewards make.
    """
    found = dict(rollout.extras)
    if learner.companion:
        found |= learner.companion.read(state.companion, reference, rollout)
    missing = [name for name in learner.needs if name not in found]
    for name in missing:
        if name in MEASURED:
            found[name] = jax.lax.stop_gradient(MEASURED[name](learner, state.params, rollout))
        elif name != "component_influence":
            raise ValueError(f"the method reads {name!r}, which is not in Rollout.extras and cannot be measured here")
    rollout = dataclasses.replace(rollout, extras=found)
    if "component_influence" not in missing:
        return rollout
    # Last: the credit of a component may read what has been measured.
    return dataclasses.replace(rollout, extras=found | {"component_influence": component_influence(rollout, gradient)})


def component_influence(rollout: Rollout, gradient: Gradient) -> Float[Array, "K K"]:
    """⟨g_j, g_k⟩ of the gradients that the reward components would have alone."""
    alone = lambda reward: gradient(dataclasses.replace(rollout, reward=reward))  # noqa: E731
    grads = jax.lax.map(alone, jnp.moveaxis(rollout.components, -1, 0))
    flat = [x.reshape(len(x), -1).astype(jnp.float32) for x in jax.tree.leaves(grads)]
    return sum(x @ x.T for x in flat)


def _tokens(rollout: Rollout) -> tuple[Array, Array, Array, Array]:
    return rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted


def rollout_metrics(
    rollout: Rollout, shaped: Float[Array, "P G"], advantage: Float[Array, "P G T"]
) -> dict[str, Float[Array, ""]]:
    """What can be read off graded answers. Means are over valid answers; a group of one or none has no signal.

    `num_tokens` is the count of this step, and `reward/component` is one number a component [K].
    """
    valid = rollout.valid
    where = rollout.acted & valid[..., None]
    length = masked.count(rollout.acted, axis=-1).astype(jnp.float32)
    spread = masked.std(shaped, valid, axis=-1, ddof=0)
    share = valid.astype(jnp.float32)
    graded = jnp.broadcast_to(valid[..., None], rollout.components.shape)
    drawn = (
        {"answers_drawn": jnp.mean(rollout.extras["drawn"].astype(jnp.float32))} if "drawn" in rollout.extras else {}
    )
    return drawn | {
        "reward/mean": masked.mean(rollout.reward, valid),
        "reward/std": masked.std(rollout.reward, valid, ddof=1),
        "frac_reward_zero_std": jnp.mean((spread == 0).astype(jnp.float32)),
        "advantage/mean": masked.mean(advantage, where),
        "advantage/std": masked.std(advantage, where, ddof=1),
        "completions/mean_length": masked.mean(length, valid),
        "completions/min_length": jnp.min(length, where=valid, initial=rollout.answer.shape[-1]),
        "completions/max_length": jnp.max(length, where=valid, initial=0),
        "completions/clipped_ratio": masked.mean(rollout.truncated.astype(jnp.float32), valid),
        "invalid_ratio": 1 - jnp.mean(share),
        "reward/component": masked.mean(rollout.components, graded, axis=(0, 1)),
        "num_tokens": jnp.sum(rollout.extras["drawn_tokens"])
        if "drawn_tokens" in rollout.extras
        else masked.count(rollout.acted),
    }


MAXIMA = ("sampling/logp_difference_max", "sampling/weight_max")  # of what `token_sums` gives; the others are sums


def token_sums(objective: Objective, tokens: Tokens, sampled: Float[Array, "B G T"]) -> dict[str, Float[Array, ""]]:
    """Sums over the tokens of some rows. A token counts as clipped where credit has lost its gradient.

    `sampled` is what the sampler said of the tokens: `tokens.policy_logp` may have been scored again, without a gap.
    """
    tokens = masked_tokens(jax.lax.stop_gradient(tokens))
    where = tokens.where
    slope = jax.grad(lambda x: jnp.sum(objective.surrogate(dataclasses.replace(tokens, logp=x))))(tokens.logp)
    clipped = where & (slope == 0) & (tokens.advantage != 0)
    gap = jnp.where(where, tokens.logp - sampled, 0)
    weight = jnp.where(where, jnp.exp(gap), 0)
    return {
        "entropy": masked.total(tokens.entropy, where),
        "kl": masked.total(k3(tokens), where),
        "clip_ratio/low": masked.count(clipped & (tokens.logp < tokens.behaviour_logp)).astype(jnp.float32),
        "clip_ratio/high": masked.count(clipped & (tokens.logp > tokens.behaviour_logp)).astype(jnp.float32),
        "sampling/logp_difference_mean": jnp.sum(jnp.abs(gap)),
        "sampling/logp_difference_max": jnp.max(jnp.abs(gap), initial=0),
        "sampling/weight_mean": jnp.sum(weight),
        "sampling/weight_max": jnp.max(weight, initial=0),
    }


def over_epochs(metrics: dict[str, Array]) -> dict[str, Array]:
    """Means over the updates of a rollout; the sampler's gap is that of the first, before anything has moved."""
    first = {name: x[0] for name, x in metrics.items() if name.startswith("sampling/")}
    return (
        {name: jnp.mean(x, axis=0) for name, x in metrics.items()}
        | first
        | {"nonfinite/site": jnp.max(metrics["nonfinite/site"])}
    )
