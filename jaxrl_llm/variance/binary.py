"""Rewards of 0 and 1: a scheme is two rows of numbers, and four numbers of a prompt give its variance."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxrl_llm import masked
from jaxrl_llm.advantages import AdvantageTransform, bare_rollout
from jaxrl_llm.types import pytree
from jaxrl_llm.variance.moments import Number, at_least, gradient_norm2, ratio, refuse_behaviour, to_arrays
from jaxrl_llm.variance.tables import OutcomeTable

SAME = 1e-6  # credits that differ by less, relative to the largest, are the same credit
REFUSED = {
    "tokens": "the transform gives the tokens of one answer different credit",
    "prompts": "the transform reads the other prompts of the batch",
    "lengths": "the transform reads the lengths of the answers",
    "answers": "the transform gives answers of equal reward different credit",
}


class Scheme(NamedTuple):
    """The credit of right and wrong answers in a group with c of G right, c = 0..G; 0 where there is no such answer."""

    right: Float[Array, " C"]
    wrong: Float[Array, " C"]

    @property
    def coefficients(self) -> Float[Array, " G"]:
        """d(j) = A+(j+1) - A-(j), j < G: the Bernstein coefficients of F'(p)."""
        return self.right[1:] - self.wrong[:-1]


def scheme_of(transform: AdvantageTransform, group_size: int, state: Any = None) -> Scheme:
    """A+(c) and A-(c) of a transform, by its application to the G + 1 groups of 0/1 rewards.

    `state` as before the batch; a fresh one where not given. Raises ValueError for a transform whose credit depends on
    more than the number of right answers of the group.
    """
    traits, g = transform.traits, at_least("group_size", "answers", group_size, transform.traits.minimum_group)
    if traits.needs:
        raise ValueError(f"a scheme reads rewards alone, and the transform needs extras[{traits.needs[0]!r}]")
    if traits.minimum_prompts > 1:
        raise ValueError(f"a scheme reads one prompt, and the transform needs {traits.minimum_prompts}")
    scheme, refused = _probe(transform, g, transform.init() if state is None else state)
    for reason, sentence in REFUSED.items():
        if bool(refused[reason]):
            raise ValueError(f"{sentence}: a scheme gives A+(c) to right and A-(c) to wrong answers, c of G right")
    return scheme


@functools.partial(jax.jit, static_argnums=(0, 1))
def _probe(transform: AdvantageTransform, g: int, state):
    """The scheme, and which keys of REFUSED it shows: groups alone and together, answers of equal and other lengths."""
    reward = (jnp.arange(g)[None, :] < jnp.arange(g + 1)[:, None]).astype(float)
    equal = jnp.full(reward.shape, 3)
    other = jnp.broadcast_to((1 + jnp.arange(g) % 3)[None, :], reward.shape)

    def credit(reward, length):
        acted = jnp.arange(3)[None, None, :] < length[..., None]
        found, _ = transform.update(reward, state, bare_rollout(reward, acted=acted))
        return (found, acted) if found.ndim == 3 else (found[..., None], acted[..., :1])

    alone = jax.vmap(lambda r, n: credit(r[None], n[None])[0][0])(reward, equal)
    each, size = alone[..., 0], jnp.maximum(jnp.max(jnp.abs(alone)), 1)
    right, wrong = masked.mean(each, reward == 1, axis=1), masked.mean(each, reward == 0, axis=1)
    differ = lambda x, y, where=True: jnp.any(where & ~(jnp.abs(x - y) <= SAME * size))  # noqa: E731
    mixed, acted = credit(reward, other)
    return Scheme(right, wrong), {
        "tokens": differ(alone, alone[..., :1]),
        "prompts": differ(credit(reward, equal)[0], alone),
        "lengths": differ(mixed, alone[..., :1], acted),
        "answers": differ(each, jnp.where(reward == 1, right[:, None], wrong[:, None])),
    }


