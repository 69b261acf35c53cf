"""Pass rates, ranks and batch statistics that several estimators share."""

import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.special import betaln, xlog1py, xlogy
from jaxtyping import Array, Bool, Float, Int

from jaxrl_llm import masked

Guard = Literal["deviation", "variance", "floor"]


def weight_on_pass_rate(
    right: Callable[[int, int], float], wrong: Callable[[int, int], float]
) -> Callable[[float, int], float]:
    """F'(p, G) = Σⱼ C(G-1, j) pʲ (1-p)^(G-1-j) · (right(j+1, G) - wrong(j, G)), for 0/1 rewards.

    `right(c, G)` and `wrong(c, G)` are the credits of a right and of a wrong answer in a group with c right ones: seen
    from one answer, the other G-1 hold j right ones. It is a polynomial in p, so p = 0 and p = 1 need no care.
    """

    def f_prime(p: float, g: int) -> float:
        chance = lambda j: math.comb(g - 1, j) * p**j * (1 - p) ** (g - 1 - j)  # noqa: E731
        return float(sum(chance(j) * (right(j + 1, g) - wrong(j, g)) for j in range(g)))

    return f_prime


def pass_rate(reward: Float[Array, "P G"], valid: Bool[Array, "P G"]) -> Float[Array, "P 1"]:
    """p: the mean reward of the prompt's valid answers; 0 without any."""
    return masked.mean(reward, valid, axis=-1, keepdims=True)


def in_units_of_the_largest(
    reward: Float[Array, "P G"], valid: Bool[Array, "P G"]
) -> tuple[Float[Array, "P G"], Float[Array, "P 1"]]:
    """(r / u, u), u = max |r| of the prompt's valid answers (1 where that is 0). Off the mask r / u is 0.

    What does not depend on the unit of r keeps its value and its gradient, and no longer divides by tiny means.
    """
    known = jnp.where(valid, reward, 0)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(known), axis=-1, keepdims=True))
    unit = jnp.where(largest > 0, largest, 1)
    return known / unit, unit


def inverse_density(
    p: Float[Array, "P 1"],
    alpha: Float[Array, ""] | float | int,
    beta: Float[Array, ""] | float | int,
    maximum: float | int,
) -> Float[Array, "P 1"]:
    """min(1 / Beta(p; α, β), maximum); 1 where p <= 0 or p >= 1."""
    alpha, beta = 1.0 * alpha, 1.0 * beta
    inside = (p > 0) & (p < 1)
    safe = jnp.where(inside, p, 0.5)
    log_weight = betaln(alpha, beta) - xlogy(alpha - 1, safe) - xlog1py(beta - 1, -safe)
    return jnp.where(inside, jnp.exp(jnp.minimum(log_weight, math.log(maximum))), 1)


def inverse_density_at(p: float, alpha: float | int, beta: float | int, maximum: float | int) -> float:
    """`inverse_density` of one number, for closed forms."""
    if not 0 < p < 1:
        return 1.0
    log_weight = math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta)
    log_weight -= (alpha - 1) * math.log(p) + (beta - 1) * math.log1p(-p)
    return math.exp(min(log_weight, math.log(maximum)))


def inverse_fitted_density(
    reward: Float[Array, "P G"], valid: Bool[Array, "P G"], maximum: float | int
) -> Float[Array, "P 1"]:
    """min(1 / Beta(p; α, β), maximum) with α, β by the moments of p over the prompts that have a valid answer.

    α = max(1 + km/3, 1), β = max(1 + k(1-m)/3, 1), k = m(1-m)/v - 1, v with ddof 1; k = 0 where v <= 1e-6 m(1-m).
    """
    present = jnp.any(valid, axis=-1, keepdims=True)
    p = pass_rate(reward, valid)
    m, v = masked.mean(p, present), masked.variance(p, present, ddof=1)
    apart = v > 1e-6 * jnp.maximum(m * (1 - m), 0)
    k = jnp.where(apart, m * (1 - m) / jnp.where(apart, v, 1) - 1, 0)
    return inverse_density(p, jnp.maximum(1 + k * m / 3, 1), jnp.maximum(1 + k * (1 - m) / 3, 1), maximum)


