"""Gradient noise scale: how many units a batch needs before its noise is as large as its signal.

A unit is a prompt with its group of answers: the answers of a group share a baseline, so that neither an answer nor a
token is independent of the others. For units xᵢ with mean g and covariance Σ₁

    signal = |g|²,   noise = tr Σ₁,   B_simple = noise / signal   [units]   (McCandlish et al., 2018)

Estimates of signal and noise are unbiased, their ratio is not: average both over steps, then divide (`over_steps`).
An estimate of the signal may be negative, and has to stay so in an average.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.variance.moments import at_least

HALVINGS = 60  # of the bracket around a quantile


class NoiseScale(NamedTuple):
    """signal: estimate of |g|², may be negative; noise: estimate of tr Σ₁, of one unit."""

    signal: Float[Array, "*S"]
    noise: Float[Array, "*S"]

    @property
    def b_simple(self) -> Float[Array, "*S"]:
        """noise/signal, in units; infinite where the signal is not above 0."""
        return _over(self.noise, self.signal)


def two_batch(
    small_square: Float[Array, "*S"], large_square: Float[Array, "*S"], *, small: int, large: int
) -> NoiseScale:
    """From mean squared norms Q_s, Q_l of gradients over b < B units, E Q_b = |g|² + tr Σ₁/b:

    signal = (B Q_l - b Q_s)/(B - b),  noise = (Q_s - Q_l)/(1/b - 1/B)   (McCandlish et al., 2018, appendix A).
    Where the small batches are the parts of the large one, and b = 1, it is `anova`.
    """
    at_least("small", "unit", small, 1)
    at_least("large", "units, more than in the small batch", large, small + 1)
    signal = (large * large_square - small * small_square) / (large - small)
    return NoiseScale(signal, (small_square - large_square) / (1 / small - 1 / large))


def anova(units: Float[Array, "P D"]) -> NoiseScale:
    """From gradients of P >= 2 units: noise = Σ|xᵢ - x̄|²/(P-1), signal = |x̄|² - noise/P."""
    p = at_least("units", "prompt groups", len(units), 2)
    mean = jnp.mean(units, axis=0)
    noise = jnp.sum((units - mean[None, :]) ** 2) / (p - 1)
    return NoiseScale(mean @ mean - noise / p, noise)


def from_gram(gram: Float[Array, "P P"]) -> NoiseScale:
    """`anova` from the inner products: signal = mean of xᵢ·xⱼ over i != j, noise = mean of |xᵢ|² - signal."""
    p = at_least("gram", "prompt groups", len(gram), 2)
    diagonal = jnp.sum(jnp.diagonal(gram))
    signal = (jnp.sum(gram) - diagonal) / (p * (p - 1))
    return NoiseScale(signal, diagonal / p - signal)


class Nested(NamedTuple):
    """Of P prompts with G independent samples each.

    within         trace variance of one sample, prompt fixed       across  trace variance of the prompts' means
    mean_variance  trace variance of the mean of the whole batch    signal  |g|²
    """

    within: Float[Array, ""]
    across: Float[Array, ""]
    mean_variance: Float[Array, ""]
    signal: Float[Array, ""]

    def unit(self, group_size: int) -> NoiseScale:
        """One prompt with G samples: noise = across + within/G."""
        return NoiseScale(self.signal, self.across + self.within / group_size)


def nested(samples: Float[Array, "P G D"]) -> Nested:
    """within = SS_w/(P(G-1)), MS_b = Σ|x̄_p - x̄|²/(P-1), across = MS_b - within/G, signal = |x̄|² - MS_b/P.

    For samples that are independent given the prompt: answers with a baseline from elsewhere. With a baseline of the
    group the group is the sample: several groups a prompt. P and G >= 2. `across` may be negative.
    """
    of_prompt = jnp.mean(samples, axis=1)
    spread = jnp.sum((samples - of_prompt[:, None, :]) ** 2)
    return _nested(spread, anova(of_prompt), *samples.shape[:2])


def nested_gram(gram: Float[Array, "P G P G"]) -> Nested:
    """`nested` from the inner products of the samples."""
    p, g = gram.shape[:2]
    squares, of_prompts = jnp.einsum("pgpg->", gram), jnp.einsum("pgqh->pq", gram) / g**2
    return _nested(squares - g * jnp.trace(of_prompts), from_gram(of_prompts), p, g)


def _nested(spread, between: NoiseScale, p, g):
    within = spread / (p * (at_least("samples", "of each prompt", g, 2) - 1))
    return Nested(within, between.noise - within / g, between.noise / p, between.signal)


class NoiseScaleInterval(NamedTuple):
    """B_simple with an interval, and what it is the ratio of. Bounds are (low, high), at one level.

    resolved  whether the interval of the signal lies above 0. If not there is a bound and no estimate: `b_simple` and
              the upper end are infinite, and the lower end is 1/(upper end of signal/noise), of the level
              (1 + level)/2 since it has one side; infinite where even that end is not above 0.
    """

    b_simple: Float[Array, ""]
    bounds: Float[Array, "2"]
    signal: Float[Array, ""]
    signal_bounds: Float[Array, "2"]
    noise: Float[Array, ""]
    resolved: Bool[Array, ""]


def over_steps(steps: NoiseScale, *, level: float) -> NoiseScaleInterval:
    """From estimates [S] of S >= 3 steps: ratio of the means, and a jackknife that leaves out a step at a time.

    The steps count as draws of one distribution: average over a stretch of training in which the policy barely moves.
    """
    s = at_least("steps", "estimates", len(steps.signal), 3)
    without = NoiseScale(*((jnp.sum(x) - x) / (s - 1) for x in steps))
    return jackknife(NoiseScale(*(jnp.mean(x) for x in steps)), without, level=level)


def over_prompts(gram: Float[Array, "P P"], *, level: float) -> NoiseScaleInterval:
    """`from_gram` of one batch of P >= 4 units, and a jackknife that leaves out a unit at a time."""
    p = at_least("gram", "prompt groups", len(gram), 4)
    norms = jnp.diagonal(gram)
    pairs = jnp.sum(gram) - jnp.sum(norms)
    signal = (pairs - 2 * (jnp.sum(gram, axis=1) - norms)) / ((p - 1) * (p - 2))
    without = NoiseScale(signal, (jnp.sum(norms) - norms) / (p - 1) - signal)
    return jackknife(from_gram(gram), without, level=level)


def jackknife(full: NoiseScale, without: NoiseScale, *, level: float) -> NoiseScaleInterval:
    """θ ± t sqrt((R-1)/R Σ(θ₋ᵢ - θ̄)²), t Student's with R - 1 degrees of freedom, θ₋ᵢ without part i (Tukey, 1958).

    θ is the signal; log B_simple where the signal is resolved; signal/noise for the bound where it is not.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie inside (0, 1), as 0.95, not {level}")
    quantile = student(level, len(without.signal) - 1)
    low, high = _ends(full.signal, without.signal, quantile)
    inside = jnp.all(without.signal > 0) & (full.signal > 0) & (full.noise > 0) & jnp.all(without.noise > 0)
    resolved = (low > 0) & inside
    log = lambda x: jnp.log(jnp.where(resolved, x.noise / jnp.where(resolved, x.signal, 1), 1))  # noqa: E731
    ends = jnp.exp(jnp.stack(_ends(log(full), log(without), quantile)))
    inverse = lambda x: x.signal / jnp.where(x.noise > 0, x.noise, 1)  # noqa: E731
    bound = _over(jnp.ones_like(low), _ends(inverse(full), inverse(without), quantile)[1])
    unknown = jnp.stack([bound, jnp.full_like(bound, jnp.inf)])
    return NoiseScaleInterval(
        b_simple=jnp.where(resolved, full.b_simple, jnp.inf),
        bounds=jnp.where(resolved, ends, unknown),
        signal=full.signal,
        signal_bounds=jnp.stack([low, high]),
        noise=full.noise,
        resolved=resolved,
    )


