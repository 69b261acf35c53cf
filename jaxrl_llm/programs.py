"""The compiled programs of a run, built from its configuration: sample, grade, learn, imitate."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen import unbox
from jaxtyping import Array, Float, Int

from jaxrl_llm import masked, published, random
from jaxrl_llm.advantages import no_baseline, per_token
from jaxrl_llm.checkpoint import abstract
from jaxrl_llm.config import Config, ConfigError
from jaxrl_llm.distributed import several
from jaxrl_llm.grading import graded
from jaxrl_llm.learner import Learner, TrainState
from jaxrl_llm.losses import Objective, cross_entropy, token_mean
from jaxrl_llm.policies.policy import Params, Policy, in_bfloat16
from jaxrl_llm.random import Stream
from jaxrl_llm.rollouts.demonstrations import demonstration
from jaxrl_llm.rollouts.generate import Answers, generate
from jaxrl_llm.rollouts.rescoring import rescoring
from jaxrl_llm.rollouts.sampler import Sampler, ungraded
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules
from jaxrl_llm.rollouts.screening import everything, screened
from jaxrl_llm.rollouts.select.plan import Plan
from jaxrl_llm.rollouts.stopping import Stopping, limits
from jaxrl_llm.sharding import born_sharded, by_prompt, fetch, make_mesh, place, prompt_shards, replicated
from jaxrl_llm.sharding import state_shardings as shardings_of
from jaxrl_llm.trained import Trained, build_optimizer, clipped
from jaxrl_llm.types import Grade, Problems, Rollout


class Programs:
    """Everything of a run that is compiled, each part once. Holds no state of training."""

    def __init__(self, config: Config, devices: list | None = None, sampler: Sampler | None = None):
        """`sampler` draws the answers of training in place of the decode loop on the devices."""
        if sampler is not None and several():
            raise ConfigError("a sampler that draws answers elsewhere works with a single process only")
        self.config, self.task, self.seed, self.runs, self.sampler = config, config.task, config.seed, None, sampler
        self.mesh = make_mesh(config.mesh, devices)
        check_batches(config, prompt_shards(self.mesh))
        self.policy = Policy(config.model, config.vocab_size)
        self.problems = place(self.task.train, replicated(self.mesh))
        self.agenda = everything(len(self.task.train.prompt))
        learning_rate = config.schedule.build(config.learning_rate, config.steps * config.epochs)
        recipe, self.trained = config.recipe, Trained(config, self.mesh)
        self.learner = Learner(
            policy=self.trained.policy,
            advantage=recipe.advantage,
            objective=recipe.objective,
            optimizer=build_optimizer(config, learning_rate),
            learning_rate=learning_rate,
            reward=recipe.reward,
            anchor=recipe.anchor,
            companion=recipe.companion and recipe.companion(self.trained.policy),
            accumulation=config.accumulation,
            epochs=config.epochs,
            rescored=rescoring(config.exact_logp, same=sampler is None and not config.sample_in_bfloat16),
            seed=config.seed,
        )
        self.imitator = Learner(
            policy=self.policy,
            advantage=per_token(no_baseline()),
            objective=Objective(surrogate=cross_entropy, aggregate=token_mean()),
            optimizer=optax.chain(clipped(1.0), optax.adam(config.warmup.learning_rate)),
            learning_rate=lambda updates: config.warmup.learning_rate,
        )
        whole, split = replicated(self.mesh), by_prompt(self.mesh)
        self._ask = jax.jit(self._ask_step, out_shardings=split)
        self._sample = jax.jit(self._sample_step, out_shardings=(split, split))
        self._greedy = jax.jit(self._greedy_step, out_shardings=split)
        self._grade = jax.jit(self._grade_step, out_shardings=split)
        self._select = jax.jit(select_step(config.plan), out_shardings=split)
        self._learn = jax.jit(
            self._learn_step, donate_argnums=0, out_shardings=(self._shardings(self.learner), whole, split)
        )
        self._imitate = jax.jit(
            self._imitate_step, donate_argnums=0, out_shardings=(self._shardings(self.imitator), whole)
        )

    def _key(self, stream: Stream) -> Array:
        return random.stream_key(self.seed, stream)

    def _shardings(self, learner: Learner) -> TrainState:
        return shardings_of(self.mesh, lambda key: self.trained.state(learner, key), self._key(Stream.PARAMETERS))

    def traced(self, seed: Int[Array, ""], learning_rate: Float[Array, ""], runs: str | None = None) -> "Programs":
        """The same parts for a seed and a learning rate that are traced, in `rollout`, `answers` and `learner.learn`.

        Under `jax.vmap` give the name of its axis as `runs`: all runs then end their decoding together.
        """
        other, c = copy.copy(self), self.config
        schedule = c.schedule.build(learning_rate, c.steps * c.epochs)
        optimizer = build_optimizer(c, schedule)
        other.seed, other.runs = seed, runs
        other.learner = dataclasses.replace(self.learner, seed=seed, optimizer=optimizer, learning_rate=schedule)
        return other

    def rollout(self, params: Params, problems: Problems, step: Int[Array, ""]) -> Rollout:
        """What `sample` gives, as one pure function, for a task that grades on the device."""
        rollout, truth = self._sample_step(params, problems, step)
        greedy = None
        if "greedy_reward" in self.learner.needs:
            greedy = self._grade_step(self._greedy_step(params, rollout, truth), truth)
        rollout = self._grade_step(rollout, truth)
        plan = self.config.plan
        return rollout if greedy is None and plan is None else select_step(plan)(rollout, greedy)

    def fresh_params(self) -> Params:
        """Parameters at the start of the run, born sharded or loaded part by part."""
        if self.config.pretrained:
            key = self._key(Stream.PARAMETERS)
            return published.load(self.config.pretrained, lambda policy: shardings_of(self.mesh, policy.init, key))
        return born_sharded(self.mesh, self.policy.init, self._key(Stream.PARAMETERS))[0]

    def start(self, learner: Learner, params: Params) -> TrainState:
        """State of step 0 around given parameters."""
        make = lambda trunk, params: self.trained.around(learner, trunk).init(params)  # noqa: E731
        return jax.jit(make, out_shardings=self._shardings(learner))(self.trained.trunk, params)

    def begin(self, params: Params) -> tuple[TrainState, Params]:
        """State of step 0 of RL, and the policy before RL as `learn` takes it. The state is donated step by step; the
        reference is not, and so neither is the trunk of adapters."""
        reference = jax.tree.map(lambda x: x.copy(), self.trained.reference(params))
        return self.start(self.learner, self.trained.fresh(params)), reference

    def state_like(self, learner: Learner | None = None) -> TrainState:
        """Shapes and shardings of the state of a learner, by default that of RL, for restoring."""
        make = lambda key: self.trained.state(learner or self.learner, key)  # noqa: E731
        shapes = unbox(jax.eval_shape(make, self._key(Stream.PARAMETERS)))
        return abstract(shapes, self._shardings(learner or self.learner))

    def screen(self, correct: np.ndarray) -> None:
        """Keep and order the training problems by which attempts [N S] of the policy before RL were right.

        Once, before the first `sample`. Raises ConfigError where fewer problems stay than a step draws.
        """
        recipe = self.config.recipe
        try:
            self.agenda = screened(recipe.screening, correct)
        except ValueError as error:
            raise ConfigError(f"recipe {recipe.spec}: {error}") from error
        needed, stay = drawn(self.config)[0], len(self.agenda.rows)
        if stay < needed:
            raise ConfigError(
                f"recipe {recipe.spec} keeps {stay} of {len(correct)} training problems and a step draws {needed}: at "
                f"most prompts_per_step={stay * self.config.prompts_per_step // needed}"
            )

    def sample(self, params: Params, step: int) -> Rollout:
        """Answers to the prompts of a step (from 1), their grades, and what else of them the recipe needs."""
        if self.sampler is None:
            rollout, truth = self._sample(params, self.problems, jnp.int32(step))
        else:
            rows, asked, keys = self._ask(self.problems, jnp.int32(step))
            limit = limits(asked.truth, keys.shape[1])
            out = self.sampler(
                params, asked.prompt, asked.prompt_mask, keys, self.config.sampling, self.stopping, limit
            )
            rollout, truth = self._told(place(out, by_prompt(self.mesh)), rows, asked, step), asked.truth
        greedy = None
        if "greedy_reward" in self.learner.needs:
            greedy = self.grade(self._greedy(params, rollout, truth), truth)
        rollout = self.grade(rollout, truth)
        return rollout if greedy is None and self.config.plan is None else self._select(rollout, greedy)

    def grade(self, rollout: Rollout, truth: Any) -> Rollout:
        """Fill in the reward: on the device, or on the host for a task that grades text."""
        if self.task.on_device:
            return self._grade(rollout, truth)
        answer, acted, truth = fetch((rollout.answer, rollout.acted, truth))
        return with_grade(rollout, place(graded(self.task, answer, acted, truth), by_prompt(self.mesh)))

    def learn(self, state: TrainState, reference: Params | None, rollout: Rollout) -> tuple[TrainState, dict, Array]:
        """One RL step; the state that goes in is used up."""
        return self._learn(state, self.trained.trunk, reference, rollout)

    def imitate(self, state: TrainState, step: int) -> tuple[TrainState, dict]:
        """One step of supervised warm-up; the state that goes in is used up."""
        return self._imitate(state, self.problems, jnp.int32(step))

    def _learn_step(
        self, state: TrainState, trunk: Params, reference: Params | None, rollout: Rollout
    ) -> tuple[TrainState, dict, Array]:
        return self.trained.around(self.learner, trunk).learn(state, reference, rollout)

    def _ask_step(self, problems: Problems, step: Int[Array, ""]) -> tuple[Array, Problems, Array]:
        """Rows and problems of a step, and the keys of the answers to them."""
        prompts, answers = drawn(self.config)
        agenda = self.agenda
        rows = agenda.rows[agenda.places(self._key(Stream.ORDER), step - 1, prompts, len(agenda.rows))]
        rows = jax.lax.with_sharding_constraint(rows, by_prompt(self.mesh))
        keys = random.answer_keys(self._key(Stream.ROLLOUT), step, rows, answers)
        return rows, jax.tree.map(lambda x: x[rows], problems), keys

    def _sample_step(self, params: Params, problems: Problems, step: Int[Array, ""]) -> tuple[Rollout, Any]:
        rows, asked, keys = self._ask_step(problems, step)
        limit = limits(asked.truth, keys.shape[1])
        out = self._decode(params, asked.prompt, asked.prompt_mask, keys, self.config.sampling, limit)
        return self._told(out, rows, asked, step), asked.truth

    def _told(self, out: Answers, rows: Array, asked: Problems, step: Int[Array, ""] | int) -> Rollout:
        """The rollout of answers to the problems in these rows."""
        rollout = ungraded(out, asked.prompt, asked.prompt_mask, len(self.task.component_names))
        given = {name: x for name, x in asked.truth.items() if name in self.learner.needs}
        noise = random.answer_noise(self._key(Stream.SELECTION), step, rows, out.truncated.shape[1])
        version = jnp.full(out.truncated.shape, step - 1)
        return dataclasses.replace(rollout, prompt_id=rows, version=version, extras={"noise": noise, **given})

    def _greedy_step(self, params: Params, rollout: Rollout, truth: Any) -> Rollout:
        """The likeliest answer to each prompt of a rollout, not yet graded."""
        keys = random.answer_keys(self._key(Stream.ROLLOUT), 0, rollout.prompt_id, 1)
        return self.answers(params, rollout.prompt, rollout.prompt_mask, keys, GREEDY, limits(truth, 1))

    def answers(
        self, params: Params, prompt: Array, mask: Array, keys: Array, rules: SamplingRules, limit: Array | None = None
    ) -> Rollout:
        """Answers that nobody has graded, each of at most its `limit` of tokens where there is one."""
        out = self._decode(params, prompt, mask, keys, rules, limit)
        return ungraded(out, prompt, mask, len(self.task.component_names))

    def _decode(
        self, params: Params, prompt: Array, mask: Array, keys: Array, rules: SamplingRules, limit: Array | None
    ) -> Answers:
        policy = self.policy
        if self.config.sample_in_bfloat16:
            policy, params = in_bfloat16(policy, params)
        return generate(policy, params, prompt, mask, keys, rules, self.stopping, limit)

    @property
    def stopping(self) -> Stopping:
        """When an answer to the task ends."""
        return Stopping.of(self.task, parts=prompt_shards(self.mesh), runs=self.runs)

    def _grade_step(self, rollout: Rollout, truth: Any) -> Rollout:
        return with_grade(rollout, self.task.grade(rollout.answer, rollout.acted, truth))

    def _imitate_step(
        self, state: TrainState, problems: Problems, step: Int[Array, ""]
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        count, shards = len(problems.prompt), prompt_shards(self.mesh)
        batch = max(shards, min(self.config.warmup.batch, count) // shards * shards)
        rows = random.epoch_rows(self._key(Stream.WARMUP), step - 1, batch, count)
        rows = jax.lax.with_sharding_constraint(rows, by_prompt(self.mesh))
        chosen = jax.tree.map(lambda x: x[rows], problems)
        new, metrics, _ = self.imitator.learn(state, None, demonstration(chosen, rows))
        return new, {"loss": metrics["loss"], "entropy": metrics["entropy"], "nonfinite/streak": new.streak}


def drawn(config: Config) -> tuple[int, int]:
    """How many prompts are asked in a step, and how many answers to each are sampled."""
    plan = config.plan
    if plan is None:
        return config.prompts_per_step, config.answers_per_prompt
    return plan.prompts * config.prompts_per_step, plan.answers or config.answers_per_prompt


def select_step(plan: Plan | None) -> Callable[[Rollout, Rollout | None], Rollout]:
    """The part of a graded pool that is trained on, with the rewards of greedy answers and the number of tokens drawn.

    A greedy answer that could not be graded has reward 0: as a baseline any number will do that no sample has moved.
    """

    def select(pool: Rollout, greedy: Rollout | None) -> Rollout:
        if greedy is not None:
            reward = jnp.where(greedy.valid, greedy.reward, 0)[:, 0]
            pool = dataclasses.replace(pool, extras={**pool.extras, "greedy_reward": reward})
        chosen = plan.select(pool) if plan else pool
        prompts, tokens = chosen.reward.shape[0], masked.count(pool.acted)
        share = tokens // prompts + (jnp.arange(prompts) < tokens % prompts)  # whole numbers that add up
        return dataclasses.replace(chosen, extras={**chosen.extras, "drawn_tokens": share})

    return select


def with_grade(rollout: Rollout, grade: Grade) -> Rollout:
    """The rollout with its reward, components and validity filled in; an answer that does not exist has no grade."""
    valid = rollout.valid & grade.valid
    return dataclasses.replace(rollout, reward=grade.reward, components=grade.components, valid=valid)


def check_batches(config: Config, shards: int) -> None:
    """Refuse batches that the devices cannot share evenly."""
    size = config.prompts_per_step
    if size % shards:
        nearest = max(shards, round(size / shards) * shards)
        raise ConfigError(f"prompts_per_step={size} must be a multiple of data x fsdp = {shards}: nearest {nearest}")
    if (config.prompts_per_step // config.accumulation) % shards:
        each = config.prompts_per_step // shards
        most = max(n for n in range(1, each + 1) if each % n == 0 and n <= config.accumulation)
        raise ConfigError(
            f"accumulation={config.accumulation} leaves some of the {shards} shards without a prompt: nearest {most}"
        )