@pytree
@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryMoments:
    """Four numbers of a prompt with rewards 0 and 1, which give the variance of every `Scheme` at every G.

    p             pass rate
    tau_plus      τ+, trace of the covariance of the scores among the right answers
    tau_minus     τ-, the same among the wrong answers
    grad_p_norm2  |∇p|²
    """

    p: Number
    tau_plus: Number
    tau_minus: Number
    grad_p_norm2: Number

    def __post_init__(self):
        to_arrays(self)

    @classmethod
    def of(cls, table: OutcomeTable) -> "BinaryMoments":
        """Exactly, of a finite policy; τ of answers that do not occur is 0. Raises ValueError for other rewards."""
        refuse_behaviour(table)
        if not bool(jnp.all((table.rewards == 0) | (table.rewards == 1))):
            raise ValueError("BinaryMoments: rewards must be 0 or 1; RlooMoments takes any")
        g = table.gradient
        right, wrong = (_trace_among(table.scores, table.probs * (table.rewards == r)) for r in (1, 0))
        return cls(p=table.probs @ table.rewards, tau_plus=right, tau_minus=wrong, grad_p_norm2=g @ g)

    @classmethod
    def from_gram(cls, rewards: Float[Array, " M"], gram: Float[Array, "M M"]) -> "BinaryMoments":
        """From M >= 3 independent answers, of which two at least are right and two wrong, and the inner products sᵢ·sⱼ.

        Each field is unbiased (τ given how many are right). τ of fewer than two answers is reported as 0.
        """
        tau = [_trace_of_gram(gram, rewards == r) for r in (1, 0)]
        p, g2 = jnp.mean(rewards), gradient_norm2(rewards, gram)
        return cls(p=p, tau_plus=tau[0], tau_minus=tau[1], grad_p_norm2=g2)

    def weight(self, scheme: Scheme) -> Array:
        """F'_G(p) = Σ_j C(G-1, j) p^j q^(G-1-j) d(j): E ĝ = F'_G(p) ∇p, whatever the scores. Own derivation."""
        return binomial(self.p, len(scheme.right) - 2) @ scheme.coefficients

    def variance(self, scheme: Scheme) -> Array:
        """E_c[c A+² τ+ + (G-c) A-² τ-]/G² + Var_c[(c A+/p - (G-c) A-/q)/G] |∇p|², c ~ Bin(G, p). Own derivation.

        Given who is right, the scores are independent with means ∇p/p and -∇p/q. For moments of several prompts
        `jax.vmap(BinaryMoments.variance, (0, None))`.
        """
        g = len(scheme.right) - 1
        share, right = binomial(self.p, g), jnp.arange(g + 1)
        spread = right * scheme.right**2 * self.tau_plus + (g - right) * scheme.wrong**2 * self.tau_minus
        line = ratio(right * scheme.right, self.p, 0.0) - ratio((g - right) * scheme.wrong, 1 - self.p, 0.0)
        between = share @ (line - share @ line) ** 2
        return (share @ spread + between * self.grad_p_norm2) / g**2

    def bias2(self, scheme: Scheme) -> Array:
        """(F'_G(p) - 1)² |∇p|², for the gradient of the pass rate itself."""
        return (self.weight(scheme) - 1) ** 2 * self.grad_p_norm2

    def mse_rescaled(self, scheme: Scheme) -> Array:
        """Variance over F'_G(p)²: of ĝ/F'_G(p), which is unbiased for ∇p. Infinite where F'_G(p) is 0."""
        weight = self.weight(scheme)
        return jnp.where(weight == 0, jnp.inf, self.variance(scheme) / jnp.where(weight == 0, 1, weight) ** 2)

    @property
    def best_constant(self) -> Array:
        """b* = p E+[e]/(p E+[e] + q E-[e]), the share of the energy that right answers have: E+[e] = τ+ + |∇p|²/p²,
        E-[e] = τ- + |∇p|²/q². p where nothing has energy."""
        q = 1 - self.p
        right = self.p * self.tau_plus + ratio(self.grad_p_norm2, self.p, 0.0)
        both = right + q * self.tau_minus + ratio(self.grad_p_norm2, q, 0.0)
        return jnp.where(both == 0, self.p, ratio(right, both, 0.0))


@functools.partial(jax.jit, static_argnums=1)
def binomial(p: Number, trials: int) -> Float[Array, "*S n"]:
    """[... n+1], C(n, j) p^j (1-p)^(n-j), j = 0..n: the distribution of successes, and the Bernstein polynomials.

    One trial after another: no factorial overflows, and at p = 0 and 1 the value is exact.
    """
    p = jnp.asarray(p, float)[..., None]
    start = jnp.broadcast_to((jnp.arange(trials + 1) == 0).astype(p.dtype), (*p.shape[:-1], trials + 1))
    up = lambda x: jnp.concatenate([jnp.zeros_like(x[..., :1]), x[..., :-1]], axis=-1)  # noqa: E731
    return jax.lax.fori_loop(0, trials, lambda _, x: (1 - p) * x + p * up(x), start)


def _trace_among(scores, mass):
    """Trace of the covariance of the scores under `mass`, after division by its sum; 0 without mass."""
    among = mass / jnp.maximum(jnp.sum(mass), jnp.finfo(mass.dtype).tiny)
    return among @ jnp.sum((scores - (among @ scores)[None, :]) ** 2, axis=-1)


def _trace_of_gram(gram, where):
    """The same, unbiased, from n answers: (Σ Kᵢᵢ - ΣΣ Kᵢⱼ/n)/(n-1); 0 for n < 2."""
    n, among = jnp.sum(where), where.astype(gram.dtype)
    squares = among @ jnp.diagonal(gram) - among @ gram @ among / jnp.maximum(n, 1)
    return jnp.where(n > 1, squares / jnp.maximum(n - 1, 1), 0)
