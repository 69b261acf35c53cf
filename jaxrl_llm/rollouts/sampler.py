"""What samples answers: the decode loop on the devices, or an engine elsewhere."""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key

from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.rollouts.generate import Answers, generate
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping
from jaxrl_llm.types import Rollout


@runtime_checkable
class Sampler(Protocol):
    """Samples G answers to each of P prompts, an answer by its own key.

    An answer that does not exist has no acted token: whoever makes a rollout of it must call it invalid.
    """

    def __call__(
        self,
        params: Params,
        prompt: Int[Array, "P L"],
        prompt_mask: Bool[Array, "P L"],
        keys: Key[Array, "P G"],
        rules: SamplingRules,
        stopping: Stopping,
        limit: Int[Array, "P G"] | None = None,
    ) -> Answers:
        """The answers of the policy of `params`, each of at most its `limit` of tokens where there is one."""
        ...


def on_device(policy: Policy) -> Sampler:
    """`generate` behind the signature of a sampler, compiled once for each of the rules and stops."""
    return jax.jit(lambda *inputs: generate(policy, *inputs), static_argnums=(4, 5))


def ungraded(out: Answers, prompt: Int[Array, "P L"], prompt_mask: Bool[Array, "P L"], components: int) -> Rollout:
    """Answers as a rollout that nobody has graded, with room for K components; one without a token is not valid."""
    shape = out.truncated.shape
    return Rollout(
        prompt=prompt,
        prompt_mask=prompt_mask,
        answer=out.answer,
        acted=out.acted,
        behaviour_logp=out.behaviour_logp,
        policy_logp=out.policy_logp,
        reward=jnp.zeros(shape, jnp.float32),
        components=jnp.zeros((*shape, components), jnp.float32),
        valid=jnp.any(out.acted, axis=-1),
        truncated=out.truncated,
        prompt_id=jnp.arange(shape[0]),
        version=jnp.zeros(shape, jnp.int32),
    )
