"""Groups whose rewards are all equal teach a centred credit nothing: draw more, and train on the mixed ones."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxrl_llm.rollouts.select._gather import first_of, take_answers, take_prompts
from jaxrl_llm.rollouts.select.plan import Select
from jaxrl_llm.types import Rollout


def mixed(reward: Float[Array, "*S G"], valid: Bool[Array, "*S G"]) -> Bool[Array, "*S"]:
    """True where two valid answers have different rewards. Compared exactly, with no standard deviation to round."""
    highest = jnp.max(jnp.where(valid, reward, -jnp.inf), axis=-1)
    return highest > jnp.min(jnp.where(valid, reward, jnp.inf), axis=-1)


def dynamic_sampling(
    prompts: int,
    accept: Callable[[Float[Array, "P G"], Bool[Array, "P G"]], Bool[Array, " P"]] = mixed,
) -> Select:
    """Of the prompts drawn keep the first `prompts` whose group is accepted; [P' G T] -> [prompts G T].

    With fewer, the other rows are invalid, so the batch is smaller but its shape is not. For prompts drawn
    independently and a centred credit the expected direction is that of all prompts, and its size is
    1 / (share of mixed groups) for each row that is filled: the chance to be accepted and the gradient given
    acceptance cancel.
    DAPO, Yu et al., 2025, arXiv 2503.14476.
    """

    def select(pool: Rollout) -> Rollout:
        return take_prompts(pool, *first_of(accept(pool.reward, pool.valid), prompts))

    return select


def reroll_until_mixed(group: int) -> Select:
    """Of blocks of `group` answers to the *same* prompt take the first that is mixed, else the last.

    This changes the objective: the weight of a prompt with pass rate p is divided by 1 - p^G - (1-p)^G (for R blocks
    multiplied by (1 - s^R) / (1 - s), s = p^G + (1-p)^G), so hard and easy prompts weigh more.
    Own derivation.
    """

    def select(pool: Rollout) -> Rollout:
        p, n = pool.reward.shape
        if n % group:
            raise ValueError(f"a pool of {n} answers cannot be cut into groups of {group}")
        by_block = (p, n // group, group)
        good = mixed(pool.reward.reshape(by_block), pool.valid.reshape(by_block))
        good = good.at[:, -1].set(True)
        block = jnp.argmax(good, axis=-1)
        index = block[:, None] * group + jnp.arange(group)[None]
        return take_answers(pool, index, jnp.ones(index.shape, bool))

    return select