def lead_of_the_best(reward: Float[Array, "P G"], valid: Bool[Array, "P G"]) -> Float[Array, "P G"]:
    """r₁ - r₂ at the prompt's best answer, 0 at the others; 0 where two share the best place or one answer is valid."""
    known = jnp.where(valid, reward, -jnp.inf)
    best = jnp.max(known, axis=-1, keepdims=True, initial=-jnp.inf)
    top = valid & (known == best)
    behind = valid & ~top
    alone = (masked.count(top, -1, keepdims=True) == 1) & jnp.any(behind, axis=-1, keepdims=True)
    second = jnp.max(jnp.where(behind, reward, -jnp.inf), axis=-1, keepdims=True, initial=-jnp.inf)
    return jnp.where(top & alone, jnp.where(valid, reward, 0) - jnp.where(alone, second, 0), 0)


def z_scores(
    x: Float[Array, "P G"], valid: Bool[Array, "P G"], *, ddof: int, eps: float | int, guard: Guard
) -> Float[Array, "P G"]:
    """(x - mean) / deviation over all valid answers of the batch, 0 off the mask and where the variance is 0.

    `guard` says where eps goes: "deviation" σ + eps, "variance" √(σ² + eps), "floor" √max(σ², eps).
    """
    mean, v = masked.mean(x, valid), masked.variance(x, valid, ddof=ddof)
    safe = jnp.where(v > 0, v, 1)
    inside = {"deviation": safe, "variance": safe + eps, "floor": jnp.maximum(safe, eps)}[guard]
    deviation = jnp.sqrt(inside) + (eps if guard == "deviation" else 0)
    return jnp.where(valid & (v > 0), (jnp.where(valid, x, 0) - mean) / deviation, 0)


def share_of_subsets(
    n: Int[Array, "P 1"], width: int, k: int
) -> tuple[Float[Array, "P width"], Float[Array, "P width"]]:
    """Of the C(n-1, k-1) sets of k that hold a given one of n answers, sorted upwards: what share has which best?

    First [P G]: of the sets with answer i = 1..G, those where i itself is the best, C(i-1, k-1) / C(n-1, k-1). Second:
    of the sets with a lower answer, those where j = 1..G is the best, C(j-2, k-2) / C(n-1, k-1). 0 where j > n.
    """
    place = jnp.arange(1, width + 1)[None]
    own = jnp.ones((n.shape[0], width))
    above = jnp.full((n.shape[0], width), 1.0 if k > 1 else 0.0) * (k - 1) / jnp.maximum(n - 1, 1)
    for taken in range(k - 1):
        own = own * jnp.maximum(place - 1 - taken, 0) / jnp.maximum(n - 1 - taken, 1)
    for taken in range(k - 2):
        above = above * jnp.maximum(place - 2 - taken, 0) / jnp.maximum(n - 2 - taken, 1)
    inside = place <= n
    return jnp.where(inside, own, 0), jnp.where(inside & (place > 1), above, 0)


def without_surplus(
    reward: Float[Array, "P G"], valid: Bool[Array, "P G"], noise: Float[Array, "P G"]
) -> Bool[Array, "P G"]:
    """Valid answers that RED-Drop keeps: of more bad than good ones the surplus with the least noise goes.

    An answer is good where r >= the mean of the valid answers (4 ulp of slack, so rounding moves no class), else bad.
    """
    slack = 4 * float(jnp.finfo(reward.dtype).eps)
    r = jnp.where(valid, reward, 0)
    level = pass_rate(r, valid) - slack * jnp.max(jnp.abs(r), axis=-1, keepdims=True)
    good, bad = valid & (r >= level), valid & (r < level)
    surplus = masked.count(bad, -1, keepdims=True) - masked.count(good, -1, keepdims=True)
    return good | (bad & (order_among(noise, bad) >= surplus))


def order_among(noise: Float[Array, "P G"], where: Bool[Array, "P G"]) -> Int[Array, "P G"]:
    """Place 0, 1, ... by noise among the marked answers of a prompt; the others come after them."""
    return jnp.argsort(jnp.argsort(jnp.where(where, noise, jnp.inf), axis=-1), axis=-1)
