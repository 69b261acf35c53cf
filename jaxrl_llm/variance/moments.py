"""Closed forms of the variance: a few numbers of a prompt give that of every baseline at every group size.

"Variance" is the trace of a covariance, E|ĝ - Eĝ|², of ĝ = (1/G) Σ Aᵢ sᵢ, where s is the score ∇ log π(y) of an answer
and the G answers are drawn independently from π. Fields and results are numbers, or arrays of one shape: moments of
several prompts are the same dataclass with a leading axis, and `group_size` may then be one number for all of them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.types import pytree
from jaxrl_llm.variance.tables import OutcomeTable

Number = Any  # what jnp.asarray takes; in a dataclass, an array


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class RlooMoments:
    """Seven numbers of a prompt; with e = |s|², V = E[r] and g = E[r s]:

    value              V
    reward_variance    v = Var(r)
    fisher_trace       F = E[e]
    energy_covariance  C = Cov(r, e)
    value_variance     σ_V² = E[(r - V)² e] - |g|², of one answer whose baseline is V
    pair_variance      v F + |g|²
    gradient_norm2     |g|²
    """

    value: Number
    reward_variance: Number
    fisher_trace: Number
    energy_covariance: Number
    value_variance: Number
    pair_variance: Number
    gradient_norm2: Number

    def __post_init__(self):
        to_arrays(self)

    @classmethod
    def of(cls, table: OutcomeTable) -> "RlooMoments":
        """Exactly, of a finite policy; `energies` of the table are a proxy and are not read. Raises ValueError for a
        table that is sampled from another policy."""
        refuse_behaviour(table)
        pi, r, e, g = table.probs, table.rewards, jnp.sum(table.scores**2, axis=-1), table.gradient
        value, fisher, g2 = pi @ r, pi @ e, g @ g
        spread = pi @ (r - value) ** 2
        return cls(
            value=value,
            reward_variance=spread,
            fisher_trace=fisher,
            energy_covariance=pi @ ((r - value) * e),
            value_variance=pi @ ((r - value) ** 2 * e) - g2,
            pair_variance=spread * fisher + g2,
            gradient_norm2=g2,
        )

    @classmethod
    def from_pool(cls, rewards: Float[Array, " M"], energies: Float[Array, " M"], gradient_norm2: Number):
        """From M >= 3 independent answers and an estimate of |g|²; every field is unbiased where that is.

        The products of two means, as in v F, are averages over answers that differ (U-statistics; Hoeffding, 1948),
        and so the variances of leave-one-out and of the group mean, linear in the fields, are unbiased too. What is a
        ratio or a product of fields is a plug-in: variances of other baselines, best constant and shrinkage, break-even
        size. `energies` are |s|² of whole answers.
        """
        m = at_least("rewards", "answers", len(rewards), 3)
        value, fisher = jnp.mean(rewards), jnp.mean(energies)
        u = rewards - value
        ue, uue, uu_e = u @ energies, u**2 @ energies, jnp.sum(u**2) * m * fisher
        pairs, triples = m * (m - 1), m * (m - 1) * (m - 2)
        square = (2 * uue - uu_e) / triples  # V² F, in rewards that are measured from their mean
        return cls(
            value=value,
            reward_variance=jnp.sum(u**2) / (m - 1),
            fisher_trace=fisher,
            energy_covariance=ue / (m - 1),
            value_variance=uue / m + 2 * uue / pairs + square - gradient_norm2,
            pair_variance=(uu_e - uue) / pairs - square + gradient_norm2,
            gradient_norm2=gradient_norm2,
        )

    @classmethod
    def from_gram(cls, rewards: Float[Array, " M"], gram: Float[Array, "M M"]) -> "RlooMoments":
        """`from_pool` with energies and |g|² read off the inner products sᵢ·sⱼ of the scores."""
        return cls.from_pool(rewards, jnp.diagonal(gram), gradient_norm2(rewards, gram))

    @property
    def energy_reward(self) -> Array:
        """E[r e] = C + V F."""
        return self.energy_covariance + self.value * self.fisher_trace

    @property
    def best_constant(self) -> Array:
        """b* = E[r e]/E[e] = V + C/F, the constant of least variance (Weaver and Tao, 2001; Greensmith et al., 2004).

        V where F is 0: every constant is then as good.
        """
        return self.value + ratio(self.energy_covariance, self.fisher_trace, 0.0)

    @property
    def break_even_group_size(self) -> Array:
        """1 + (v F + |g|²)/(σ_0² - σ_V²): leave-one-out varies less than no baseline in larger groups.

        Infinite where 0 is as good a constant as V. It depends on the origin of the rewards. Own derivation.
        """
        gain = self.constant_variance(0.0, 1) - self.value_variance
        return 1 + ratio(self.pair_variance, jnp.maximum(gain, 0), jnp.inf)

    def constant_variance(self, baseline: Number, group_size: Number) -> Array:
        """σ_b²/G, σ_b² = E[(r - b)² e] - |g|² = σ_V² - 2(b - V) C + (b - V)² F; b is fixed before the draw."""
        gap = baseline - self.value
        return self.independent_variance(mse=gap**2, bias=gap, group_size=group_size)

    def independent_variance(self, *, mse: Number, bias: Number, group_size: Number) -> Array:
        """[σ_V² + E(b - V)² F - 2 E(b - V) C]/G of a random baseline that the G answers share and do not influence.

        mse = E(b - V)², bias = E(b - V). A small error is best only where C = 0; else b* is the aim. Own derivation.
        """
        at_least("group_size", "answers", group_size, 1)
        return (self.value_variance + mse * self.fisher_trace - 2 * bias * self.energy_covariance) / group_size

    def leave_one_out_variance(self, group_size: Number) -> Array:
        """σ_V²/G + (v F + |g|²)/(G(G-1)), G >= 2: the variance of a U-statistic of order 2 (Hoeffding, 1948)."""
        at_least("group_size", "answers", group_size, 2)
        return self.value_variance / group_size + self.pair_variance / (group_size * (group_size - 1))

    def group_mean_variance(self, group_size: Number) -> Array:
        """((G-1)/G)² times that of leave-one-out; beside it stands the bias, `group_mean_bias2`."""
        return ((group_size - 1) / group_size) ** 2 * self.leave_one_out_variance(group_size)

    def group_mean_bias2(self, group_size: Number) -> Array:
        """|g|²/G², as E ĝ = (1 - 1/G) g."""
        return self.gradient_norm2 / jnp.square(group_size)

    def shrunk_variance(self, factor: Number, group_size: Number) -> Array:
        """[σ_0² - 2k V E[r e] + k² D]/G of Aᵢ = rᵢ - k (mean of the others), D = V² F + (v F + |g|²)/(G-1), k fixed."""
        line, square = self._shrinkage(group_size)
        return self.constant_variance(0.0, group_size) + (factor**2 * square - 2 * factor * line) / group_size

    def best_shrinkage(self, group_size: Number) -> Array:
        """k* = V E[r e]/D; 0 where D is 0. Unbiased as long as it comes from other prompts or earlier steps."""
        return ratio(*self._shrinkage(group_size), 0.0)

    def _shrinkage(self, group_size):
        at_least("group_size", "answers", group_size, 2)
        square = self.value**2 * self.fisher_trace + self.pair_variance / (group_size - 1)
        return self.value * self.energy_reward, square


def gradient_norm2(rewards: Float[Array, " M"], gram: Float[Array, "M M"]) -> Float[Array, ""]:
    """Mean over i != j of (rᵢ - b)(rⱼ - b) sᵢ·sⱼ, b the mean of the other M - 2 >= 1 rewards: unbiased for |E[r s]|².

    b tells nothing of the answers i and j, and E[s] = 0; without it the mean is the same and the variance larger.
    May be negative.
    """
    m = at_least("rewards", "answers", len(rewards), 3)
    u = rewards - jnp.mean(rewards)
    others = -(u[:, None] + u[None, :]) / (m - 2)
    weight = (u[:, None] - others) * (u[None, :] - others) * (1 - jnp.eye(m, dtype=rewards.dtype))
    return jnp.sum(weight * gram) / (m * (m - 1))


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceSplit:
    """The variance of a batch of B prompts with G answers, (W(G) + X)/B with W = linear/G + pairs/(G(G-1)).

    linear, pairs  of the draw of the answers, means over the prompts; pairs = 0 for a baseline from outside the group
    across         X, the mean of |g_x - ḡ|² over the prompts: of the draw of the prompts
    """

    linear: Number
    pairs: Number
    across: Number

    def __post_init__(self):
        to_arrays(self)

    @classmethod
    def of(cls, tables: Sequence[OutcomeTable]) -> "VarianceSplit":
        """Leave-one-out on prompts drawn uniformly from `tables`, exactly."""
        each = [RlooMoments.of(table) for table in tables]
        g = jnp.stack([table.gradient for table in tables])
        across = jnp.mean(jnp.sum((g - jnp.mean(g, axis=0, keepdims=True)) ** 2, axis=-1))
        a, b = (jnp.mean(jnp.stack([getattr(m, name) for m in each])) for name in ("value_variance", "pair_variance"))
        return cls(linear=a, pairs=b, across=across)

    def variance(self, prompts: Number, group_size: Number, *, pool: int | None = None) -> Array:
        """(W(G) + X)/B; prompts drawn without replacement from a `pool` of P leave X (P - B)/(P - 1)."""
        share = 1 if pool is None else (pool - prompts) / max(pool - 1, 1)
        return (self._within(group_size) + share * self.across) / prompts

    def budget_variance(self, group_size: Number, *, prompt_cost: Number, answer_cost: Number) -> Array:
        """(W(G) + X)(c_p + G c_a): variance times the cost of the batch, whatever B. With costs 0 and 1 it is N tr Var
        at N = BG answers, a + b/(G-1) + G X."""
        return (self._within(group_size) + self.across) * (prompt_cost + group_size * answer_cost)

    @property
    def ideal_group_size(self) -> Array:
        """1 + sqrt(b/X), where a + b/(G-1) + G X is least; 1 without pairs, else infinite without X."""
        return 1 + jnp.sqrt(ratio(self.pairs, self.across, jnp.inf))

    def best_group_size(self, *, prompt_cost: Number, answer_cost: Number, largest: int) -> Array:
        """The whole G up to `largest`, with `budget_variance` least; from 2, or from 1 where there are no pairs."""
        at_least("largest", "answers", largest, 2)
        sizes = jnp.arange(2, largest + 1)
        costs = jax.vmap(lambda g: self.budget_variance(g, prompt_cost=prompt_cost, answer_cost=answer_cost))(sizes)
        single = (self.linear + self.across) * (prompt_cost + answer_cost)
        return jnp.where((self.pairs == 0) & (single <= jnp.min(costs)), 1, sizes[jnp.argmin(costs)])

    def _within(self, group_size):
        return self.linear / group_size + ratio(self.pairs, group_size * (group_size - 1), jnp.inf)


def to_arrays(moments) -> None:
    """The fields of a frozen dataclass of numbers as arrays of one floating type."""
    for field in dataclasses.fields(moments):
        object.__setattr__(moments, field.name, jnp.asarray(getattr(moments, field.name), float))


def refuse_behaviour(table: OutcomeTable) -> None:
    """Raise for a table that is sampled from another policy: the closed forms are those of draws from π."""
    if table.behaviour_logp is not None:
        raise ValueError("OutcomeTable: behaviour_logp must be None, the closed forms are of answers drawn from π")


def at_least(name: str, unit: str, value: Number, least: int) -> Number:
    """`value`, if it is not below; what is traced has no value yet and passes."""
    if not isinstance(value, jax.core.Tracer) and bool(jnp.any(jnp.asarray(value) < least)):
        raise ValueError(f"{name} must be at least {least} {unit}, not {value}")
    return value


def ratio(above: Number, below: Number, without: float) -> Array:
    """above/below; where `below` is 0 it is `without`, but 0 where `above` is 0 too."""
    above, below = jnp.asarray(above, float), jnp.asarray(below, float)
    divided = above / jnp.where(below == 0, 1, below)
    return jnp.where(below == 0, jnp.where(above == 0, 0, without), divided)
