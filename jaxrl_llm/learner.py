"""One jitted, donated learning step: reward, reference, credit, then one or more updates on the whole batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import masked, random
from jaxrl_llm.advantages import AdvantageTransform
from jaxrl_llm.anchors import Anchor
from jaxrl_llm.companions import Companion
from jaxrl_llm.finite import all_finite, batch_healthy, update_healthy
from jaxrl_llm.losses import Objective, Tokens
from jaxrl_llm.losses.objective import Coefficients
from jaxrl_llm.measurements import MAXIMA, over_epochs, rollout_metrics, token_sums, with_measurements
from jaxrl_llm.policies.logp import answer_logp, answer_logp_and_kl
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.rewards._base import RewardTransform, identity
from jaxrl_llm.rollouts.rescoring import Rescoring
from jaxrl_llm.types import Rollout, pytree


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Credit:
    """State of what turns rewards into credit: reward transform, advantage transform, coefficients of penalties."""

    reward: Any
    advantage: Any
    coefficients: Coefficients


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """All that learning changes. `skipped` counts updates refused for a non-finite value, `streak` those in a row.

    `anchor` is the reference policy where it moves, else (); `companion` the parameters and moments of a second
    network, where the method trains one, else ().
    """

    step: Int[Array, ""]
    params: Params
    moments: Any
    credit: Credit
    anchor: Any
    companion: Any
    skipped: Int[Array, ""]
    streak: Int[Array, ""]


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """One rollout with its credit, token by token; a micro-batch is some of its rows."""

    rollout: Rollout
    tokens: Tokens  # at the policy that sampled
    sampled: Float[Array, "B G T"]  # log-probabilities of that policy as the sampler gave them
    weights: Float[Array, "B G T"]
    prepared: tuple[Float[Array, "B G T"], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Learner:
    """The fixed parts of a learning step. `learn` is pure; the caller compiles it."""

    policy: Policy
    advantage: AdvantageTransform
    objective: Objective
    optimizer: optax.GradientTransformation
    learning_rate: Callable[[Int[Array, ""]], Float[Array, ""] | float]  # of the optimizer, by updates; only logged
    reward: RewardTransform = dataclasses.field(default_factory=identity)
    anchor: Anchor | None = None  # how the reference policy moves; None: it stays
    companion: Companion | None = None
    accumulation: int = 1  # micro-batches an update is cut into; changes memory, never a number
    epochs: int = 1  # updates on each rollout
    rescored: Rescoring | None = None  # puts log-probabilities of the learner in, one more forward pass; None: it stays
    seed: int | Int[Array, ""] = 0  # of what the objective draws; it may be traced

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of `Rollout.extras` that are read."""
        return tuple(dict.fromkeys((*self.reward.needs, *self.advantage.traits.needs)))

    def init(self, params: Params) -> TrainState:
        """State at step 0. `params` may be boxed with axis names: the moments then carry the same."""
        zero = jnp.zeros((), jnp.int32)
        return TrainState(
            step=zero,
            params=params,
            moments=self.optimizer.init(params),
            credit=Credit(
                reward=self.reward.init(), advantage=self.advantage.init(), coefficients=self.objective.coefficients()
            ),
            anchor=jax.tree.map(jnp.copy, params) if self.anchor else (),
            companion=self.companion.init(params) if self.companion else (),
            skipped=zero,
            streak=zero,
        )

    def learn(
        self, state: TrainState, reference: Params | None, rollout: Rollout
    ) -> tuple[TrainState, dict[str, Float[Array, ""]], Float[Array, "P G"]]:
        """New state, metrics of the step, and the credit of each answer (mean over its tokens).

        Credit is given once, by the whole batch. Without a reference there is no metric `kl`; an exact KL raises then.
        """
        where = rollout.acted & rollout.valid[..., None]
        sampled, rollout = rollout.policy_logp, self._rescored(state.params, reference, rollout)
        reference = state.anchor if self.anchor else reference
        if reference is None and self.objective.uses_exact_kl:
            needed = "needs a reference policy: give `learn` parameters as `reference`, or the learner an `anchor`"
            raise ValueError(f"the exact KL penalty of the objective (rao_blackwell) {needed}")
        reference_logp = rollout.policy_logp
        if reference is not None:
            reference_logp, _ = answer_logp(self.policy, reference, *_tokens(rollout))
        tokens = self._at_rollout(state, reference, rollout, reference_logp)

        def gradient(rollout):
            alone = self._prepared(state.params, reference, self._credited(state, rollout, tokens, sampled)[0])
            return self._gradient(state.params, reference, state.credit.coefficients, alone)[0]

        graded = rollout
        rollout = with_measurements(self, state, reference, rollout, gradient)
        rollout, reward_state = self.reward.update(rollout, state.credit.reward)
        batch, advantage_state = self._credited(state, rollout, tokens, sampled)
        credit = Credit(
            reward=reward_state,
            advantage=advantage_state,
            coefficients=self.objective.adapted(state.credit.coefficients, tokens),
        )

        healthy = batch_healthy(batch.rollout, batch.tokens, credit)

        def epoch(carry, _):
            return self._update(carry, reference, batch, healthy)

        moved, per_epoch = jax.lax.scan(epoch, state, length=self.epochs)
        # A batch that was refused leaves no trace in the estimator's state either.
        kept = lambda new, old: jax.tree.map(lambda n, o: jnp.where(moved.streak > 0, o, n), new, old)  # noqa: E731
        moved = dataclasses.replace(moved, step=state.step + 1, credit=kept(credit, state.credit))
        if self.anchor:
            moved = dataclasses.replace(moved, anchor=self.anchor(state.anchor, moved.params, moved.step))
        if self.companion:
            taught = self.companion.learn(state.companion, reference, rollout)
            moved = dataclasses.replace(moved, companion=kept(taught, state.companion))
        updates = state.step * self.epochs - state.skipped
        advantage = batch.tokens.advantage
        metrics = over_epochs(per_epoch) | rollout_metrics(graded, batch.rollout.reward, advantage)
        metrics |= {"nonfinite/skipped": moved.skipped, "nonfinite/streak": moved.streak}
        metrics |= {"learning_rate": jnp.asarray(self.learning_rate(updates))}
        if reference is None:
            del metrics["kl"]
        return moved, metrics, masked.mean(advantage, where, axis=-1)

    def _credited(self, state: TrainState, rollout: Rollout, tokens: Tokens, sampled: Array) -> tuple[Batch, Any]:
        """The batch with its credit, its reward less the penalties placed there; and the transform's new state."""
        shaped = self.objective.shaped_reward(rollout.reward, tokens, state.credit.coefficients)
        rollout = dataclasses.replace(rollout, reward=shaped)
        advantage, after = self.advantage.update(shaped, state.credit.advantage, rollout)
        tokens = dataclasses.replace(tokens, advantage=advantage)
        prepared = () if self.objective.moving else self.objective.prepare(tokens)
        rollout = dataclasses.replace(rollout, extras={})  # have been read, and not all of them have rows to cut
        weights = self.objective.aggregate(tokens.where)
        return Batch(rollout=rollout, tokens=tokens, sampled=sampled, weights=weights, prepared=prepared), after

    def _at_rollout(
        self, state: TrainState, reference: Params | None, rollout: Rollout, reference_logp: Float[Array, "P G T"]
    ) -> Tokens:
        """The record of the tokens at the policy that sampled, before there is credit."""
        zero = jnp.zeros_like(rollout.policy_logp)
        exact = zero
        if self.objective.uses_exact_kl:
            exact = answer_logp_and_kl(self.policy, state.params, reference, *_tokens(rollout))[2]
        key = random.stream_key(self.seed, random.Stream.SELECTION)
        return Tokens(
            where=rollout.acted & rollout.valid[..., None],
            logp=rollout.policy_logp,
            behaviour_logp=rollout.behaviour_logp,
            policy_logp=rollout.policy_logp,
            reference_logp=reference_logp,
            advantage=zero,
            entropy=zero,
            exact_kl=exact,
            noise=random.token_noise(key, state.step, rollout.prompt_id, *rollout.answer.shape[1:]),
        )

    def _update(
        self, state: TrainState, reference: Params | None, batch: Batch, before: dict[str, Array]
    ) -> tuple[TrainState, dict[str, Array]]:
        """One optimizer step on the whole batch; state unchanged, and counted, where anything is non-finite."""
        coefficients = state.credit.coefficients
        batch = self._prepared(state.params, reference, batch)
        grads, sums = self._gradient(state.params, reference, coefficients, batch)
        norm = optax.tree.norm(grads)
        healthy = update_healthy(before, sums, norm, *self._moved(grads, state.params, state.moments))
        ok = jnp.all(healthy)
        params, moments = self._written(grads, state.params, state.moments, ok)
        bad = jnp.where(ok, 0, 1)
        state = dataclasses.replace(
            state, params=params, moments=moments, skipped=state.skipped + bad, streak=(state.streak + bad) * bad
        )
        tokens = jnp.maximum(masked.count(batch.tokens.where), 1).astype(jnp.float32)
        means = {name: sums[name] / tokens for name in sums if name not in ("loss", *MAXIMA)}
        site = jnp.where(ok, 0, 1 + jnp.argmin(healthy))
        return state, sums | means | {"grad_norm": norm, "nonfinite/site": site}

    def _moved(self, grads: Params, params: Params, moments: Any) -> tuple[Params, Any]:
        """Parameters and moments after a step of the optimizer."""
        updates, moments = self.optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments

    def _written(self, grads: Params, params: Params, moments: Any, ok: Bool[Array, ""]) -> tuple[Params, Any]:
        """As `_moved` where `ok`, in the place of the old ones, so that none of them is there twice.

        For that they are made anew behind the verdict, and moments after the parameters that are made of the old ones.
        XLA keeps to this order where it sees a use (`done` is `ok`), and would join what a barrier does not part.
        """
        kept = lambda new, old, ok: jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)  # noqa: E731
        grads, ok = jax.lax.optimization_barrier((grads, ok))
        new = kept(self._moved(grads, params, moments)[0], params, ok)
        done = ok & all_finite([x[(0,) * x.ndim] for x in jax.tree.leaves(new)])
        grads, done = jax.lax.optimization_barrier((grads, done))
        return new, kept(self._moved(grads, params, moments)[1], moments, done)

    def _prepared(self, params: Params, reference: Params | None, batch: Batch) -> Batch:
        """The batch with the corrections at given parameters; those that do not move are there already."""
        if not self.objective.moving:
            return batch
        look = lambda rows: self._now(params, reference, rows)  # noqa: E731
        return dataclasses.replace(batch, prepared=self.objective.prepare(self._by_rows(look, batch)))

    def _now(self, params: Params, reference: Params | None, rows: Batch) -> Tokens:
        """The record of the rows at given parameters."""
        logp, entropy, *exact = self._scored(params, reference, rows.rollout)
        exact = exact[0] if exact else rows.tokens.exact_kl
        return dataclasses.replace(rows.tokens, logp=logp, entropy=entropy, exact_kl=exact)

    def _scored(self, params: Params, reference: Params | None, rollout: Rollout) -> tuple[Float[Array, "P G T"], ...]:
        """Log-probabilities and entropies of the tokens, and their KL where the objective reads it."""
        if self.objective.uses_exact_kl:
            return answer_logp_and_kl(self.policy, params, reference, *_tokens(rollout))
        return answer_logp(self.policy, params, *_tokens(rollout))

    def _rescored(self, params: Params, reference: Params | None, rollout: Rollout) -> Rollout:
        """The rollout with log-probabilities of the learner, micro-batch by micro-batch as the update has them."""
        if self.rescored is None:
            return rollout
        look = lambda rows: self._scored(params, reference, rows)[0]  # noqa: E731
        return self.rescored(rollout, self._by_rows(look, dataclasses.replace(rollout, extras={})))

    def _cut(self, batch: Any) -> Any:
        """Micro-batches along a new first axis. Row i goes to number i mod A, so that rows of one device stay on it."""
        return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(-1, self.accumulation, *x.shape[1:]), 0, 1), batch)

    def _by_rows(self, fn: Callable[[Any], Any], batch: Any) -> Any:
        """`fn` of each micro-batch, put together again."""
        if self.accumulation == 1:
            return fn(batch)
        parts = jax.lax.map(fn, self._cut(batch))
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)

    def _gradient(
        self, params: Params, reference: Params | None, coefficients: Coefficients, batch: Batch
    ) -> tuple[Params, dict[str, Array]]:
        """Gradient of the loss and sums over tokens, micro-batch by micro-batch."""

        def loss(params, rows):
            tokens = self._now(params, reference, rows)
            value = self.objective.loss(rows.weights, tokens, rows.prepared, coefficients)
            return value, token_sums(self.objective, tokens, rows.sampled) | {"loss": value}

        gradient = jax.grad(loss, has_aux=True)
        if self.accumulation == 1:
            return gradient(params, batch)

        def add(total, rows):
            grads, sums = gradient(params, rows)
            biggest = {name: jnp.maximum(total[1][name], sums[name]) for name in MAXIMA}
            grads, sums = jax.tree.map(jnp.add, total, (grads, sums))
            return (grads, sums | biggest), None

        rows = self._cut(batch)
        zeros = jax.tree.map(
            lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], rows))
        )
        return jax.lax.scan(add, zeros, rows)[0]


def _tokens(rollout: Rollout) -> tuple[Array, Array, Array, Array]:
    return rollout.prompt, rollout.prompt_mask, rollout.answer, rollout.acted
