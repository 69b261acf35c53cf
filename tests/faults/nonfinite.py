"""Put NaN, +inf and -inf into a training step at every site, and see that nothing of it stays.

    python tests/faults/nonfinite.py --steps 100 --seed 0

For each site a run of so many steps, about half of them with a bad value at a random place: a reward, a recorded
log-probability, a logit, a gradient, a moment, a parameter. After each step all parameters, moments and the state of
the estimator are finite, and a bad step has left them as they were, is counted and has its site named. At the end they
are, bit by bit, those of a run that never saw the bad steps.
"""

import argparse
import dataclasses
import json
import pathlib
import sys

if __name__ == "__main__":
    sys.path[:1] = [str(pathlib.Path(__file__).parents[2]), str(pathlib.Path(__file__).parents[1])]

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tiny
from learners import learner

from jaxrl_llm import recipes
from jaxrl_llm.finite import SITES

VALUES = (np.nan, np.inf, -np.inf)
PLACES = ("reward", "logit", "log-probability", "gradient", "moment", "parameter")


@jax.custom_vjp
def sting(x, value, at):
    """x; in its gradient there is `value` where `at` points, unless that is 0."""
    del value, at
    return x


def _sting_back(kept, slope):
    value, at = kept
    flat = slope.reshape(-1)
    return flat.at[at % flat.size].add(value).reshape(slope.shape), None, None


sting.defvjp(lambda x, value, at: (x, (value, at)), _sting_back)


def spoilt(tree, value, at):
    """The tree with `value` added to one number of its first leaf of fractions."""
    leaves, structure = jax.tree.flatten(tree)
    first = next(i for i, x in enumerate(leaves) if jnp.issubdtype(x.dtype, jnp.inexact))
    flat = leaves[first].reshape(-1)
    leaves[first] = flat.at[at % flat.size].add(value).reshape(leaves[first].shape)
    return jax.tree.unflatten(structure, leaves)


@dataclasses.dataclass(frozen=True)
class Spoilt(tiny.Bigram):
    """A policy of which a number in front of the head is bad."""

    value: jax.Array = None
    at: jax.Array = None

    def score(self, params, prefix, answer):
        return spoilt(super().score(params, prefix, answer), self.value, self.at)


def step(site, policy, recipe):
    """A compiled step (state, rollout, value, at) -> state, metrics, in which `value` is added at the site."""

    def run(state, rollout, value, at):
        adam, own, objective = optax.adam(1e-2), policy, recipe.objective
        count = rollout.reward.size
        if site == "reward":
            where = (at % count) // rollout.reward.shape[1], at % rollout.reward.shape[1]
            rollout = dataclasses.replace(rollout, reward=rollout.reward.at[where].add(value))
        if site == "log-probability":
            where = (at % count) // rollout.reward.shape[1], at % rollout.reward.shape[1], 0
            rollout = dataclasses.replace(rollout, behaviour_logp=rollout.behaviour_logp.at[where].add(value))
        if site == "logit":
            own = Spoilt(policy.config, policy.vocab_size, value=value, at=at)
        if site == "gradient":
            surrogate = objective.surrogate
            stung = lambda t: surrogate(dataclasses.replace(t, logp=sting(t.logp, value, at)))  # noqa: E731
            objective = dataclasses.replace(objective, surrogate=stung)

        def update(grads, moments, params):
            updates, moments = adam.update(grads, moments, params)
            moments = spoilt(moments, value, at) if site == "moment" else moments
            return (spoilt(updates, value, at) if site == "parameter" else updates), moments

        optimizer = optax.GradientTransformation(adam.init, update)
        built = learner(own, recipe, optimizer, objective=objective)
        state, metrics, _ = built.learn(state, None, rollout)
        return state, metrics

    return tiny.jit(run)


def kept(state):
    return state.params, state.moments, state.credit


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def trial(site, steps, seed):
    """Numbers of bad steps, by what became of them; `wrong` names the first failure, if there is one."""
    policy, params = tiny.bigram()
    recipe = recipes.reinforce(baseline=True)
    rng = np.random.default_rng(seed)
    batches = [tiny.ragged(policy, params, noise=0.3, seed=n) for n in range(4)]
    batches = [dataclasses.replace(b, valid=jnp.ones_like(b.valid)) for b in batches]
    # Every answer is of full length, so that every place that is hit counts.
    batches = [dataclasses.replace(b, acted=jnp.ones_like(b.acted)) for b in batches]
    run = step(site, policy, recipe)
    state = learner(policy, recipe, optax.adam(1e-2)).init(params)
    clean, bad_steps = state, 0
    for number in range(1, steps + 1):
        batch = batches[number % len(batches)]
        bad = number > 1 and bool(rng.integers(2))
        value = jnp.float32(rng.choice(VALUES) if bad else 0)
        after, metrics = run(state, batch, value, jnp.int32(rng.integers(10_000)))
        bad_steps += bad
        named = int(metrics["nonfinite/site"])
        word = SITES[named - 1] if named else "nothing"
        if word != (site if bad else "nothing"):
            return {"site": site, "wrong": f"step {number}: {word} named, value {value}"}
        if bad and not same(kept(after), kept(state)):
            return {"site": site, "wrong": f"step {number}: a bad step has left a trace"}
        if int(metrics["nonfinite/skipped"]) != bad_steps:
            return {"site": site, "wrong": f"step {number}: {int(metrics['nonfinite/skipped'])} counted"}
        if not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(kept(after))):
            return {"site": site, "wrong": f"step {number}: something is not finite"}
        state = after
        if not bad:
            clean, _ = run(clean, batch, jnp.float32(0), jnp.int32(0))
    wrong = None if same(kept(state), kept(clean)) else "the end is not that of the good steps alone"
    return {"site": site, "steps": steps, "bad": bad_steps, "wrong": wrong}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    trials = []
    for site in PLACES:
        trials.append(trial(site, asked.steps, asked.seed))
        print(trials[-1], file=sys.stderr, flush=True)
    wrong = [t for t in trials if t["wrong"]]
    print(json.dumps({"sites": len(trials), "bad": sum(t.get("bad", 0) for t in trials), "wrong": wrong}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
