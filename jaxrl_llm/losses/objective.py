"""The independent choices of a policy-gradient objective in one value."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.losses.aggregate import Aggregate
from jaxrl_llm.losses.corrections import Correction
from jaxrl_llm.losses.penalties import Penalty
from jaxrl_llm.losses.surrogates import Surrogate
from jaxrl_llm.losses.tokens import Tokens, masked

Prepared = tuple[Float[Array, "B G T"], ...]
Coefficients = tuple[Float[Array, ""], ...]  # one a penalty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """L = -Σ w · (c · surrogate - Σ penalties in the loss),  w = aggregate(where), c the product of the corrections."""

    surrogate: Surrogate
    aggregate: Aggregate
    penalties: tuple[Penalty, ...] = ()
    corrections: tuple[Correction, ...] = ()

    @property
    def uses_reference(self) -> bool:
        """Whether a reference policy must be kept."""
        return any(p.uses_reference for p in self.penalties)

    @property
    def uses_exact_kl(self) -> bool:
        """Whether whole distributions are compared."""
        return any(p.uses_exact_kl for p in self.penalties)

    @property
    def moving(self) -> bool:
        """Whether `prepare` must see the current policy before every update."""
        weights = (*self.corrections, *(p.weight for p in self.penalties if p.weight))
        return any(w.moving for w in weights)

    def coefficients(self) -> Coefficients:
        """Coefficients of the penalties at the start, in the default float type."""
        return tuple(jnp.asarray(p.coefficient, jnp.result_type(float)) for p in self.penalties)

    def prepare(self, tokens: Tokens) -> Prepared:
        """Detached coefficients from the whole batch: of the surrogate, then of each penalty. 1 where there is none."""
        tokens = masked(jax.lax.stop_gradient(tokens))
        one = jnp.ones_like(tokens.advantage)
        correction = one
        for each in self.corrections:
            correction = correction * each.weight(tokens)
        rest = tuple(p.weight.weight(tokens) if p.weight else one for p in self.penalties)
        return jax.lax.stop_gradient((correction, *rest))

    def loss(
        self,
        weights: Float[Array, "B G T"],
        tokens: Tokens,
        prepared: Prepared | None = None,
        coefficients: Coefficients | None = None,
    ) -> Float[Array, ""]:
        """The part of the loss that these rows of the batch contribute; the parts of all rows add up to the loss.

        `prepared` is `prepare` of the whole batch, cut like the rows; without it the rows are the whole batch. Where
        `tokens.where` is False the fields may hold anything, NaN included.
        """
        tokens = masked(tokens)
        correction, *shares = self.prepare(tokens) if prepared is None else prepared
        coefficients = self.coefficients() if coefficients is None else coefficients
        value = correction * self.surrogate(tokens)
        for i, penalty in enumerate(self.penalties):
            if penalty.placement == "loss":
                value = value - coefficients[i].astype(value.dtype) * shares[i] * penalty.cost(tokens)
        return -jnp.sum(jnp.where(tokens.where, weights * value, 0))

    def shaped_reward(
        self, reward: Float[Array, "P G"], tokens: Tokens, coefficients: Coefficients | None = None
    ) -> Float[Array, "P G"]:
        """The reward less the penalties that are placed in it, summed over the tokens of each answer."""
        tokens = masked(tokens)
        coefficients = self.coefficients() if coefficients is None else coefficients
        for i, penalty in enumerate(self.penalties):
            if penalty.placement == "reward":
                cost = jnp.where(tokens.where, penalty.cost(tokens), 0)
                reward = reward - coefficients[i].astype(reward.dtype) * jnp.sum(cost, axis=-1)
        return reward

    def adapted(self, coefficients: Coefficients, tokens: Tokens) -> Coefficients:
        """Coefficients of the next step, from the mean cost of a token in this one."""
        tokens = masked(tokens)
        count = jnp.maximum(jnp.sum(tokens.where), 1).astype(jnp.result_type(float))
        answers = jnp.sum(jnp.any(tokens.where, axis=-1)).astype(jnp.result_type(float))
        mean = lambda penalty: jnp.sum(jnp.where(tokens.where, penalty.cost(tokens), 0)) / count  # noqa: E731
        return tuple(
            penalty.adapt(old, mean(penalty), answers).astype(old.dtype) if penalty.adapt else old
            for old, penalty in zip(coefficients, self.penalties, strict=True)
        )
