"""What a run trains, and how: all parameters of the policy, or adapters around a trunk that stays; the optimizer."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.linen import unbox
from jaxtyping import Array, Key

from jaxrl_llm.checkpoint import abstract
from jaxrl_llm.config import Config
from jaxrl_llm.learner import Learner, TrainState
from jaxrl_llm.policies.lora import AdaptedPolicy, beside, replaced, sums, targets
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.random import Stream, stream_key
from jaxrl_llm.sharding import born_sharded, state_shardings


def build_optimizer(config: Config, schedule: Callable[[Any], Any]) -> optax.GradientTransformation:
    """AdamW, or plain SGD, behind a bound on the global norm of the gradient."""
    clip = clipped(config.max_grad_norm) if config.max_grad_norm else optax.identity()
    if config.optimizer == "sgd":
        return optax.chain(clip, optax.add_decayed_weights(config.weight_decay), optax.scale_by_learning_rate(schedule))
    return optax.chain(clip, optax.adamw(schedule, b1=0.9, b2=0.99, weight_decay=config.weight_decay))


def clipped(largest: float) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, by one factor: a division of each number makes XLA keep a second gradient."""

    def update(grads, _):
        norm = optax.tree.norm(grads)
        factor = jnp.where(norm < largest, 1.0, largest / norm)
        return jax.tree.map(lambda g: g * factor.astype(g.dtype), grads)

    return optax.stateless(update)


class Trained:
    """The parameters that RL trains: all of the policy, or adapters around a frozen trunk.

    A trunk is held once: it is the reference policy too (with adapters of zero), is never donated and has no moments.
    A second network of the method stands on the same trunk, with adapters of its own.
    """

    def __init__(self, config: Config, mesh: Any):
        self.config, self.mesh, self.lora = config, mesh, config.lora
        self.trunk: Params = ()  # set by `reference`; () where all parameters are trained
        self.key = stream_key(config.seed, Stream.PARAMETERS)
        self._whole = self.policy = Policy(config.model, config.vocab_size)  # a function of what is trained
        if self.lora.rank:
            self.policy = AdaptedPolicy(config.model, config.vocab_size, self.lora)
            places = targets(self._places(), self.policy.shapes())
            self._sums = jax.jit(functools.partial(sums, self.lora), out_shardings=places)

    def _places(self) -> Params:
        return state_shardings(self.mesh, self._whole.init, self.key)

    @property
    def counts(self) -> dict[str, int]:
        """How many parameters there are, and how many are trained."""
        return {"all": self._whole.parameter_count(), "trained": self.policy.parameter_count()}

    def params_like(self) -> Params:
        """Shapes and shardings of the parameters of the policy, for restoring."""
        return abstract(unbox(jax.eval_shape(self._whole.init, self.key)), self._places())

    def around(self, learner: Learner, trunk: Params) -> Learner:
        """The learner of adapters on a trunk, which may be traced; any other learner as it is."""
        if not isinstance(learner.policy, AdaptedPolicy):
            return learner
        policy = learner.policy.on(trunk)
        companion = self.config.recipe.companion and self.config.recipe.companion(policy)
        return dataclasses.replace(learner, policy=policy, companion=companion)

    def state(self, learner: Learner, key: Key[Array, ""]) -> TrainState:
        """State of step 0 on fresh parameters, boxed with their axis names: to read shapes and places off."""
        adapted = isinstance(learner.policy, AdaptedPolicy)
        trunk = unbox(self._whole.init(key)) if adapted else ()
        return self.around(learner, trunk).init(learner.policy.init(key))

    def fresh(self, params: Params) -> Params:
        """What RL starts from: these parameters of the policy, or adapters that change nothing."""
        return born_sharded(self.mesh, self.policy.init, self.key)[0] if self.lora.rank else params

    def reference(self, params: Params) -> Params:
        """The policy before RL as a learner takes it: itself, or adapters of zero, and it becomes their trunk."""
        if not self.lora.rank:
            return params
        self.trunk = params
        zeros = lambda key: jax.tree.map(jnp.zeros_like, self.policy.init(key))  # noqa: E731
        return born_sharded(self.mesh, zeros, self.key)[0]

    def acting(self, params: Params) -> Params:
        """What samples and is evaluated, from the parameters of the state: themselves, or a trunk with adapters."""
        if not self.lora.rank or self.lora.merged:
            return self.merged(params)
        return beside(self.lora, self.trunk, params)

    def merged(self, params: Params) -> Params:
        """Parameters of the policy from those of the state; those without an adapter are the trunk's own, no copies."""
        if not self.lora.rank:
            return params
        return replaced(self.trunk, self._sums(targets(self.trunk, params), params))
