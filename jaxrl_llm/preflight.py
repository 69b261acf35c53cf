"""Does a run fit into the memory of its devices? Read off its compiled programs before the first of them runs.

bytes of a phase on one device = what stays (parameters, moments, reference, problems) + what the phase is given, makes
and needs on the way (arguments + results - results that reuse arguments + temporary)

All of a phase is live at once, so a run that is refused could not have run; one that passes may still be short of
memory where the allocator leaves gaps. Nothing is compiled twice: a run takes these very programs.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.config import Config, ConfigError
from jaxrl_llm.evaluate import Evaluator
from jaxrl_llm.policies.policy import Adapted
from jaxrl_llm.programs import Programs, select_step, with_grade
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules
from jaxrl_llm.sharding import by_prompt, device_room, prompt_shards, replicated
from jaxrl_llm.types import Grade

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes on each device while a phase runs: those that stay, and those of the phase."""

    phase: str
    stays: int
    own: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return self.stays + self.own


def require_room(programs: Programs, evaluator: Evaluator, room: int | None = None) -> list[Need]:
    """What each phase needs. Raises ConfigError, with the field to change, for the first that exceeds the memory of a
    device; `room`: its bytes, default: those of the smallest of this process."""
    room = device_room(programs.mesh) if room is None else room
    stays = _bytes(_staying(programs))
    if stays > room:
        raise ConfigError(_too_much(programs, evaluator, Need("parameters and moments", stays, 0.0), room))
    needs = []
    for need in _needs(programs, evaluator, stays):
        if need.total > room:
            raise ConfigError(_too_much(programs, evaluator, need, room))
        needs.append(need)
    return needs


def _needs(programs: Programs, evaluator: Evaluator, stays: int) -> Iterator[Need]:
    """What each phase needs, one after the other."""
    if programs.config.warmup.max_steps:
        # Nothing of RL is there yet: all parameters with moments, under adapters too.
        state, problems = programs.state_like(programs.imitator), _on(programs.problems, replicated(programs.mesh))
        given = state, problems, jax.ShapeDtypeStruct((), np.int32)
        yield Need("warm-up", _bytes((state, problems)), _own((programs._imitate, given, (state, problems))))
    for phase, made in _phases(programs, evaluator).items():
        yield Need(phase, stays, _own(made))


def _phases(programs: Programs, evaluator: Evaluator) -> dict[str, tuple]:
    """The program of each phase, what it is given, and which of that stays anyway."""
    acting, split = acting_like(programs), by_prompt(programs.mesh)
    count = jax.ShapeDtypeStruct((), np.int32)
    problems = _on(programs.problems, replicated(programs.mesh))
    sample = programs._sample
    if programs.config.recipe.screening:
        # The run's own sampling must not be traced before it is known which problems stay, so a copy is.
        sample = jax.jit(copy.copy(programs)._sample_step, out_shardings=(split, split))
    held = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((evaluator.batch, *x.shape[1:]), x.dtype, sharding=split), evaluator.table
    )
    rows = jax.ShapeDtypeStruct((evaluator.batch,), np.int32, sharding=split)
    looks = ((1, GREEDY), (evaluator.samples, SamplingRules()))
    phases = {
        f"evaluation with {answers} answers": (evaluator._decode, (acting, (held, rows), 0, answers, rules), (acting,))
        for answers, rules in looks
    }
    if programs.sampler is None:
        phases["sampling"] = (sample, (acting, problems, count), (acting, problems))
    state, trunk, reference = programs.state_like(), trunk_like(programs), reference_like(programs)
    anchor = reference if programs.config.measure_kl or programs.config.recipe.uses_reference else None
    rollout = rollout_like(programs)
    phases["learning"] = (programs._learn, (state, trunk, anchor, rollout), (state, trunk, anchor))
    return phases


def _own(phase: tuple) -> float:
    """Bytes that a phase takes beside what stays; inf where the compiler itself finds no room for it."""
    program, arguments, staying = phase
    try:
        used = program.lower(*arguments).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf
    if used is None:  # a backend that does not say
        return 0.0
    made = used.output_size_in_bytes - used.alias_size_in_bytes + used.temp_size_in_bytes
    given = used.argument_size_in_bytes - _bytes(staying)
    return float(max(0, given) + max(0, made) + used.generated_code_size_in_bytes)


