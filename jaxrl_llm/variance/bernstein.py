"""What a scheme on 0/1 rewards maximises, and the reverse: scheme <-> coefficients <-> F'(p) <-> F(p).

A scheme in groups of G follows F'(p) ∇p, F' a polynomial of degree G - 1 in the pass rate p. Its coefficients d(j) in
the Bernstein basis are A+(j+1) - A-(j). They fix F; how a d(j) is split between right and wrong answers is free, and
is what a baseline does: it changes the variance alone. Own derivation.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm.advantages import AdvantageTransform
from jaxrl_llm.variance.binary import BinaryMoments, Scheme, binomial, scheme_of
from jaxrl_llm.variance.moments import Number, at_least

POINTS = 512  # pass rates over which squares are summed


def slope(coefficients: Float[Array, " G"], p: Number) -> Float[Array, "..."]:
    """F'(p) = Σ_j C(G-1, j) p^j (1-p)^(G-1-j) d(j), of the shape of p."""
    return binomial(p, len(coefficients) - 1) @ coefficients


def objective(coefficients: Float[Array, " G"], p: Number) -> Float[Array, "..."]:
    """F(p) = ∫_0^p F', exactly: a Bernstein polynomial of degree G with coefficients (1/G) Σ_{i<j} d(i), j = 0..G."""
    sums = jnp.concatenate([jnp.zeros(1, coefficients.dtype), jnp.cumsum(coefficients)])
    return binomial(p, len(coefficients)) @ (sums / len(coefficients))


def from_powers(powers: Float[Array, " K"], group_size: int) -> Float[Array, " G"]:
    """Coefficients of F'(p) = Σ_k a_k p^k: d(j) = Σ_{k<=j} a_k C(j, k)/C(G-1, k), exactly.

    Raises ValueError where the degree is above G - 1: no scheme in such groups has that F'.
    """
    n = at_least("group_size", "answers, one more than the degree", group_size, len(powers)) - 1
    rows = [[math.comb(j, k) / math.comb(n, k) for k in range(len(powers))] for j in range(n + 1)]
    return jnp.asarray(rows, powers.dtype) @ powers


def fitted(
    target: Callable[[Float[Array, " N"]], Float[Array, " N"]],
    group_size: int,
    *,
    how: str,
) -> Float[Array, " G"]:
    """Coefficients of a polynomial of degree G - 1 that is close to F' = `target`, a function of pass rates.

    "interpolate"    equal to it at the G Chebyshev points (1 - cos(π(i + 1/2)/G))/2
    "least squares"  least mean square error at the 512 rates (i + 1/2)/512
    "Bernstein"      d(j) = target(j/(G-1)): coarser; it keeps sign, monotony and convexity (Bernstein, 1912). For
                     G = 1 the target at 1/2. The target must be finite at 0 and 1, the other two never look there.

    A polynomial of degree G - 1 is its own fit by the first two; their rounding errors grow about as 2^G.
    """
    at_least("group_size", "answers", group_size, 1)
    if how == "Bernstein":
        n = group_size - 1
        return _finite(target(jnp.arange(group_size) / n if n else jnp.full(1, 0.5)))
    if how == "interpolate":
        p = (1 - jnp.cos(jnp.pi * (jnp.arange(group_size) + 0.5) / group_size)) / 2
    elif how == "least squares":
        if group_size > POINTS:
            raise ValueError(f"group_size must be at most {POINTS} answers for least squares, not {group_size}")
        p = (jnp.arange(POINTS) + 0.5) / POINTS
    else:
        raise ValueError(f"how must be 'interpolate', 'least squares' or 'Bernstein', not {how!r}")
    return jnp.linalg.lstsq(binomial(p, group_size - 1), _finite(target(p)))[0]


def split_by_constant(coefficients: Float[Array, " G"], baseline: Number) -> Scheme:
    """A+(j+1) = (1 - b) d(j), A-(j) = -b d(j): as a reward less b, times d. `baseline` is b, one number or [G]."""
    nothing = jnp.zeros(1, coefficients.dtype)
    right, wrong = (1 - baseline) * coefficients, -baseline * coefficients
    return Scheme(jnp.concatenate([nothing, right]), jnp.concatenate([wrong, nothing]))


