"""Inner products of scores: all that a gradient estimate needs, whatever its baseline, normaliser or subset."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxrl_llm.losses.tokens import Tokens
from jaxrl_llm.random import named_key
from jaxrl_llm.types import Rollout, pytree
from jaxrl_llm.variance.credit import Estimator, picked, segment_means
from jaxrl_llm.variance.exact import GradientMoments
from jaxrl_llm.variance.units import Measured, Products, measured, unit_weights

RESAMPLES = 2000  # bootstrap replicates behind the intervals of `pool_moments`


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreGram:
    """<s, s'> of all pairs of scores, of P prompts x M answers x S segments of an answer.

    A score is the gradient of the summed log-probabilities of a segment's tokens. An estimate is ĝ = Σ c s, so
    |ĝ|² = cᵀKc and <ĝ, ĝ'> = cᵀKc' for any coefficients [P M S].
    """

    inner: Float[Array, "P M S P M S"]

    @property
    def sizes(self) -> tuple[int, int, int]:
        """P, M, S."""
        return self.inner.shape[:3]

    @property
    def matrix(self) -> Float[Array, "N N"]:
        """[N N], N = PMS, rows in the order prompt, answer, segment."""
        count = self.inner.shape[0] * self.inner.shape[1] * self.inner.shape[2]
        return self.inner.reshape(count, count)

    @property
    def energies(self) -> Float[Array, "P M"]:
        """|s|² of whole answers."""
        return jnp.einsum("pmapmb->pm", self.inner)

    def products(self, first: Float[Array, "A P M S"], second: Float[Array, "B P M S"]) -> Float[Array, "A B"]:
        """<Σ a s, Σ b s>."""
        return first.reshape(len(first), -1) @ self.matrix @ second.reshape(len(second), -1).T

    def squares(self, coefficients: Float[Array, "A P M S"]) -> Float[Array, " A"]:
        """|Σ a s|²."""
        rows = coefficients.reshape(len(coefficients), -1)
        return jnp.sum(rows @ self.matrix * rows, axis=-1)

    def prompt_blocks(self, coefficients: Float[Array, "P M S"]) -> Float[Array, "P P"]:
        """<ĝ_x, ĝ_z> of the parts that single prompts give to an estimate."""
        return jnp.einsum("pma,pmaqnb,qnb->pq", coefficients, self.inner, coefficients)

    def centred(self) -> "ScoreGram":
        """Scores less their mean over the answers of the prompt, segment by segment: a pool of answers, taken as a
        policy, then has scores of mean 0, as a policy must."""
        half = self.inner - jnp.mean(self.inner, axis=1, keepdims=True)
        return ScoreGram(inner=half - jnp.mean(half, axis=4, keepdims=True))

    def subset(self, prompts: Int[Array, " B"], answers: Int[Array, " H"]) -> "ScoreGram":
        """The given answers of the given prompts."""
        half = self.inner[prompts[:, None], answers[None, :]]
        return ScoreGram(inner=half[:, :, :, prompts[:, None], answers[None, :]])


def gram_of(rows: Float[Array, "P M S D"]) -> ScoreGram:
    """The inner products of scores, or of sketches of scores, that are written out."""
    return ScoreGram(inner=jnp.einsum("pmad,qnbd->pmaqnb", rows, rows, precision=jax.lax.Precision.HIGHEST))


def pool_moments(
    gram: ScoreGram,
    estimator: Estimator,
    rollout: Rollout,
    group_size: int,
    *,
    key: Key[Array, ""],
    replicates: int = 1000,
    level: float = 0.95,
    tokens: Tokens | None = None,
) -> GradientMoments:
    """Moments of the estimate on a batch of all P prompts, G answers each drawn from the prompt's M with replacement.

    The pool stands in for the policy: M answers of equal probability, scores centred by prompt, so that the true
    gradient is that of the pool, 1/(PM) Σ r s, and known. The prompts stay the same: the spread is the part that comes
    from sampling answers. Equal keys draw equal groups, so estimators are compared on the same draws. `tokens` is
    needed where the estimator has an objective. Raises ValueError for groups below the estimator's minimum.

    Figures and intervals as in `units`, a replicate being a unit; the pool is given, so they say nothing of how well it
    stands in for the policy.
    """
    options = {"key": key, "replicates": replicates, "level": level, "tokens": tokens}
    return pool_measured(gram, estimator, rollout, group_size, **options).moments()


def pool_measured(
    gram: ScoreGram,
    estimator: Estimator,
    rollout: Rollout,
    group_size: int,
    *,
    key: Key[Array, ""],
    replicates: int = 1000,
    level: float = 0.95,
    tokens: Tokens | None = None,
) -> Measured:
    """`pool_moments` with what it is made of, replicate by replicate."""
    traits = estimator.advantage.traits
    if group_size < traits.minimum_group:
        raise ValueError(f"the estimator needs groups of {traits.minimum_group} answers, not {group_size}")
    if len(rollout.reward) < traits.least_batch:
        raise ValueError(f"the estimator compares prompts and needs {traits.least_batch}, not {len(rollout.reward)}")
    p, m, _ = gram.sizes
    draws = jax.random.randint(named_key(key, "draws"), (replicates, p, group_size), 0, m)
    products = _replicated(estimator.advantage, estimator.objective, estimator.state, gram, rollout, tokens, draws)
    weights = unit_weights(named_key(key, "weights"), RESAMPLES, replicates, gram.inner.dtype)
    return measured(products, weights, level)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _replicated(advantage, objective, state, gram: ScoreGram, rollout: Rollout, tokens, draws) -> Products:
    """The replicates as units, the pool's gradient in the place of a reference."""
    p, m, segments = gram.sizes

    def one(answer):
        batch = picked(rollout, tokens, jnp.arange(p), answer)
        credit = Estimator(advantage, objective, state).coefficients(*batch)
        means, _ = segment_means(credit, batch[0].acted, segments)
        return jnp.einsum("pgs,pgm->pms", means, jax.nn.one_hot(answer, m, dtype=means.dtype))

    estimates = jax.vmap(one)(draws)
    pool = gram.centred()
    target = jnp.broadcast_to(rollout.reward[None, :, :, None] / rollout.reward.size, (1, p, m, segments))
    gap = estimates - target
    along = pool.products(estimates, target)
    every = jnp.ones((len(draws), len(draws)), along.dtype)
    return Products(
        square=pool.squares(estimates),
        pairs=jnp.full(len(draws), jnp.nan, along.dtype),
        mean=pool.products(estimates, estimates),
        along=along * every,
        signal=pool.products(target, target) * every,
        gap=pool.products(gap, gap),
    )
