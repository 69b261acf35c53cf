"""Exact bias and variance of gradient estimators on finite policies, by enumeration of every group in float64."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from jaxrl_llm.advantages import AdvantageTransform
from jaxrl_llm.losses.objective import Objective
from jaxrl_llm.losses.tokens import Tokens
from jaxrl_llm.types import Rollout
from jaxrl_llm.variance.credit import coefficients
from jaxrl_llm.variance.designs import Design, Groups
from jaxrl_llm.variance.tables import OutcomeTable, need_float64

LIMIT = 4_000_000  # batches that are enumerated at most
CELLS = 2**21  # numbers held at a time for the scores of a chunk of batches
NOTHING = 1e-28  # a trace variance up to this is rounding


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientMoments:
    """Mean and spread of a gradient estimate ĝ beside the true gradient g. A spread without the bias says nothing: a
    shrunken estimate has less of it.

    trace_var     E|ĝ - Eĝ|²
    bias_norm     |Eĝ - g|
    mse           bias_norm² + trace_var
    cos           cosine of Eĝ and g; 0 where one of them is 0
    scale         <Eĝ, g> / |g|²; 0 where g is 0
    snr           |Eĝ|² / trace_var; infinite where trace_var is 0 up to rounding
    mse_rescaled  mse of ĝ/scale; infinite where scale is 0
    useful_snr    <Eĝ, u>² / trace_var with u = g/|g|; infinite where trace_var is 0 up to rounding
    mean_grad     [D] Eĝ; None where only inner products are known
    intervals     name -> (lower, upper) of measured figures, a name of this list each; empty for exact ones

    A measured figure is NaN where the data do not resolve it; its interval then holds the bound.
    """

    trace_var: float
    bias_norm: float
    mse: float
    cos: float
    scale: float
    snr: float
    mse_rescaled: float
    useful_snr: float
    mean_grad: Float[Array, " D"] | None = None
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


class Plan(NamedTuple):
    """What is fixed when the program is compiled. `pool`: the prompts are drawn; False: each table stands once."""

    transform: AdvantageTransform
    objective: Objective | None
    group_size: int
    prompts: int
    pool: bool


def moments(
    transform: AdvantageTransform,
    table: OutcomeTable | Sequence[OutcomeTable],
    group_size: int,
    *,
    prompts: int | None = 1,
    objective: Objective | None = None,
    design: Design | None = None,
    state: Any = None,
    target: Shaped[Array, " D"] | None = None,
) -> GradientMoments:
    """Moments of ĝ = 1/(BG) Σ A_i s_i over all batches of B prompts with G answers.

    The answers are drawn independently from the table's policy (its behaviour policy where it has one), or by a
    `design`. `table` may be several tables of one shape, the pool: `prompts` of them are drawn, independently and
    uniformly with replacement; with None each stands in the batch once. Credit of single tokens, [P G T], multiplies
    the scores of the tokens. `state` is that of the transform before the batch; a fresh one where not given.

    With an `objective` ĝ = Σ c_t s_t, c = -∂loss/∂logp: ratios, corrections, penalties in loss or reward and the
    weights of its aggregation are those of training; what depends on the parameters other than through `logp` of the
    tokens drawn is left out. `extras` of the table may hold reference_logp and entropy [N T] for it.

    g is the mean of ∇E[r] over the tables, or `target`. Raises ValueError for a use that has no meaning and for more
    than 4 million batches, RuntimeError where float64 is off.
    """
    need_float64()
    tables = [table] if isinstance(table, OutcomeTable) else list(table)
    count = len(tables) if prompts is None else prompts
    plan = Plan(transform, objective, group_size, count, prompts is not None)
    _refuse_misuse(plan, tables, design)
    pool = _stacked(tables)
    groups = None if design is None else jax.tree.map(lambda *x: jnp.stack(x), *[design(t, group_size) for t in tables])
    each = len(tables[0].probs) ** group_size if groups is None else groups.probs.shape[1]
    total = (each * (len(tables) if plan.pool else 1)) ** plan.prompts
    if total > LIMIT:
        raise ValueError(f"{total} batches are too many to enumerate, the most are {LIMIT}")
    g = jnp.mean(jnp.stack([t.gradient for t in tables]), axis=0) if target is None else jnp.asarray(target)
    state = transform.init() if state is None else state
    return _summary(*_sums(plan, total, pool, groups, state, g), g)


def moments_of(
    estimates: Float[Array, "M D"], probs: Float[Array, " M"], target: Float[Array, " D"]
) -> GradientMoments:
    """Moments of an estimate written out: `estimates[m]` has probability `probs[m]`, and `target` is the gradient."""
    gap = estimates - target[None, :]
    return _summary(probs @ gap, probs @ jnp.sum(gap**2, axis=-1), target)


def _summary(shift, square, g):
    """From E[ĝ - g] and E|ĝ - g|²: sums around g, not around 0, lose no digits where the bias is small."""
    mean, signal = g + shift, float(g @ g)
    trace, bias2, size2 = max(float(square - shift @ shift), 0.0), float(shift @ shift), float(mean @ mean)
    along = float(mean @ g)
    scale = along / signal if signal > 0 else 0.0
    rest = mean / scale - g if scale else g
    return GradientMoments(
        trace_var=trace,
        bias_norm=bias2**0.5,
        mse=bias2 + trace,
        cos=along / (signal * size2) ** 0.5 if signal * size2 > 0 else 0.0,
        scale=scale,
        snr=size2 / trace if trace > NOTHING else float("inf"),
        mse_rescaled=float(rest @ rest) + trace / scale**2 if scale else float("inf"),
        useful_snr=_useful(along, signal, trace),
        mean_grad=mean,
    )


def _useful(along, signal, trace):
    if not along * signal:
        return 0.0
    return along**2 / (signal * trace) if trace > NOTHING else float("inf")


def _refuse_misuse(plan: Plan, tables, design):
    traits = plan.transform.traits
    if plan.group_size < traits.minimum_group:
        raise ValueError(f"the estimator needs groups of {traits.minimum_group} answers, not {plan.group_size}")
    if plan.prompts < traits.least_batch:
        raise ValueError(
            f"the estimator compares prompts: it needs batches of {traits.least_batch}, not {plan.prompts}"
        )
    if design is not None and traits.needs_iid:
        raise ValueError(
            "the estimator is unbiased only for answers drawn independently, and the design couples them; to measure "
            "the bias, take the claim back: transform._replace(traits=dataclasses.replace(traits, needs_iid=False))"
        )
    for table in tables:
        if design is not None and table.behaviour_logp is not None:
            raise ValueError("a design draws from the policy itself, and the table has a behaviour policy")
        missing = sorted(set(traits.needs) - set(table.known) - set(table.prompt_extras))
        if missing:
            raise ValueError(f"the estimator reads {missing[0]!r}, which is in neither extras nor prompt_extras")
        within = {"any": True, "unit": (table.rewards >= 0) & (table.rewards <= 1)}
        within["binary"] = (table.rewards == 0) | (table.rewards == 1)
        if not bool(jnp.all(within[traits.domain])):
            raise ValueError(f"the estimator is defined for rewards of the domain {traits.domain!r} alone")
        if plan.objective is not None and table.token_scores is None:
            raise ValueError("an objective weighs tokens, and the table has no token_scores")


def _stacked(tables) -> OutcomeTable:
    shapes = {str(jax.tree.map(jnp.shape, t)) for t in tables}
    if len(shapes) != 1:
        raise ValueError("the tables of a pool need one shape: fill up with outcomes of probability 0")
    return jax.tree.map(lambda *x: jnp.stack(x), *tables)


def _sums(plan: Plan, total: int, pool: OutcomeTable, groups: Groups | None, state, g):
    """E[ĝ - g] and E|ĝ - g|², a chunk of batches at a time.

    Three programs, because all but the credit is the same for every estimator and need not be compiled again.
    """
    width = plan.prompts * plan.group_size * pool.logp.shape[-1] * len(g)
    chunk = min(total, max(1, CELLS // width))
    shift, square = jnp.zeros_like(g), jnp.zeros((), g.dtype)
    for start in range(0, total, chunk):
        draws = _draws(plan[2:], chunk, jnp.asarray(start), total, pool, groups)
        credit = _credits(plan[:2], draws, pool, state)
        shift, square = _added(shift, square, draws, credit, pool, g)
    return shift, square


@functools.partial(jax.jit, static_argnums=(0, 1))
def _draws(sizes: tuple, chunk: int, start, total, pool: OutcomeTable, groups: Groups | None) -> "Draw":
    """The batches `start` to `start + chunk`; those beyond the last one have probability 0."""
    index = start + jnp.arange(chunk)
    draws = jax.vmap(lambda i: _draw(sizes, i, pool.drawn, groups))(jnp.minimum(index, total - 1))
    return draws._replace(prob=jnp.where(index < total, draws.prob, 0))


@functools.partial(jax.jit, static_argnums=0)
def _credits(parts: tuple, draws: "Draw", pool: OutcomeTable, state):
    """What multiplies the scores: [M P G] of answers, or [M P G T] of tokens."""
    return jax.vmap(lambda draw: _credit(*parts, draw, pool, state))(draws)


@jax.jit
def _added(shift, square, draws: "Draw", credit, pool: OutcomeTable, g):
    """The sums with those of these batches added."""
    at = lambda x: x[draws.prompt[..., None], draws.outcome]  # noqa: E731
    if credit.ndim == 3:
        estimate = jnp.einsum("mpg,mpgd->md", draws.weight * credit, at(pool.scores))
    else:
        credit = jnp.where(at(pool.acted), draws.weight[..., None] * credit, 0)
        estimate = jnp.einsum("mpgt,mpgtd->md", credit, at(pool.token_scores))
    gap = estimate - g[None, :]
    return shift + draws.prob @ gap, square + draws.prob @ jnp.sum(gap**2, axis=-1)


class Draw(NamedTuple):
    """One batch: tables [P], their outcomes [P G], the weights of the design [P G], and its probability."""

    prompt: Shaped[Array, " P"]
    outcome: Shaped[Array, "P G"]
    weight: Float[Array, "P G"]
    prob: Float[Array, ""]


def _draw(sizes: tuple, index, drawn, groups: Groups | None) -> Draw:
    """Batch number `index`, whose digits are the prompts and then the answers."""
    (g, b, pooled), (size, n) = sizes, drawn.shape
    prompt, share = jnp.arange(b), 1
    if pooled:
        prompt, index, share = _digits(index, size, b), index // size**b, size**b
    if groups is None:
        outcome = _digits(index, n, b * g).reshape(b, g)
        return Draw(prompt, outcome, jnp.ones((b, g)), jnp.prod(drawn[prompt[:, None], outcome]) / share)
    row = _digits(index, groups.probs.shape[1], b)
    prob = jnp.prod(groups.probs[prompt, row])
    return Draw(prompt, groups.outcomes[prompt, row], groups.weights[prompt, row], prob / share)


def _digits(index, base: int, count: int):
    return index // jnp.asarray([base**i for i in range(count)]) % base


def _credit(transform: AdvantageTransform, objective: Objective | None, draw: Draw, pool: OutcomeTable, state):
    """Coefficients of one batch, the divisor 1/(BG) included."""
    credit = coefficients(transform, objective, *_observed(draw, pool), state)
    if credit.ndim == 3 and pool.token_scores is None:
        raise ValueError("the credit is one of tokens, and the table has no token_scores")
    return credit


def _observed(draw: Draw, pool: OutcomeTable) -> tuple[Rollout, Tokens]:
    """What training would see of the batch; tokens are numbered by outcome, and padding is 0."""
    each = lambda x: x[draw.prompt[:, None], draw.outcome]  # noqa: E731
    reward, acted, logp = each(pool.rewards), each(pool.acted), each(pool.logp)
    behaviour = logp if pool.behaviour_logp is None else each(pool.behaviour_logp)
    extras = {name: each(x) for name, x in pool.known.items()}
    zero, at_prompt = jnp.zeros_like(logp), {name: x[draw.prompt] for name, x in pool.prompt_extras.items()}
    rollout = Rollout(
        prompt=draw.prompt[:, None],
        prompt_mask=jnp.ones((len(draw.prompt), 1), bool),
        answer=jnp.where(acted, draw.outcome[..., None], 0),
        acted=acted,
        behaviour_logp=behaviour,
        policy_logp=behaviour,
        reward=reward,
        components=reward[..., None],
        valid=jnp.ones(reward.shape, bool),
        truncated=jnp.zeros(reward.shape, bool),
        prompt_id=draw.prompt,
        version=jnp.zeros(reward.shape, int),
        extras=extras | at_prompt,
    )
    tokens = Tokens(
        where=acted,
        logp=logp,
        behaviour_logp=behaviour,
        policy_logp=behaviour,
        reference_logp=extras.get("reference_logp", zero),
        advantage=zero,
        entropy=extras.get("entropy", zero),
        exact_kl=zero,
        noise=zero,
    )
    return rollout, tokens
