"""Finite policies: all answers to one prompt, their probabilities, scores and rewards, written down as a table."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from jaxrl_llm.types import pytree

TOLERANCE = 1e-9
Numbers = Any  # what jnp.asarray takes; once in a table, an array of the shape that is written beside it


@pytree
@dataclasses.dataclass(frozen=True)
class OutcomeTable:
    """A policy with N outcomes (answers to one prompt) and D parameters; lists will do for arrays.

    probs           [N]      π(y); they sum to 1
    scores          [N D]    ∇ log π(y); their mean under π is 0
    rewards         [N]
    lengths         [N]      acted tokens of the answer; 1 where not given
    energies        [N]      a proxy of |∇ log π(y)|², to stand in its place; `energy` is the one that is used
    token_scores    [N T D]  ∇ log π(y_t | prefix); their sum over the first `lengths` tokens is the score
    logp            [N T]    nats, log π(y_t | prefix); where not given, all of log π(y) stands at the first token
    behaviour_logp  [N T]    nats, the same of the policy that is sampled from; not given: it is π itself
    extras                   name -> [N ...], what `Rollout.extras` holds for the answer, beside `energy` and, if there
                             are token scores, `token_energy`, which need not be given
    prompt_extras            name -> [...], what `Rollout.extras` holds for the prompt

    What lies after the end of an answer (`lengths`) is not read. An outcome of probability 0 is never drawn.
    A table that contradicts itself raises ValueError, which names the field.
    """

    probs: Numbers
    scores: Numbers
    rewards: Numbers
    lengths: Numbers | None = None
    energies: Numbers | None = None
    token_scores: Numbers | None = None
    logp: Numbers | None = None
    behaviour_logp: Numbers | None = None
    extras: Mapping[str, Numbers] = dataclasses.field(default_factory=dict)
    prompt_extras: Mapping[str, Numbers] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        need_float64()
        for check in (_outcomes, _tokens, _extras):
            for name, value in check(self).items():
                object.__setattr__(self, name, value)

    @property
    def acted(self) -> Bool[Array, "*X N T"]:
        """[N T], True at the tokens of each answer."""
        return _until(self.lengths, self.logp.shape[-1])

    @property
    def drawn(self) -> Float[Array, "*X N"]:
        """[N], the probabilities under the policy that is sampled from."""
        return self.probs if self.behaviour_logp is None else jnp.exp(jnp.sum(self.behaviour_logp, axis=-1))

    @property
    def energy(self) -> Float[Array, "*X N"]:
        """[N], |∇ log π(y)|², or `energies` where given."""
        return jnp.sum(self.scores**2, axis=-1) if self.energies is None else self.energies

    @property
    def known(self) -> dict[str, Shaped[Array, "..."]]:
        """Name -> [N ...], `extras` and the energies."""
        tokens = {} if self.token_scores is None else {"token_energy": jnp.sum(self.token_scores**2, axis=-1)}
        return {"energy": self.energy} | tokens | dict(self.extras)

    @property
    def gradient(self) -> Float[Array, " D"]:
        """∇ E[r] = E[r s], under π."""
        return (self.probs * self.rewards) @ self.scores


def need_float64() -> None:
    """Raise where JAX would compute in float32."""
    if not jax.config.jax_enable_x64:
        raise RuntimeError("exact moments need float64: run inside `with jax.enable_x64(True):`")


def _outcomes(table: OutcomeTable) -> dict:
    """What a table of whole answers needs."""
    probs, rewards = _array("probs", table.probs, 1), _array("rewards", table.rewards, 1)
    n, scores = len(probs), _array("scores", table.scores, 2)
    _require(bool(jnp.all(probs >= 0)) and abs(float(jnp.sum(probs)) - 1) < TOLERANCE, "probs", "a distribution: sum 1")
    _require(rewards.shape == (n,), "rewards", f"{n} numbers, one an outcome")
    _require(scores.shape[0] == n, "scores", f"{n} rows, one an outcome")
    _require(bool(jnp.all(jnp.abs(probs @ scores) < TOLERANCE * _size(scores))), "scores", "of mean 0 under probs")
    lengths = jnp.ones(n, int) if table.lengths is None else jnp.asarray(table.lengths)
    whole = lengths.shape == (n,) and bool(jnp.all((lengths >= 1) & (lengths == lengths.astype(int))))
    _require(whole, "lengths", f"{n} whole numbers, at least 1")
    energies = table.energies
    if energies is not None:
        energies = _array("energies", energies, 1)
        _require(energies.shape == (n,) and bool(jnp.all(energies >= 0)), "energies", f"{n} numbers, none below 0")
    values = {"probs": probs, "scores": scores, "rewards": rewards}
    return values | {"lengths": lengths.astype(int), "energies": energies}


def _tokens(table: OutcomeTable) -> dict:
    """What is known of each token, 0 after the end of the answer; to be called after `_outcomes`."""
    n, longest = len(table.probs), int(jnp.max(table.lengths))
    if table.token_scores is None:
        tokens, token_scores = longest, table.scores[:, None, :] if longest == 1 else None
        acted = _until(table.lengths, tokens)
    else:
        given = jnp.asarray(table.token_scores, jnp.float64)
        tokens = given.shape[1] if given.ndim == 3 else -1
        fits = given.shape == (n, tokens, table.scores.shape[1]) and tokens >= longest
        _require(fits, "token_scores", f"of shape [N T D] with T at least {longest}, not {given.shape}")
        acted = _until(table.lengths, tokens)
        token_scores = _array("token_scores", jnp.where(acted[..., None], given, 0), 3)
        gap = jnp.max(jnp.abs(jnp.sum(token_scores, axis=1) - table.scores))
        _require(bool(gap < TOLERANCE * _size(table.scores)), "token_scores", "such that they add up to scores")
    whole = jnp.log(jnp.where(table.probs > 0, table.probs, 1))[:, None]
    first = jnp.where(jnp.arange(tokens)[None, :] == 0, whole, 0)
    logp = first if table.logp is None else _token_logp("logp", table.logp, acted)
    gap = jnp.abs(jnp.sum(logp, axis=-1) - whole[:, 0])
    _require(bool(jnp.all((table.probs == 0) | (gap < TOLERANCE))), "logp", "such that they add up to log(probs)")
    behaviour = table.behaviour_logp
    if behaviour is not None:
        behaviour = _token_logp("behaviour_logp", behaviour, acted)
        mass = float(jnp.sum(jnp.exp(jnp.sum(behaviour, axis=-1))))
        _require(abs(mass - 1) < TOLERANCE, "behaviour_logp", f"a distribution over the outcomes: sum 1, not {mass}")
    return {"token_scores": token_scores, "logp": logp, "behaviour_logp": behaviour}


def _extras(table: OutcomeTable) -> dict:
    """The optional arrays by name; to be called after `_tokens`."""
    extras = {name: jnp.asarray(value) for name, value in table.extras.items()}
    for name, value in extras.items():
        _require(value.shape[:1] == table.probs.shape, f"extras[{name!r}]", "rows, one an outcome")
    return {"extras": extras, "prompt_extras": {name: jnp.asarray(x) for name, x in table.prompt_extras.items()}}


def _array(name, value, axes):
    value = jnp.asarray(value, jnp.float64)
    _require(value.ndim == axes and value.size > 0, name, f"an array of {axes} axes, not of shape {value.shape}")
    _require(bool(jnp.all(jnp.isfinite(value))), name, "finite")
    return value


def _token_logp(name, value, acted):
    """Padding may hold anything."""
    value = jnp.asarray(value, jnp.float64)
    _require(value.shape == acted.shape, name, f"of shape {acted.shape}, not {value.shape}")
    return _array(name, jnp.where(acted, value, 0), 2)


def _until(lengths, tokens):
    return jnp.broadcast_to(jnp.arange(tokens), (*lengths.shape, tokens)) < lengths[..., None]


def _size(scores):
    return jnp.maximum(1, jnp.max(jnp.abs(scores)))


def _require(truth: bool, field: str, what: str):
    if not truth:
        raise ValueError(f"OutcomeTable: {field} must be {what}")


def softmax_bandit(logits: Numbers, rewards: Numbers, lengths: Numbers | None = None, **fields) -> OutcomeTable:
    """π = softmax(logits), one outcome a logit; the parameters are the logits, so the score of outcome k is e_k - π."""
    need_float64()
    probs = jax.nn.softmax(jnp.asarray(logits, jnp.float64))
    return OutcomeTable(probs, jnp.eye(len(probs)) - probs[None, :], rewards, lengths, **fields)


def bernoulli(p: float, **fields) -> OutcomeTable:
    """A right answer with probability p, π = sigmoid(parameter): scores 1-p and -p."""
    return OutcomeTable([p, 1 - p], [[1 - p], [-p]], [1.0, 0.0], **fields)


def answers(vocab: int, eos: int, length: int) -> list[tuple[int, ...]]:
    """All answers: they end at their first `eos` or at `length` tokens, and are sorted by length, then by token."""
    others = [token for token in range(vocab) if token != eos]
    ended = [(*prefix, eos) for n in range(length) for prefix in itertools.product(others, repeat=n)]
    cut = list(itertools.product(others, repeat=length))
    return sorted(ended + cut, key=lambda answer: (len(answer), answer))


def path_logp(
    logits: Float[Array, "C V"], paths: Sequence[Sequence[int]], context: Callable[[Sequence[int]], int], length: int
) -> Float[Array, "N T"]:
    """log π(y_t | prefix) of each answer, 0 after its end."""
    table = jax.nn.log_softmax(logits, axis=-1)
    padded = [[(context(path[:t]), path[t]) if t < len(path) else (0, 0) for t in range(length)] for path in paths]
    row, token = jnp.moveaxis(jnp.asarray(padded), -1, 0)
    return jnp.where(_until(jnp.asarray([len(path) for path in paths]), length), table[row, token], 0)


def last_token(prefix: Sequence[int]) -> int:
    """Row 0 at the start, row 1 + the previous token after it: the context of a bigram policy."""
    return 1 + prefix[-1] if prefix else 0


def tabular_policy(
    logits: Numbers,
    reward: Callable[[tuple[int, ...]], float],
    *,
    eos: int,
    length: int,
    context: Callable[[Sequence[int]], int] = last_token,
    behaviour: Numbers | None = None,
    **fields,
) -> OutcomeTable:
    """π(y_t | prefix) = softmax(logits[context(prefix)])[y_t], every answer written out.

    The parameters are `logits` [C V], row by row; `behaviour` [C V] are the logits of the policy that is sampled from.
    """
    need_float64()
    logits = jnp.asarray(logits, jnp.float64)
    paths = answers(logits.shape[1], eos, length)
    of_paths = functools.partial(path_logp, paths=paths, context=context, length=length)
    logp, token_scores = jax.jit(lambda x: (of_paths(x), jax.jacfwd(of_paths)(x).reshape(len(paths), length, -1)))(
        logits
    )
    if behaviour is not None:
        fields["behaviour_logp"] = of_paths(jnp.asarray(behaviour, jnp.float64))
    return OutcomeTable(
        jnp.exp(jnp.sum(logp, axis=-1)),
        jnp.sum(token_scores, axis=1),
        [reward(path) for path in paths],
        [len(path) for path in paths],
        token_scores=token_scores,
        logp=logp,
        **fields,
    )