def best_constant(coefficients: Float[Array, " G"], moments: BinaryMoments) -> Float[Array, ""]:
    """The b of `split_by_constant` that has the least variance as G grows, for F' > 0 and smooth coefficients:
    b* + (|∇p|²/F) F''(p)/F'(p), with F = E|s|² and b* of `BinaryMoments.best_constant`.

    b* alone is right where F' is flat at p: where F' rises with p, the groups that do better than p weigh more, and
    a larger b takes that difference between groups out. Own derivation.
    """
    p, n = moments.p, len(coefficients) - 1
    q = 1 - p
    fisher = p * moments.tau_plus + q * moments.tau_minus + moments.grad_p_norm2 / (p * q)
    bend = n * binomial(p, max(n - 1, 0)) @ jnp.diff(coefficients) if n else 0.0
    return moments.best_constant + moments.grad_p_norm2 / fisher * bend / slope(coefficients, p)


def least_variance_split(coefficients: Float[Array, " G"], moments: BinaryMoments) -> Scheme:
    """Of all schemes with these coefficients the one of least variance, averaged over the prompts of `moments`.

    A+(j+1) = x_j and A-(j) = x_j - d(j); the variance is a convex quadratic in x [G], so this is one linear system.
    `moments` of one prompt, or of several on a leading axis; a scheme that is fixed before the batch can suit the
    distribution of prompts, and not the pass rate of each. Raises ValueError where no split matters or is defined:
    pass rates must lie inside (0, 1) and the scores must vary.
    """
    moments = jax.tree.map(jnp.atleast_1d, moments)
    _refuse_idle(moments)
    return _least(coefficients, moments)


@jax.jit
def _least(coefficients, moments):
    nothing = jnp.zeros(1, coefficients.dtype)

    def scheme(x):
        return Scheme(jnp.concatenate([nothing, x]), jnp.concatenate([x - coefficients, nothing]))

    def variance(x):
        return jnp.mean(jax.vmap(BinaryMoments.variance, (0, None))(moments, scheme(x)))

    zero = jnp.zeros_like(coefficients)
    line, square = jax.grad(variance)(zero), jax.hessian(variance)(zero)
    size = jnp.sqrt(jnp.diagonal(square))  # rare numbers of right answers have small rows
    scaled = square / (size[:, None] * size[None, :])
    return scheme(jnp.linalg.solve(scaled, -line / size) / size)


class Curves(NamedTuple):
    """F' and F of several schemes along pass rates p [N], each [N] by the name of the scheme; and their G."""

    p: Float[Array, " N"]
    slope: dict[str, Float[Array, " N"]]
    objective: dict[str, Float[Array, " N"]]
    group_size: int


def curves(transforms: Mapping[str, AdvantageTransform], group_size: int, p: Float[Array, " N"]) -> Curves:
    """F'(p) and F(p) of each transform in groups of G; those that `scheme_of` refuses raise ValueError."""
    found = {name: scheme_of(transform, group_size).coefficients for name, transform in transforms.items()}
    return Curves(
        p=p,
        slope={name: slope(d, p) for name, d in found.items()},
        objective={name: objective(d, p) for name, d in found.items()},
        group_size=group_size,
    )


def _finite(values):
    if not bool(jnp.all(jnp.isfinite(values))):
        raise ValueError("target must be finite where it is fitted; 'interpolate' does not look at rates of 0 and 1")
    return values


def _refuse_idle(moments):
    if not bool(jnp.all((moments.p > 0) & (moments.p < 1))):
        raise ValueError("moments: p must lie inside (0, 1); at 0 and 1 every split has the same variance")
    if not bool(jnp.any(moments.tau_plus + moments.tau_minus + moments.grad_p_norm2 > 0)):
        raise ValueError("moments: one of tau_plus, tau_minus and grad_p_norm2 must be above 0")
