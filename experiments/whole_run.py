"""A whole run of RL, after warm-up: as one compiled program for many seeds, or step by step from Python.

Both give the same numbers as `jaxrl_llm.train` from the same base policy, up to the rounding of float32.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm import random
from jaxrl_llm.config import Config
from jaxrl_llm.evaluate import Evaluator, held_out_figures
from jaxrl_llm.finite import SITES
from jaxrl_llm.measurements import answer_key
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules
from jaxrl_llm.sharding import MeshShape, fetch, must_block
from jaxrl_llm.types import Problems

RUNS = "runs"  # the axis of the runs that one program holds
TOGETHER = 256  # held-out problems decoded together, at most


class Trajectory(NamedTuple):
    """What a run has left: metrics by step [steps, ...], and held-out figures at step 0, at each look, and at the end.

    `failed` says where updates were refused until the run could not go on, else "".
    """

    metrics: dict[str, np.ndarray]
    looks: dict[int, dict[str, float]]
    failed: str


def on_one_device(config: Config) -> Programs:
    """Programs on the first device: the runs of a sweep are what fills it."""
    return Programs(dataclasses.replace(config, mesh=MeshShape()), jax.local_devices()[:1])


def compiled(programs: Programs, *, quick: bool = False) -> Callable[..., list[Trajectory]]:
    """`run(params, seeds, learning_rates)`: the runs of a task that grades on the device, as one program.

    Sampling, grading, selection, learning and held-out evaluation are one `lax.scan` over the steps, under `vmap` over
    the runs, which share the base policy. Seed and learning rate may differ from run to run. With `quick` it compiles
    in a fifth of the time and runs slower.
    """
    config = programs.config
    heldout = programs.task.heldout
    many = jax.vmap(_whole(programs), (None, None, None, 0, 0), axis_name=RUNS)
    program = jax.jit(many, compiler_options=_quick_options() if quick else None)

    def run(params: Params, seeds: Sequence[int], learning_rates: Sequence[float]) -> list[Trajectory]:
        numbers = jnp.asarray(seeds, jnp.int32), jnp.asarray(learning_rates, jnp.float32)
        metrics, looks = fetch(program(params, programs.problems, heldout, *numbers))
        parts = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
        return [_trajectory(config, parts(metrics, i), parts(looks, i)) for i in range(len(seeds))]

    return run


def by_hand(programs: Programs, evaluator: Evaluator, params: Params) -> Trajectory:
    """One run, a program a step, for any task; seed and learning rate are those of the configuration."""
    c = programs.config
    reference = params if _keeps_reference(c) else None
    state = programs.start(programs.learner, jax.tree.map(jnp.copy, params))
    rows, looks = [], {0: evaluator(params, 0)}
    for step in range(1, c.steps + 1):
        rollout = programs.sample(state.params, step)
        state, metrics, _ = programs.learn(state, reference, rollout)
        if must_block(programs.mesh):
            jax.block_until_ready(state)
        rows.append(metrics)
        if _due(c, step):
            looks[step] = evaluator(state.params, step)
    metrics = jax.tree.map(lambda *xs: np.stack(xs), *fetch(rows))
    return Trajectory(metrics, looks, _failure(c, metrics))


def _quick_options() -> dict[str, Any]:
    quick = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    for options in (quick, {"xla_backend_optimization_level": 0}):
        try:
            jax.jit(lambda: 0, compiler_options=options)()
        except jax.errors.JaxRuntimeError:  # an option that this version or this device does not have
            continue
        return options
    return {}


def _due(config: Config, step: Any) -> Any:
    return (step % config.eval_every == 0) | (step == config.steps)


def _keeps_reference(config: Config) -> bool:
    return config.measure_kl or config.recipe.uses_reference


def _whole(programs: Programs) -> Callable[..., tuple[dict, dict]]:
    """(params, problems, held-out problems, seed, learning rate) -> metrics and looks of the steps 0 ... steps.

    Step 0 only looks. What was not measured at a step is 0.
    """
    config = programs.config

    def whole(params, problems, heldout, seed, learning_rate):
        run = programs.traced(seed, learning_rate, RUNS)
        reference = params if _keeps_reference(config) else None

        def learn(state, step):
            state, metrics, _ = run.learner.learn(state, reference, run.rollout(state.params, problems, step))
            return state, metrics

        def look(params, step):
            return _look(run, params, heldout, step)

        def one(state, step):
            nothing = _zeros(learn, state, step)[1]
            state, metrics = jax.lax.cond(step > 0, learn, lambda state, step: (state, nothing), state, step)
            unseen = _zeros(look, state.params, step)
            looked = jax.lax.cond(_due(config, step), look, lambda params, step: unseen, state.params, step)
            return state, (metrics, looked)

        return jax.lax.scan(one, run.learner.init(params), jnp.arange(config.steps + 1))[1]

    return whole


def _zeros(function: Callable, *arguments: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(function, *arguments))


def _look(programs: Programs, params: Params, heldout: Problems, step: jax.Array) -> dict[str, jax.Array]:
    """What held-out figures are made of, a whole number a problem [N]; the same answers as those of `Evaluator`."""
    c, task = programs.config, programs.task
    count = min(c.eval_problems, len(heldout.prompt))
    batch = min(TOGETHER, count)
    key = random.stream_key(programs.seed, random.Stream.EVALUATION)

    def answered(rows, answers, rules):
        asked = jax.tree.map(lambda x: jnp.asarray(x)[rows], heldout)
        keys = random.answer_keys(key, step, rows, answers)
        out = programs.answers(params, asked.prompt, asked.prompt_mask, keys, rules)
        grade = task.grade(out.answer, out.acted, asked.truth)
        return out, grade.valid & (grade.reward >= 1 - 1e-6)

    def some(rows):
        greedy, right = answered(rows, 1, GREEDY)
        out, correct = answered(rows, c.eval_samples, SamplingRules())
        # An answer has as many votes as it has copies; each of the winners counts by its copies, so ties share.
        kind = answer_key(None, None, out)
        votes = jnp.sum(kind[..., None] == kind[..., None, :], axis=-1)
        won = votes == jnp.max(votes, axis=-1, keepdims=True)
        return {
            "right": right[:, 0],
            "length": jnp.sum(greedy.acted[:, 0], axis=-1),
            "truncated": greedy.truncated[:, 0],
            "correct": jnp.sum(correct, axis=-1),
            "winners": jnp.sum(won, axis=-1),
            "right_winners": jnp.sum(won & correct, axis=-1),
        }

    rows = jnp.minimum(jnp.arange(-(-count // batch) * batch), count - 1).reshape(-1, batch)
    return jax.tree.map(lambda x: x.reshape(-1)[:count], jax.lax.map(some, rows))


def _trajectory(config: Config, metrics: dict[str, np.ndarray], looks: dict[str, np.ndarray]) -> Trajectory:
    metrics = jax.tree.map(lambda x: x[1:], metrics)
    steps = [step for step in range(config.steps + 1) if step == 0 or _due(config, step)]
    figures = {step: _figures({name: x[step] for name, x in looks.items()}, config.eval_samples) for step in steps}
    return Trajectory(metrics, figures, _failure(config, metrics))


def _figures(look: dict[str, np.ndarray], samples: int) -> dict[str, float]:
    figures = held_out_figures(look["right"], look["length"], look["truncated"], look["correct"], samples)
    return figures | {"eval/majority": float(np.mean(look["right_winners"] / look["winners"]))}


def _failure(config: Config, metrics: dict[str, np.ndarray]) -> str:
    stuck = np.flatnonzero(metrics["nonfinite/streak"] >= config.max_nonfinite)
    if not len(stuck):
        return ""
    site = SITES[int(metrics["nonfinite/site"][stuck[0]]) - 1]
    return f"step {stuck[0] + 1}: {config.max_nonfinite} updates in a row were refused, a {site} was not finite"
