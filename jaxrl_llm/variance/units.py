"""Figures of a gradient estimate ĝ from inner products between independent units, and their bootstrap intervals.

A unit is one independent draw of the estimate: a batch with its own prompts and answers. For units u, with ĝ_u the
estimate and h_u an unbiased estimate of the true gradient g from the same data,

    E|ĝ|² = mean_u |ĝ_u|²        |Eĝ|² = mean_{u≠v} <ĝ_u, ĝ_v>
    <Eĝ, g> = mean_{u≠v} <ĝ_u, h_v>    |g|² = mean_{u≠v} <h_u, h_v>

are U-statistics, unbiased for the policy that was sampled. Pairs of a unit with itself share their noise and stay out.
Estimates of squares may be negative; they are kept inside sums, and a figure that needs their root or quotient is NaN
where they do not stand clear of 0 (own derivation; U-statistics: Hoeffding, 1948).
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxrl_llm.variance.exact import GradientMoments

LEAST_UNITS = 8  # for an interval
FIGURES = ("trace_var", "bias_norm", "mse", "cos", "scale", "snr", "mse_rescaled", "useful_snr")
RANGES = {"bias_norm": (0.0, jnp.inf), "cos": (-1.0, 1.0), "mse_rescaled": (0.0, jnp.inf), "snr": (0.0, jnp.inf)}
RANGES |= {"useful_snr": (0.0, jnp.inf), "scale": (-jnp.inf, jnp.inf)}


class Products(NamedTuple):
    """Inner products of U units; R groups of answers may have been scored in each, their mean is ĝ_u in `mean`.

    square  [U]    mean of |ĝ|² over the groups of a unit
    pairs   [U]    mean of <ĝ, ĝ'> over pairs of different groups of a unit; NaN with one group a unit
    mean    [U U]  <ĝ_u, ĝ_v>
    along   [U U]  <ĝ_u, h_v>
    signal  [U U]  <h_u, h_v>
    gap     [U U]  <ĝ_u - h_u, ĝ_v - h_v>, of the differences themselves: 0 for an estimate that is h

    The diagonals of the matrices are not read.
    """

    square: Float[Array, " U"]
    pairs: Float[Array, " U"]
    mean: Float[Array, "U U"]
    along: Float[Array, "U U"]
    signal: Float[Array, "U U"]
    gap: Float[Array, "U U"]


class Averages(NamedTuple):
    """E|ĝ|², E<ĝ, ĝ'> within a unit, |Eĝ|², <Eĝ, g>, |g|² and |Eĝ - g|²: one number, or one a replicate."""

    square: Float[Array, "*R"]
    pairs: Float[Array, "*R"]
    mean: Float[Array, "*R"]
    along: Float[Array, "*R"]
    signal: Float[Array, "*R"]
    gap: Float[Array, "*R"]


def averages(products: Products, weights: Float[Array, "*R U"]) -> Averages:
    """U-statistics with weight w_u on a unit and w_u w_v on a pair of different units."""
    total = jnp.sum(weights, axis=-1)
    pairs = total**2 - jnp.sum(weights**2, axis=-1)
    of_units = lambda x: weights @ x / total  # noqa: E731

    def of_pairs(x):
        apart = jnp.where(jnp.eye(len(x), dtype=bool), 0, x)
        return jnp.sum(weights @ apart * weights, axis=-1) / pairs

    return Averages(
        of_units(products.square),
        of_units(products.pairs),
        of_pairs(products.mean),
        of_pairs(products.along),
        of_pairs(products.signal),
        of_pairs(products.gap),
    )


def figures(a: Averages) -> dict[str, Float[Array, "*R"]]:
    """The fields of `GradientMoments`, and beside them the squares that they are made of.

    bias_square = |Eĝ - g|², within = E|ĝ|² - E<ĝ,ĝ'> (answers drawn again for the same prompts), across =
    E<ĝ,ĝ'> - |Eĝ|² (prompts drawn again); trace_var = within + across. Quotients by an estimate that is not above 0
    are NaN; roots too.
    """
    trace, bias, scale = a.square - a.mean, a.gap, _over(a.along, a.signal)
    return {
        "trace_var": trace,
        "bias_norm": _root(bias),
        "mse": bias + trace,
        "cos": _over(a.along, _root(a.mean) * _root(a.signal)),
        "scale": scale,
        "snr": _over(a.mean, trace),
        "mse_rescaled": a.square / _nonzero(scale) ** 2 - a.signal,
        "useful_snr": _over(a.along * scale, trace),
        "bias_square": bias,
        "mean_square": a.mean,
        "along": a.along,
        "signal": a.signal,
        "within": a.square - a.pairs,
        "across": a.pairs - a.mean,
    }


