"""How many answers each prompt gets, and a selector that keeps to it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxrl_llm.rollouts.select._gather import first_of, take_answers
from jaxrl_llm.rollouts.select.plan import Select
from jaxrl_llm.types import Rollout

HALVINGS = 60  # of the bracket of the scale, on a logarithmic axis: past the last bit of float32


def estimated_budget(rate: Float[Array, " P"], minimum: int, maximum: int, total: int, eps: float) -> Int[Array, " P"]:
    """n = clip(c / sqrt(rate + eps), minimum, maximum), with c such that Σ n = total (Ada-Est of arXiv 2510.04996).

    Whole numbers by largest remainder, the earlier prompt first where remainders tie, so Σ n is exactly `total` when
    P·minimum <= total <= P·maximum; outside, every prompt gets the bound. eps > 0 keeps a rate of 0 finite.
    minimum, maximum: unverified, the paper's values are known second-hand (4 and 32, at about 8 a prompt).
    """
    weight = jax.lax.rsqrt(rate.astype(jnp.float32) + eps)

    def shares(log_scale):
        return jnp.clip(jnp.exp(log_scale) * weight, minimum, maximum)

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        short = jnp.sum(shares(middle)) < total
        return jnp.where(short, middle, low), jnp.where(short, high, middle)

    ends = jnp.log(minimum / jnp.max(weight)), jnp.log(maximum / jnp.min(weight))
    share = shares(jax.lax.fori_loop(0, HALVINGS, halve, ends)[1])
    floor = jnp.floor(share)
    left = jnp.clip(total - jnp.sum(floor).astype(jnp.int32), 0)
    place = jnp.argsort(jnp.argsort(floor - share, stable=True))
    return jnp.minimum(floor.astype(jnp.int32) + (place < left), maximum)


def keep_budget(keep: int) -> Select:
    """The first extras["budget"] [P] valid answers of each prompt, at most `keep`."""

    def select(pool: Rollout) -> Rollout:
        wanted = pool.valid & (jnp.cumsum(pool.valid, axis=-1) <= pool.extras["budget"][:, None])
        return take_answers(pool, *first_of(wanted, keep))

    return select
