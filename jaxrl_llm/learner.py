"""One jitted, donated learning step: reference, credit, then one or more updates on the whole batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import masked
from jaxrl_llm.advantages import AdvantageTransform
from jaxrl_llm.losses import Objective, k3
from jaxrl_llm.policies.logp import answer_logp
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.types import Rollout, pytree

SITES = ("reward", "log-probability", "gradient", "parameter")  # where a non-finite value can enter, in order


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that learning changes. `skipped` counts updates refused for a non-finite value, `streak` those in a row."""

    step: Int[Array, ""]
    params: Params
    moments: Any
    credit: Any
    skipped: Int[Array, ""]
    streak: Int[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """The fixed parts of a learning step. `learn` is pure; the caller compiles it."""

    policy: Policy
    advantage: AdvantageTransform
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: Callable[
        [Int[Array, ""]], Float[Array, ""] | float
    ]  # of the optimizer, by updates done; only logged
    accumulation: int = 1  # micro-batches an update is cut into; changes memory, never a number
    epochs: int = 1  # updates on each rollout

    def init(self, params: Params) -> TrainState:
        """State at step 0. `params` may be boxed with axis names: the moments then carry the same."""
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            params=params,
            moments=self.optimizer.init(params),
            credit=self.advantage.init(),
            skipped=zero,
            streak=zero,
        )

    def learn(
        self, state: TrainState, reference: Params | None, rollout: Rollout
    ) -> tuple[TrainState, dict[str, Float[Array, ""]], Float[Array, "P G"]]:
        """New state, metrics of the step, and the credit of each answer (mean over its tokens).

        Credit is given once, by the whole batch. Without a reference the metric `kl` is left out.
        """
        where = rollout.acted & rollout.valid[..., None]
        reference_logp = rollout.policy_logp
        if reference is not None:
            reference_logp, _ = answer_logp(self.policy, reference, *_tokens(rollout))
        shaped = self.objective.shaped_reward(rollout.reward, where, rollout.policy_logp, reference_logp)
        advantage, credit = self.advantage.update(shaped, state.credit, dataclasses.replace(rollout, reward=shaped))
        weights = self.objective.aggregate(where)
        batch = (rollout, where, weights, advantage, reference_logp)

        def epoch(carry, _):
            return self._update(carry, batch)

        credited = dataclasses.replace(state, credit=credit)
        moved, per_epoch = jax.lax.scan(epoch, credited, length=self.epochs)
        # A batch that was refused leaves no trace in the estimator's state either.
        kept = jax.tree.map(lambda new, old: jnp.where(moved.streak > 0, old, new), credit, state.credit)
        moved = dataclasses.replace(moved, step=state.step + 1, credit=kept)
        updates = state.step * self.epochs - state.skipped
        metrics = _over_epochs(per_epoch) | rollout_metrics(rollout, shaped, advantage)
        metrics |= {"nonfinite/skipped": moved.skipped, "nonfinite/streak": moved.streak}
        metrics |= {"learning_rate": jnp.asarray(self.learning_rate(updates))}
        if reference is None:
            del metrics["kl"]
        return moved, metrics, masked.mean(advantage, where, axis=-1)

    def _update(self, state: TrainState, batch: tuple) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step on the whole batch; state unchanged, and counted, where anything is non-finite."""
        grads, sums = self._gradient(state.params, batch)
        updates, moments = self.optimizer.update(grads, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        rollout, where = batch[0], batch[1]
        norm = optax.tree.norm(grads)
        healthy = jnp.stack(
            [
                jnp.all(jnp.isfinite(jnp.where(rollout.valid, rollout.reward, 0))),
                jnp.isfinite(sums["loss"]) & jnp.all(jnp.isfinite(jnp.where(where, rollout.behaviour_logp, 0))),
                jnp.isfinite(norm),
                _all_finite((params, moments)),
            ]
        )
        ok = jnp.all(healthy)
        params, moments = jax.tree.map(
            lambda new, old: jnp.where(ok, new, old), (params, moments), (state.params, state.moments)
        )
        bad = jnp.where(ok, 0, 1)
        state = dataclasses.replace(
            state, params=params, moments=moments, skipped=state.skipped + bad, streak=(state.streak + bad) * bad
        )
        tokens = jnp.maximum(masked.count(where), 1).astype(jnp.float32)
        means = {name: sums[name] / tokens for name in sums if name not in ("loss", "sampling/logp_difference_max")}
        site = jnp.where(ok, 0, 1 + jnp.argmin(healthy))
        return state, sums | means | {"grad_norm": norm, "nonfinite/site": site}

    def _gradient(self, params: Params, batch: tuple) -> tuple[Params, dict[str, Array]]:
        """Gradient of the loss and sums over tokens, micro-batch by micro-batch."""

        def loss(params, rows):
            rollout, where, weights, advantage, reference_logp = rows
            logp, entropy = answer_logp(self.policy, params, *_tokens(rollout))
            value = self.objective.loss(weights, logp, rollout.behaviour_logp, advantage, reference_logp, entropy)
            return value, self._token_sums(rollout, where, advantage, reference_logp, logp, entropy) | {"loss": value}

        gradient = jax.grad(loss, has_aux=True)
        if self.accumulation == 1:
            return gradient(params, batch)

        def add(total, rows):
            grads, sums = gradient(params, rows)
            biggest = jnp.maximum(total[1]["sampling/logp_difference_max"], sums["sampling/logp_difference_max"])
            total = jax.tree.map(jnp.add, total, (grads, sums))
            total[1]["sampling/logp_difference_max"] = biggest
            return total, None

        # Row i goes to micro-batch i mod A, so that rows of one device stay on it.
        rows = jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, self.accumulation, *x.shape[1:]), 0, 1), batch)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], rows))
        )
        return jax.lax.scan(add, zeros, rows)[0]

    def _token_sums(
        self,
        rollout: Rollout,
        where: Bool[Array, "B G T"],
        advantage: Float[Array, "B G T"],
        reference_logp: Float[Array, "B G T"],
        logp: Float[Array, "B G T"],
        entropy: Float[Array, "B G T"],
    ) -> dict[str, Float[Array, ""]]:
        """Sums over the tokens of these rows. A token counts as clipped where credit has lost its gradient."""
        logp, entropy = jax.lax.stop_gradient((logp, entropy))
        slope = jax.grad(lambda x: jnp.sum(self.objective.surrogate(x, rollout.behaviour_logp, advantage)))(logp)
        clipped = where & (slope == 0) & (advantage != 0)
        gap = jnp.where(where, jnp.abs(logp - rollout.policy_logp), 0)
        return {
            "entropy": masked.total(entropy, where),
            "kl": masked.total(k3(logp, reference_logp, entropy), where),
            "clip_ratio/low": masked.count(clipped & (logp < rollout.behaviour_logp)).astype(jnp.float32),
            "clip_ratio/high": masked.count(clipped & (logp > rollout.behaviour_logp)).astype(jnp.float32),
            "sampling/logp_difference_mean": jnp.sum(gap),
            "sampling/logp_difference_max": jnp.max(gap, initial=0),
        }


def _over_epochs(metrics: dict[str, Array]) -> dict[str, Array]:
    """Means over the updates of a rollout; the sampler's gap is that of the first, before anything has moved."""
    first = {name: x[0] for name, x in metrics.items() if name.startswith("sampling/")}
    return (
        {name: jnp.mean(x, axis=0) for name, x in metrics.items()}
        | first
        | {"nonfinite/site": jnp.max(metrics["nonfinite/site"])}
    )


def _all_finite(tree: Any) -> Bool[Array, ""]:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))


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
    return {
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
        "num_tokens": masked.count(rollout.acted),
    }
