"""Credit for the tokens of highest entropy alone (Wang et al., 2025)."""

import jax.numpy as jnp

from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._tokens import acted_tokens, top_fraction


def top_entropy_mask(*, fraction: float | int) -> AdvantageTransform:
    """Aₜ ← Aₜ where Hₜ is among the k highest entropies of the batch, else 0.

    k = max(⌊fraction · n⌋, 1) of the n acted tokens of valid answers; ties with the k-th are all kept. H is
    `extras["entropy"]` [P G T]. fraction 1 keeps every token. The k tokens are chosen over the batch, so what one
    answer keeps depends on the others. fraction: unverified, 0.2 is what they are remembered for. arXiv 2506.01939.
    """

    def fn(advantage, rollout):
        where = acted_tokens(rollout)
        return jnp.where(top_fraction(rollout.extras["entropy"], where, fraction), advantage, 0)

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True, needs=("entropy",)))
