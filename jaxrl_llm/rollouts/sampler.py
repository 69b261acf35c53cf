"""What samples answers: the decode loop on the devices, or an engine elsewhere."""

from typing import Protocol, runtime_checkable

import jax
from jaxtyping import Array, Bool, Int, Key

from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.rollouts.generate import Answers, Stopping, generate
from jaxrl_llm.rollouts.sampling import SamplingRules


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
    ) -> Answers:
        """The answers of the policy of `params`."""
        ...


def on_device(policy: Policy) -> Sampler:
    """`generate` behind the signature of a sampler, compiled once for each of the rules and stops."""
    return jax.jit(lambda *inputs: generate(policy, *inputs), static_argnums=(4, 5))
