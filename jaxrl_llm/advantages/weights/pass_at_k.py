"""Credit for the best of k answers (PKPO, Walder and Karkhanis, arXiv 2505.15201)."""

import jax.numpy as jnp

from jaxrl_llm import masked
from jaxrl_llm.advantages._base import AdvantageTransform, Traits, stateless
from jaxrl_llm.advantages._rates import share_of_subsets


def pass_at_k(*, k: int) -> AdvantageTransform:
    """Aᵢ = k · mean over the sets S of k valid answers to the prompt, i among them, of max r over S.

    The exact gradient of E[best of k], which for 0/1 rewards is pass@k = 1 - (1-p)ᵏ: a right answer gets k, a wrong one
    k times the chance that k-1 others hold a right one. Sorted upwards, answer i is the best of C(i-1, k-1) sets and
    answer j > i the best of C(j-2, k-2) sets with i. Fewer than k valid answers: 0. k = 1 is the plain reward.
    """

    def fn(advantage, rollout):
        n = masked.count(rollout.valid, axis=-1, keepdims=True)
        order = jnp.argsort(jnp.where(rollout.valid, advantage, jnp.inf), axis=-1)
        r = jnp.take_along_axis(jnp.where(rollout.valid, advantage, 0), order, axis=-1)
        own, above = share_of_subsets(n, r.shape[-1], k)
        from_above = jnp.cumsum((above.astype(r.dtype) * r)[:, ::-1], axis=-1)[:, ::-1] - above.astype(r.dtype) * r
        credit = jnp.take_along_axis(k * (own.astype(r.dtype) * r + from_above), jnp.argsort(order, axis=-1), axis=-1)
        return jnp.where(rollout.valid & (n >= k), credit, 0)

    f_prime = lambda p, g: float(k * (1 - p) ** (k - 1)) if g >= k else 0.0  # noqa: E731
    claim = {"unbiased": "yes" if k == 1 else "no", "uses_self": k > 1, "minimum_group": k}
    return stateless(fn, Traits(**claim, f_prime=f_prime))