def _staying(programs: Programs) -> Any:
    """What is on the devices all the time. The weights of adapters merged into a copy count as theirs."""
    acting = acting_like(programs) if programs.config.lora.rank and programs.config.lora.merged else ()
    held = programs.state_like(), trunk_like(programs), reference_like(programs), acting
    return held, _on(programs.problems, replicated(programs.mesh))


def trunk_like(programs: Programs) -> Any:
    """Shapes and shardings of the frozen parameters under adapters; () without adapters."""
    return programs.trained.params_like() if programs.config.lora.rank else ()


def reference_like(programs: Programs) -> Any:
    """Those of the policy before RL, as `learn` takes it."""
    return programs.state_like().params


def acting_like(programs: Programs) -> Any:
    """Those of what samples."""
    lora = programs.config.lora
    if lora.rank and not lora.merged:
        return Adapted(trunk=trunk_like(programs), low_rank=programs.state_like().params)
    return programs.trained.params_like()


def rollout_like(programs: Programs) -> Any:
    """Those of a graded rollout as `learn` takes it."""
    p, config = programs, programs.config

    def graded(rollout):
        worth = jnp.zeros(rollout.truncated.shape)
        parts = jnp.zeros((*worth.shape, len(p.task.component_names)))
        return with_grade(rollout, Grade(reward=worth, components=parts, valid=worth == 0))

    def make(params, problems, step):
        rollout, truth = p._sample_step(params, problems, step)
        greedy = graded(p._greedy_step(params, rollout, truth)) if "greedy_reward" in p.learner.needs else None
        rollout = graded(rollout)
        return rollout if greedy is None and config.plan is None else select_step(config.plan)(rollout, greedy)

    shapes = jax.eval_shape(make, acting_like(p), p.problems, jax.ShapeDtypeStruct((), np.int32))
    return _on(shapes, by_prompt(p.mesh))


def _on(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _bytes(tree: Any) -> int:
    """Bytes of a tree on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _too_much(programs: Programs, evaluator: Evaluator, need: Need, room: int) -> str:
    size = f"more than the {room / GIB:.3g} GiB" if need.own == math.inf else f"{need.total / GIB:.3g} GiB"
    where = "that each device has" if need.own == math.inf else f"on each device, which has {room / GIB:.3g} GiB"
    of_rl = "" if need.phase == "warm-up" else ", reference"
    stays = f"{need.stays / GIB:.3g} GiB are parameters, moments{of_rl} and problems"
    return f"memory: {need.phase} needs {size} {where} ({stays}): {_advice(programs, evaluator, need, room)}"


def _advice(programs: Programs, evaluator: Evaluator, need: Need, room: int) -> str:
    """The field to change, and to what, as far as bytes grow with the size of a batch."""
    config: Config = programs.config
    share = max(0.0, room - need.stays) / need.own if need.own else 0.0
    if need.own == 0:
        smaller = "raise mesh.fsdp (more devices)" if config.lora.rank else "set lora.rank (adapters have few moments)"
        return f"{smaller}, or lower model.width or model.layers"
    if need.phase.startswith("evaluation"):
        return f"lower eval_batch={config.eval_batch} to about {max(1, int(share * evaluator.batch))}"
    if need.phase == "warm-up":
        batch = config.warmup.batch
        return f"lower warmup.batch={batch} to about {max(1, int(share * batch))}, or set warmup.max_steps=0"
    if need.phase == "sampling":
        lower = max(1, int(share * config.prompts_per_step))
        return f"lower prompts_per_step={config.prompts_per_step} to about {lower}, or answers_per_prompt"
    most = config.prompts_per_step // prompt_shards(programs.mesh)
    better = [n for n in range(config.accumulation + 1, most + 1) if most % n == 0]
    wanted = config.accumulation / share if share else math.inf
    if better:
        value = next((n for n in better if n >= wanted), better[-1])
        return (
            f"raise accumulation={config.accumulation} to {value}, which changes no number, or lower prompts_per_step"
        )
    return f"lower answers_per_prompt={config.answers_per_prompt} or the answer length of the task"
