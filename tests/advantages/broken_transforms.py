"""Transforms that each break one law: what a plausible slip looks like, and which law catches it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jaxrl_llm import masked
from jaxrl_llm.advantages import (
    AdvantageTransform,
    Traits,
    beta_density,
    group_mean,
    moving_average,
    no_baseline,
    stateless,
)

PLAIN = Traits(unbiased="no")


def of(fn, **traits):
    return stateless(fn, Traits(unbiased="no", **traits))


def claims(transform, **traits):
    return transform._replace(traits=dataclasses.replace(transform.traits, **traits))


def with_state(init, update):
    return AdvantageTransform(init, update, PLAIN)


def counts_invalid_answers(a, rollout):
    return jnp.where(rollout.valid, a - jnp.mean(a, axis=-1, keepdims=True), 0)


def credits_invalid_answers(a, rollout):
    return a - masked.mean(a, rollout.valid, axis=-1, keepdims=True)


def compares_with_the_answer_before(a, rollout):
    return jnp.where(rollout.valid, a - jnp.where(jnp.roll(rollout.valid, 1, -1), jnp.roll(a, 1, -1), 0), 0)


def micro_batch_mean(a, rollout):
    cut = lambda x: x.reshape(-1, 2, x.shape[-1])  # noqa: E731
    if a.shape[0] % 2:
        return jnp.where(rollout.valid, a, 0)
    mean = masked.mean(cut(a), cut(rollout.valid), axis=(1, 2), keepdims=True)
    return jnp.where(rollout.valid, (cut(a) - mean).reshape(a.shape), 0)


def divides_by_the_width_of_the_group(a, rollout):
    mean = masked.total(a, rollout.valid, axis=-1, keepdims=True) / a.shape[-1]
    return jnp.where(rollout.valid, a - mean, 0)


def counts_empty_prompts(a, rollout):
    mean = jnp.mean(masked.mean(a, rollout.valid, axis=-1))
    return jnp.where(rollout.valid, a - mean, 0)


def mean_of_its_own_device(a, rollout):
    local = lambda a, valid: jnp.where(valid, a - masked.mean(a, valid), 0)  # noqa: E731
    if not jax.sharding.get_abstract_mesh().axis_names:
        return local(a, rollout.valid)
    rows = PartitionSpec("prompts")
    return jax.shard_map(local, in_specs=(rows, rows), out_specs=rows)(a, rollout.valid)


def drifts_to_float32(a, rollout):
    return jnp.where(rollout.valid, a * np.float32(2), 0)


def branches_on_a_value(a, rollout):
    return jnp.where(rollout.valid, a, 0) if jnp.sum(rollout.valid) > 0 else jnp.zeros_like(a)


def std_without_a_guard(a, rollout):
    mean = masked.mean(a, rollout.valid, axis=-1, keepdims=True)
    n = masked.count(rollout.valid, axis=-1, keepdims=True)
    sigma = jnp.sqrt(masked.total(jnp.square(a - mean), rollout.valid, axis=-1, keepdims=True) / n)
    return jnp.where(rollout.valid, (a - mean) / sigma, 0)


def std_guarded_once(a, rollout):
    v = masked.variance(a, rollout.valid, axis=-1, ddof=0, keepdims=True)
    return jnp.where(rollout.valid & (v > 0), a / jnp.sqrt(v), 0)


def mean_with_rounding(a, rollout):
    n = jnp.maximum(masked.count(rollout.valid, axis=-1, keepdims=True), 1)
    return jnp.where(rollout.valid, a - masked.total(a, rollout.valid, axis=-1, keepdims=True) * (1 / n), 0)


def calls_the_host(a, rollout):
    return jax.pure_callback(
        lambda a, valid: np.where(valid, a, 0), jax.ShapeDtypeStruct(a.shape, a.dtype), a, rollout.valid
    )


def counts_in_python():
    calls = []

    def fn(a, rollout):
        calls.append(None)
        return jnp.where(rollout.valid, a * len(calls), 0)

    return of(fn)


def growing_state(a, state, rollout):
    return jnp.where(rollout.valid, a, 0), (*state, masked.mean(a, rollout.valid))


def widening_state(a, state, rollout):
    return jnp.where(rollout.valid, a, 0), state + 0.5


def credits_every_token(a, rollout):
    return jnp.where(rollout.valid[..., None], a[..., None] + jnp.zeros(rollout.acted.shape, a.dtype), 0)


# name -> (law it breaks, transform, how that shows)
BROKEN = {
    "counts invalid answers": ("an_invalid_answer_changes_nothing", of(counts_invalid_answers)),
    "credits invalid answers": ("an_invalid_answer_changes_nothing", of(credits_invalid_answers)),
    "depends on the order of answers": ("the_order_of_answers_is_irrelevant", of(compares_with_the_answer_before)),
    "uses micro-batch statistics": ("the_order_of_prompts_is_irrelevant", of(micro_batch_mean)),
    "leaks the padding of the group": ("padding_the_group_changes_nothing", of(divides_by_the_width_of_the_group)),
    "leaks the padding of the batch": ("padding_the_batch_changes_nothing", of(counts_empty_prompts)),
    "credits what was not chosen": ("a_token_that_was_not_chosen_gets_nothing", of(credits_every_token)),
    "sees its own device alone": ("eight_devices_agree_with_one", of(mean_of_its_own_device)),
    "drifts in dtype": ("the_dtype_is_kept", of(drifts_to_float32)),
    "branches on a value": ("compiled_and_not_agree", of(branches_on_a_value), jax.errors.ConcretizationTypeError),
    "0/0 on an equal group": ("credit_and_its_gradient_are_finite", of(std_without_a_guard)),
    "0/0 in the gradient alone": ("credit_and_its_gradient_are_finite", of(std_guarded_once)),
    "rounding noise on an equal group": ("an_all_equal_group_gets_0_if_centred", of(mean_with_rounding, centred=True)),
    "claims to be centred": ("an_all_equal_group_gets_0_if_centred", claims(no_baseline(), centred=True)),
    "denies to be centred": ("an_all_equal_group_gets_0_if_centred", claims(group_mean(), centred=False)),
    "hides that it reads other prompts": (
        "other_prompts_are_read_if_it_says_so",
        claims(beta_density(), batch_wide=False),
    ),
    "claims to read other prompts": ("other_prompts_are_read_if_it_says_so", claims(group_mean(), batch_wide=True)),
    "claims to keep 0": (
        "a_credit_of_0_stays_0_if_it_says_so",
        claims(moving_average(), keeps_zero=True),
    ),
    "overstates its minimum": (
        "the_minimum_group_is_the_smallest_with_a_signal",
        claims(no_baseline(), minimum_group=2),
    ),
    "understates its minimum": (
        "the_minimum_group_is_the_smallest_with_a_signal",
        claims(group_mean(), minimum_group=1),
    ),
    "counts in Python": ("compiled_and_not_agree", counts_in_python()),
    "its state grows": ("the_state_is_stable", with_state(lambda: (), growing_state)),
    "its state changes dtype": ("the_state_is_stable", with_state(lambda: jnp.zeros((), jnp.int32), widening_state)),
    "calls the host": ("seeds_can_be_vmapped", of(calls_the_host), (ValueError, NotImplementedError)),
}
BROKEN = {name: (*row, AssertionError)[:3] for name, row in BROKEN.items()}
