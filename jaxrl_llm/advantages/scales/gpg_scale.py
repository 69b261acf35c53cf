"""Division by the share of answers that earned something (GPG, Chu et al., arXiv 2504.02546; convention of verl)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless


def gpg_scale() -> AdvantageTransform:
    """Aᵢ ← Aᵢ · N / max(#{rⱼ ≠ 0}, 1),  over the N valid answers of the batch.

    For rewards of 0 and 1: division by the pass rate of the whole batch. Any other reward that is not 0 counts like 1.
    One factor for all answers, yet biased where there are several prompts: it depends on the same rewards.
    """

    def fn(advantage, rollout):
        n = masked.count(rollout.valid)
        earned = masked.count(rollout.valid & (rollout.reward != 0))
        factor = n.astype(advantage.dtype) / jnp.maximum(earned, 1).astype(advantage.dtype)
        return jnp.where(rollout.valid, advantage, 0) * factor

    return stateless(fn, Traits(unbiased="no", batch_wide=True, uses_self=True, domain="binary"))
