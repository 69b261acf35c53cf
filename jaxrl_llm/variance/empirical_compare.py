"""One frozen batch, many estimators: bias and spread of each with intervals, on the same answers."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxrl_llm.advantages import leave_one_out, no_baseline
from jaxrl_llm.losses.tokens import Tokens
from jaxrl_llm.policies.policy import Params, Policy
from jaxrl_llm.random import Stream, named_key, stream_key
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.credit import Estimator, picked, segment_means
from jaxrl_llm.variance.empirical import numeric_floor, score_gram, tokens_at
from jaxrl_llm.variance.empirical_backends import Backend, Tree, count_sketch
from jaxrl_llm.variance.empirical_tables import Comparison
from jaxrl_llm.variance.empirical_units import Settings, Units, only_valid, refuse_misuse, settings_of, units_of
from jaxrl_llm.variance.gram import ScoreGram
from jaxrl_llm.variance.units import Measured, Products, measured, unit_weights

INDEPENDENT, PLAIN = leave_one_out(), no_baseline()  # what g is measured with


def compare(
    estimators: Mapping[str, Estimator],
    policy: Policy,
    params: Params,
    rollout: Rollout,
    *,
    backend: Backend | None = None,
    segments: int = 1,
    preconditioner: Tree | None = None,
    **settings: Any,
) -> Comparison:
    """Score one batch with many estimators: bias, cos, scale, spread and mean squared error of each, with intervals.

    The prompts of `rollout` are a sample; B of them (`prompts`) with G answers each (`group_size`) are a unit, an
    independent draw of the estimate, and its figures are those of `units`. The reference for g is leave-one-out, summed
    over tokens, from the same answers, weighted by π/μ of the answer where they are off-policy: unbiased. Prompts with
    an answer that is not valid are left out. Scores are computed once, by `backend` (`count_sketch()`), in `segments`
    an answer, scaled by `preconditioner`: see `score_gram`. `settings` are the fields of `Settings`.

    `floor` of the result is |difference|² of the estimate of one unit between two orders of summation: a spread below
    it is rounding; `precision` that between float32 and bfloat16. Raises ValueError where an estimator has no meaning
    on this batch.
    """
    chosen, backend = settings_of(settings), backend or count_sketch()
    rollout = only_valid(rollout)
    tokens = tokens_at(policy, params, rollout)
    refuse_misuse(estimators, rollout, tokens, chosen)
    gram = score_gram(
        policy, params, rollout, backend=backend, segments=segments, preconditioner=preconditioner, seed=chosen.seed
    )
    result, credit = _compared(estimators, gram, rollout, tokens, chosen)
    floor, precision = {}, {}
    if chosen.floor:
        units = units_of(rollout, chosen)
        batch = _picked(rollout, tokens, units.prompt[0, 0], units.answer[0, 0])[0]
        gaps = numeric_floor(policy, params, batch, jnp.stack(list(credit.values())), preconditioner)
        floor, precision = (dict(zip(credit, np.asarray(x).tolist(), strict=True)) for x in gaps)
    return dataclasses.replace(result, floor=floor, precision=precision, backend=backend.name)


def compare_scores(
    estimators: Mapping[str, Estimator],
    gram: ScoreGram,
    rollout: Rollout,
    tokens: Tokens | None = None,
    **settings: Any,
) -> Comparison:
    """`compare` from scores, rewards and tokens that are there already; all answers must be valid. Without `tokens` the
    answers are taken for on-policy, and no estimator may have an objective."""
    chosen = settings_of(settings)
    refuse_misuse(estimators, rollout, tokens, chosen)
    return _compared(estimators, gram, rollout, tokens, chosen)[0]


_picked = jax.jit(picked)


def _compared(
    estimators: Mapping[str, Estimator], gram: ScoreGram, rollout: Rollout, tokens: Tokens | None, chosen: Settings
) -> tuple[Comparison, dict[str, Float[Array, "B G T"]]]:
    """The comparison, and of each estimator the coefficients of the tokens of the first batch."""
    units = units_of(rollout, chosen)
    aligned, reference = _aligned(gram, units), reference_credit(rollout, tokens, units, chosen)
    key = named_key(stream_key(chosen.seed, Stream.VARIANCE), "bootstrap")
    weights = unit_weights(key, chosen.replicates, len(units.prompt), gram.inner.dtype)
    results, coarse, first_batch = {}, {}, {}
    for name, (advantage, objective, state) in estimators.items():
        credit, left, first_batch[name] = _credits(advantage, objective, gram.sizes[2], state, rollout, tokens, units)
        results[name] = measured(unit_products(aligned, credit, reference), weights, chosen.level)
        coarse[name] = float(left)
    first = next(iter(estimators)) if chosen.baseline is None else chosen.baseline
    comparison = Comparison(
        moments={name: result.moments() for name, result in results.items()},
        ratios={name: ratios_of(result, results[first], chosen.level) for name, result in results.items()},
        parts={name: parts_of(result) for name, result in results.items()},
        claims={name: claim_of(estimator) for name, estimator in estimators.items()},
        coarse=coarse,
        floor={},
        precision={},
        baseline=first,
        units=len(units.prompt),
        groups=units.prompt.shape[1],
        prompts=units.prompt.shape[2],
        group_size=units.answer.shape[3],
        level=chosen.level,
        backend="scores as given",
        rewards=coding_of(rollout),
    )
    return comparison, first_batch


def reference_credit(
    rollout: Rollout, tokens: Tokens | None, units: Units, settings: Settings
) -> Float[Array, "U R B G"]:
    """Coefficients of an unbiased estimate of g: leave-one-out on the reward, off-policy times π/μ of the answer; of
    coupled answers the reward alone, because there each answer tells of the others."""
    credit = _credits(PLAIN if settings.coupled else INDEPENDENT, None, 1, None, rollout, None, units)[0][..., 0]
    if settings.off_policy:
        ratio = jnp.exp(jnp.sum(jnp.where(tokens.where, tokens.logp - tokens.behaviour_logp, 0), axis=-1))
        credit = credit * ratio[units.prompt[..., None], units.answer]
    return credit


@jax.jit
def _aligned(gram: ScoreGram, units: Units) -> Float[Array, "U N U N"]:
    """Inner products with rows in the order of the units: N = (groups, prompts, answers, segments) of one of them."""
    prompt, answer = jnp.broadcast_to(units.prompt[..., None], units.answer.shape), units.answer
    rows = gram.inner[prompt, answer].reshape(len(prompt), -1, *gram.sizes)
    both = jnp.moveaxis(rows, (0, 1), (3, 4))[prompt, answer]
    return both.reshape(len(prompt), -1, *rows.shape[:2])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _credits(advantage, objective, segments: int, state, rollout: Rollout, tokens, units: Units):
    """Coefficients [U R B G S] of the batches of all units, the share of them that segments leave out, and those of the
    tokens [B G T] of the first batch."""

    def one(prompt, answer):
        batch = picked(rollout, tokens, prompt, answer)
        each = Estimator(advantage, objective, state).coefficients(*batch)
        acted = batch[0].acted
        spread = jnp.where(acted, each[..., None] if each.ndim == 2 else each, 0)
        return *segment_means(each, acted, segments), spread

    means, left, spread = jax.vmap(jax.vmap(one))(*units)
    return means, jnp.mean(left), spread[0, 0]


@jax.jit
def unit_products(
    aligned: Float[Array, "U N U N"], credit: Float[Array, "U R B G S"], reference: Float[Array, "U R B G"]
) -> Products:
    """Inner products between the estimates of the units."""
    u, r, b, g, s = credit.shape
    reference = jnp.broadcast_to(reference[..., None], credit.shape).reshape(u, -1)
    groups = credit.reshape(u, r, -1)
    whole = groups.reshape(u, -1) / r
    reference = reference / r
    apply = lambda c: jnp.einsum("unvm,vm->unv", aligned, c)  # noqa: E731
    dot = lambda c, image: jnp.einsum("un,unv->uv", c, image)  # noqa: E731
    image, of_reference = apply(whole), apply(reference)
    own = jnp.moveaxis(jnp.diagonal(aligned, axis1=0, axis2=2), -1, 0).reshape(u, r, b * g * s, r, b * g * s)
    within = jnp.einsum("uri,uritj,utj->urt", groups, own, groups)
    square = jnp.einsum("urr->u", within)
    apart = (jnp.sum(within, axis=(1, 2)) - square) / (r * (r - 1)) if r > 1 else jnp.full(u, jnp.nan, square.dtype)
    return Products(
        square=square / r,
        pairs=apart,
        mean=dot(whole, image),
        along=dot(whole, of_reference),
        signal=dot(reference, of_reference),
        gap=dot(whole - reference, image - of_reference),
    )


def ratios_of(result: Measured, base: Measured, level: float) -> dict[str, tuple[float, float, float]]:
    """Estimate and interval of figure / figure of the baseline, replicate by replicate; (NaN, 0, inf): not resolved."""
    tails, out = ((1 - level) / 2, (1 + level) / 2), {}
    for name in ("trace_var", "mse_rescaled"):
        sure = all(np.isfinite(float(each.bounds[name][1])) for each in (result, base))
        spread = np.asarray(result.replicates[name] / base.replicates[name])
        value = float(result.value[name] / base.value[name])
        sure = sure and np.isfinite(value) and bool(np.any(np.isfinite(spread)))
        out[name] = (value, *np.nanquantile(spread, tails).tolist()) if sure else (np.nan, 0.0, np.inf)
    return out


def parts_of(result: Measured) -> dict[str, tuple[float, float, float]]:
    """Estimate and interval of what the figures are made of; squares may be negative."""
    names = ("within", "across", "bias_square", "mean_square", "along", "signal")
    return {name: (float(result.value[name]), *map(float, result.bounds[name])) for name in names}


def claim_of(estimator: Estimator) -> str:
    """What is claimed of the bias: of the whole estimate, or of the credit alone where an objective weighs it."""
    claim = estimator.advantage.traits.unbiased
    return claim if estimator.objective is None else f"{claim} (credit)"


def coding_of(rollout: Rollout) -> str:
    """What rewards there are: the spread of some estimates depends on where their origin is."""
    values = np.unique(np.asarray(rollout.reward))
    if len(values) <= 3:
        return "{" + ", ".join(f"{x:g}" for x in values) + "}"
    return f"{len(values)} values in [{values[0]:g}, {values[-1]:g}]"