def progress(batch: Float[Array, "*S"], noise_scale: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """1/(1 + B_noise/B): the part of the best step's gain that a batch of B units keeps (McCandlish et al., 2018)."""
    return 1 / (1 + noise_scale / batch)


def student(level: float, freedom: int) -> Float[Array, ""]:
    """t with P(|T| <= t) = level, by bisection: P(|T| > t) = I_x(ν/2, 1/2), x = ν/(ν + t²)."""
    half = jnp.asarray(freedom / 2, float)

    def step(_, bracket):
        low, high = bracket
        x = (low + high) / 2
        outside = jax.scipy.special.betainc(half, jnp.asarray(0.5, float), x)  # grows with x
        return jnp.where(outside > 1 - level, low, x), jnp.where(outside > 1 - level, x, high)

    low, high = jax.lax.fori_loop(0, HALVINGS, step, (jnp.zeros((), float), jnp.ones((), float)))
    x = (low + high) / 2
    return jnp.sqrt(freedom * (1 - x) / x)


def _ends(value, without, quantile):
    r = len(without)
    half = quantile * jnp.sqrt((r - 1) / r * jnp.sum((without - jnp.mean(without)) ** 2))
    return value - half, value + half


def _over(above, below):
    """above/below; infinite where `below` is not above 0."""
    return jnp.where(below > 0, above / jnp.where(below > 0, below, 1), jnp.inf)