def _nonzero(x):
    return jnp.where(x != 0, x, jnp.nan)


def _over(x, y):
    return jnp.where(y > 0, x / jnp.where(y > 0, y, 1), jnp.nan)


def _root(x):
    return jnp.where(x >= 0, jnp.sqrt(jnp.where(x >= 0, x, 0)), jnp.nan)


def unit_weights(key: Key[Array, ""], replicates: int, units: int, dtype=jnp.float32) -> Float[Array, "R U"]:
    """Weights of the Bayesian bootstrap, standard exponential (Rubin, 1981): the same for all estimators, so that
    their figures are compared on the same replicates."""
    return jax.random.exponential(key, (replicates, units), dtype)


def intervals(
    replicates: Mapping[str, Float[Array, " R"]], level: float
) -> dict[str, tuple[Float[Array, ""], Float[Array, ""]]]:
    """Percentiles of the replicates at (1 ± level)/2, within the range that a figure can have.

    What the signal does not resolve has its whole range as interval: with an interval of |g|² that holds 0, `scale`,
    `cos`, `mse_rescaled` and `useful_snr`; `cos` also where that of |Eĝ|² does, and `mse_rescaled` where that of
    <Eĝ, g> does. The interval of `bias_norm` is the root of that of the square, from 0 on.

    Where the mean of ĝ is nearly 0 beside its noise the replicates of squares are wider than they need be, by a factor
    up to √3: intervals of `bias_norm`, `cos` and `snr` hold the truth more often than the level says, not less.
    """
    tails = jnp.asarray([(1 - level) / 2, (1 + level) / 2])
    bounds = {name: tuple(jnp.nanquantile(x, tails)) for name, x in replicates.items()}
    low, high = bounds["bias_square"]
    bounds["bias_norm"] = (jnp.sqrt(jnp.maximum(low, 0)), jnp.sqrt(jnp.maximum(high, 0)))
    trace = replicates["trace_var"]
    bounds["snr"] = tuple(jnp.nanquantile(replicates["mean_square"] / _nonzero(trace), tails))
    seen = bounds["signal"][0] > 0
    one_side = bounds["along"][0] * bounds["along"][1] > 0
    resolved = {"scale": seen, "useful_snr": seen}
    resolved |= {"cos": seen & (bounds["mean_square"][0] > 0), "mse_rescaled": seen & one_side}
    for name, (least, most) in RANGES.items():
        sure = resolved.get(name, jnp.asarray(True))
        low, high = bounds[name]
        bounds[name] = (
            jnp.where(sure, jnp.clip(low, least, most), least),
            jnp.where(sure, jnp.clip(high, least, most), most),
        )
    return bounds


def measured(products: Products, weights: Float[Array, "R U"], level: float) -> "Measured":
    """Figures of the units as they are, and of every replicate. Refuses fewer than 8 units."""
    if len(products.square) < LEAST_UNITS:
        raise ValueError(
            f"an interval needs at least {LEAST_UNITS} units, not {len(products.square)}: "
            "give more prompts, or fewer prompts a unit"
        )
    return _measured(products, weights, level)


class Measured(NamedTuple):
    """Names as in `figures`: the estimate, the replicates [R] and the interval of each."""

    value: dict
    replicates: dict
    bounds: dict

    def moments(self) -> GradientMoments:
        """The dataclass of exact moments, measured. A figure whose interval is its whole range is NaN."""
        value = {name: float(self.value[name]) for name in FIGURES}
        bounds = {name: (float(self.bounds[name][0]), float(self.bounds[name][1])) for name in FIGURES}
        for name in ("cos", "scale", "mse_rescaled", "useful_snr"):
            if bounds[name] == tuple(map(float, RANGES[name])):
                value[name] = float("nan")
        value["snr"] = value["snr"] if value["snr"] >= 0 else float("nan")
        return GradientMoments(**value, mean_grad=None, intervals=bounds)


@functools.partial(jax.jit, static_argnums=2)
def _measured(products, weights, level):
    value = figures(averages(products, jnp.ones_like(weights[0])))
    replicates = figures(averages(products, weights))
    return Measured(value, replicates, intervals(replicates, level))
