"""Rewards as gaps to a reference answer (PIT, Wang et al., arXiv 2310.00898)."""

from collections.abc import Callable

from jaxtyping import Array, Float, Shaped

from jaxrl_llm.rewards._base import RewardTransform, stateless

Gap = Callable[[Shaped[Array, "..."], Shaped[Array, "..."]], Float[Array, "..."]]


def gap_reward() -> RewardTransform:
    """r ← r - r(y_ref),  the reward of the prompt's reference answer in extras "reference_reward" [P].

    The additive case of a gap model r_gap(x, y, y_ref). The reference is then a baseline of its prompt: the expected
    gradient is that of r, and a group mean cancels it. A gap model proper is trained on ordered pairs (its loss is
    unverified: the sources do not state it) and its values come as the reward itself.
    """
    return stateless(
        lambda rollout: rollout.reward - rollout.extras["reference_reward"][:, None], needs=("reference_reward",)
    )


def antisymmetric(gap: Gap) -> Gap:
    """(a, b) -> (gap(a, b) - gap(b, a)) / 2, which has gap(a, b) = -gap(b, a) and gap(a, a) = 0 whatever `gap` is.

    A gap that is antisymmetric already, such as r(a) - r(b), is unchanged.
    """
    return lambda a, b: (gap(a, b) - gap(b, a)) / 2
