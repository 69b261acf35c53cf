"""One run as one value, checked before anything is compiled."""

import dataclasses
import math
from typing import Annotated, Any, Literal, TypeVar

from tyro.constructors import PrimitiveConstructorSpec

from jaxrl_llm import published, recipes, schedules, spec, tasks
from jaxrl_llm.estimators import estimators_of
from jaxrl_llm.measurements import MEASURED
from jaxrl_llm.policies.config import WAYS, DecoderConfig, Lora, read_decoder, read_lora
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.select.plan import Plan
from jaxrl_llm.sharding import MeshShape
from jaxrl_llm.types import Task
from jaxrl_llm.variance.units import LEAST_UNITS

# Entries of `Rollout.extras` that the trainer itself can give.
GIVEN = (
    *("noise", "greedy_reward", "token_energy", "energy", "entropy", "duration", "answer_key"),
    *("drift", "component_influence", "role"),
)

OPTIMIZERS = ("adamw", "sgd")


class ConfigError(ValueError):
    """A field, or a combination of fields, that cannot be run; the message names it and the nearest valid choice."""


T = TypeVar("T")

# On the command line such a field is text; `Config` looks it up once the cheap checks have passed.
Spelled = Annotated[
    T | str,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME[,KEY=VALUE...]",
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: True,
        str_from_instance=lambda value: [value if isinstance(value, str) else value.spec],
    ),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WarmUp:
    """Supervised warm-up on the task's own solutions, until the policy is right part of the time."""

    accuracy: float = 0.45  # stop once this fraction of held-out problems is solved greedily
    max_steps: int = 2000  # stop here at the latest; 0: no warm-up
    check_every: int = 5  # steps between two looks at the accuracy
    batch: int = 128  # solutions per step, or as many as the task has, in equal shares for the devices
    learning_rate: float = 1e-3  # of Adam, constant


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """One run. A field that chooses behaviour holds the function that behaves, or its spelling on the command line."""

    task: Spelled[Task] = "addition"  # what is asked and how answers are graded: NAME[,KEY=VALUE...]
    recipe: Spelled[recipes.Recipe] = "grpo"  # the method: NAME[,KEY=VALUE...]
    pretrained: str = ""  # a model to start from: a Hugging Face folder, a .gguf file, or OWNER/NAME of the hub
    seed: int = 0  # of all randomness; same seed, same machine: same numbers
    steps: int = 300  # policy-gradient steps, after warm-up
    prompts_per_step: int = 64  # prompts of a step, P
    answers_per_prompt: int = 8  # answers to each prompt, G; 2 or more for a group baseline
    optimizer: Literal["adamw", "sgd"] = "adamw"  # sgd: parameters move by learning_rate times the gradient
    learning_rate: float = 5e-4  # of the optimizer, at its peak
    schedule: Spelled[schedules.Schedule] = "cosine"  # learning rate over updates: NAME[,warmup=N]
    max_grad_norm: float = 1.0  # gradients are scaled down to this Euclidean norm; 0: never
    weight_decay: float = 0.0  # decoupled from the gradient; 0: none
    epochs: int = 1  # updates on each rollout; from the second on the policy has left the sampled one
    accumulation: int = 1  # micro-batches per update: less memory, the same numbers
    temperature: float = 1.0  # of sampling, above 0
    top_k: int = 0  # sample from this many likeliest tokens; 0: all
    top_p: float = 1.0  # sample from the fewest likeliest tokens with this probability; 1: all
    exact_logp: bool = False  # learn from log-probabilities that the learner itself gives: one more forward pass a step
    sample_in_bfloat16: bool = False  # answers are sampled by a copy in bfloat16; the metrics sampling/... tell the gap
    measure_kl: bool = True  # log the KL to the policy before RL: one more forward pass a step
    max_nonfinite: int = 5  # stop after so many refused (non-finite) updates in a row
    eval_every: int = 20  # steps between held-out evaluations
    eval_problems: int = 512  # held-out problems evaluated, at most
    eval_samples: int = 8  # answers sampled per held-out problem, for pass@k and majority vote
    eval_batch: int = 256  # held-out problems decoded together, at most
    checkpoint_every: int = 50  # steps between checkpoints
    keep_checkpoints: int = 2  # newest ones kept
    samples_every: int = 50  # steps between tables of sampled answers
    variance_every: int = 0  # steps between comparisons of estimators on the batch of the step; 0: never
    variance_estimators: tuple[str, ...] = ("rloo", "grpo", "reinforce")  # recipes compared; the first is the baseline
    warmup: WarmUp = dataclasses.field(default_factory=WarmUp)
    model: DecoderConfig = dataclasses.field(default_factory=DecoderConfig)
    mesh: MeshShape = dataclasses.field(default_factory=MeshShape)
    lora: Lora = dataclasses.field(default_factory=Lora)

    def __post_init__(self):
        # Cheap checks first: a task may take seconds to build.
        self._check_numbers()
        hub = self._published() if self.pretrained else None
        self._check_lora()
        for name, module, cls in (("recipe", recipes, recipes.Recipe), ("schedule", schedules, schedules.Schedule)):
            self._resolve(name, module)
            if not isinstance(getattr(self, name), cls):
                raise ConfigError(f"{name} must be a {cls.__name__} or its name, not {getattr(self, name)!r}")
        self._check_recipe()
        self._resolve("task", tasks)
        self._check_task()
        self._set_vocabulary(hub)
        if self.variance_every:
            self._check_variance()

    def _resolve(self, name: str, module: Any) -> None:
        if isinstance(getattr(self, name), str):
            object.__setattr__(self, name, spec.build(module, getattr(self, name), name))

    def _published(self) -> Any:
        """What the model in `pretrained` says of itself; the fields that follow from it are set.

        It does not warm up unless asked to, and a task that can takes the model's tokenizer.
        """
        try:
            hub = published.describe(self.pretrained)
        except (OSError, ValueError) as error:
            raise ConfigError(f"pretrained: {error}") from error
        if self.model.computed_as(DecoderConfig()) not in (DecoderConfig(), hub.config):
            raise ConfigError(
                f"model: its shape comes with pretrained; of its fields only {', '.join(WAYS)} may be set"
            )
        object.__setattr__(self, "model", hub.config.computed_as(self.model))
        if self.warmup == WarmUp():
            object.__setattr__(self, "warmup", WarmUp(max_steps=0))
        if isinstance(self.task, str):
            object.__setattr__(self, "task", spec.with_default(tasks, self.task, "tokenizer", self.pretrained))
        return hub

    def _set_vocabulary(self, hub: Any) -> None:
        """Rows of the embedding: those of the published model, else one a token."""
        tokens = self.task.tokenizer.vocab_size
        if hub is not None and tokens > hub.vocab_size:
            raise ConfigError(
                f"pretrained: {self.pretrained} knows {hub.vocab_size} tokens, and those of task {self.task.spec} are "
                f"{tokens}: give it tokenizer={self.pretrained}"
            )
        object.__setattr__(self, "_vocab_size", hub.vocab_size if hub is not None else tokens)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self._vocab_size

    @property
    def plan(self) -> Plan | None:
        """What is drawn and what is kept of it, where the recipe says so."""
        return self.recipe.plan and self.recipe.plan(self.prompts_per_step, self.answers_per_prompt)

    @property
    def sampling(self) -> SamplingRules:
        """How rollouts are sampled."""
        return SamplingRules(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def _check_numbers(self) -> None:
        at_least(
            self,
            **{"prompts_per_step": 1, "answers_per_prompt": 1, "steps": 1, "epochs": 1, "accumulation": 1},
            **{"eval_every": 1, "eval_problems": 1, "eval_samples": 1, "eval_batch": 1, "checkpoint_every": 1},
            **{"keep_checkpoints": 1, "samples_every": 1, "variance_every": 0, "max_nonfinite": 1},
            **{"max_grad_norm": 0, "weight_decay": 0},
        )
        at_least(self.warmup, prefix="warmup.", max_steps=0, check_every=1, batch=1)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**31:
            raise ConfigError(f"seed must be an integer from 0 to 2**31 - 1, not {self.seed!r}")
        for name, rate in (("learning_rate", self.learning_rate), ("warmup.learning_rate", self.warmup.learning_rate)):
            if not (math.isfinite(rate) and rate > 0):
                raise ConfigError(f"{name} must be a finite number above 0, not {rate}")
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"there is no optimizer {self.optimizer!r}{spec.nearest(self.optimizer, [*OPTIMIZERS])}")
        if not 0 < self.warmup.accuracy <= 1:
            raise ConfigError(f"warmup.accuracy must be above 0 and at most 1, not {self.warmup.accuracy}")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature must be above 0, not {self.temperature}: greedy answers of a group are equal"
            )
        try:
            SamplingRules(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.prompts_per_step % self.accumulation:
            divisors = [n for n in range(1, self.prompts_per_step + 1) if self.prompts_per_step % n == 0]
            best = min(divisors, key=lambda n: abs(n - self.accumulation))
            raise ConfigError(
                f"accumulation={self.accumulation} must divide prompts_per_step={self.prompts_per_step}: nearest {best}"
            )

    def _check_lora(self) -> None:
        try:
            self.lora.check(self.model)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        if self.lora.rank and self.variance_every:
            raise ConfigError(
                "variance_every measures gradients of all parameters, and lora.rank leaves all but adapters as they "
                "are: set it to 0; `jaxrl-llm variance` takes a checkpoint with its adapters merged"
            )

    def _check_recipe(self) -> None:
        traits = self.recipe.advantage.traits
        name = self.recipe.spec.split(",")[0]
        if self.answers_per_prompt < traits.minimum_group:
            raise ConfigError(
                f"answers_per_prompt={self.answers_per_prompt}: recipe {name} compares the answers of a group and "
                f"needs at least {traits.minimum_group}"
            )
        if self.prompts_per_step < traits.minimum_prompts:
            raise ConfigError(
                f"prompts_per_step={self.prompts_per_step}: recipe {name} compares prompts and needs at least "
                f"{traits.minimum_prompts}"
            )
        try:
            plan = self.plan
        except ValueError as error:
            raise ConfigError(f"recipe {name}: {error}") from error
        if plan is not None and plan.answers is not None and plan.answers < self.answers_per_prompt:
            raise ConfigError(
                f"answers_per_prompt={self.answers_per_prompt}: recipe {name} draws {plan.answers} answers to a prompt "
                f"and keeps some of them"
            )

    def _check_task(self) -> None:
        rows = len(self.task.train.prompt)
        times = self.plan.prompts if self.plan else 1
        if self.prompts_per_step * times > rows:
            raise ConfigError(
                f"prompts_per_step={self.prompts_per_step}{f' (x {times} drawn)' if times > 1 else ''}, but task "
                f"{self.task.spec} has {rows} training problems: at most {rows // times}"
            )
        name, names = self.recipe.spec.split(",")[0], self.task.component_names
        if self.recipe.reward.components > len(names):
            raise ConfigError(
                f"recipe {name} reads {self.recipe.reward.components} reward components, but task {self.task.spec} "
                f"gives {len(names)} ({', '.join(names)})"
            )
        given = {*GIVEN, *self.recipe.gives, *self.task.train.truth}
        for need in self.recipe.needs:
            if need not in given:
                raise ConfigError(
                    f"recipe {name} reads {need!r}, which neither the trainer nor task {self.task.spec} gives"
                    f"{spec.nearest(need, sorted(given))}"
                )
        if self.warmup.max_steps and not bool(self.task.train.solution_mask.any()):
            raise ConfigError(f"task {self.task.spec} knows no solutions to imitate: set warmup.max_steps to 0")

    def _check_variance(self) -> None:
        if self.recipe.plan is not None:
            raise ConfigError(
                f"variance_every: recipe {self.recipe.spec.split(',')[0]} trains on answers that it has chosen"
            )
        given = {*MEASURED, *self.recipe.needs, *self.task.train.truth}
        for name, estimator in estimators_of(self.variance_estimators).items():
            traits = estimator.advantage.traits
            if self.answers_per_prompt < max(traits.minimum_group, 2):
                raise ConfigError(f"variance_estimators: {name} needs more than {self.answers_per_prompt} answers")
            if self.prompts_per_step // traits.least_batch < LEAST_UNITS:
                least = LEAST_UNITS * traits.least_batch
                raise ConfigError(f"variance_estimators: {name} needs prompts_per_step={least} for an interval")
            for need in traits.needs:
                if need not in given:
                    raise ConfigError(
                        f"variance_estimators: {name} reads {need!r}, which the run does not have"
                        f"{spec.nearest(need, sorted(given))}"
                    )

    def to_json(self) -> dict[str, Any]:
        """The resolved configuration, in plain types."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        spelled = {name: values[name].spec for name in ("task", "recipe", "schedule")}
        nested = {name: dataclasses.asdict(values[name]) for name in ("warmup", "model", "mesh", "lora")}
        return values | spelled | nested

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """The inverse of `to_json`. Raises ConfigError for a field that does not exist, SpecError for a lost name."""
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise ConfigError(f"there is no field {name!r}{spec.nearest(name, sorted(known))}")
        nested = {"warmup": WarmUp, "model": read_decoder, "mesh": MeshShape, "lora": read_lora}
        read = {name: lambda value, kind=kind: kind(**value) for name, kind in nested.items()}
        read["variance_estimators"] = tuple
        return cls(**{name: read[name](value) if name in read else value for name, value in values.items()})


def at_least(holder: Any, *, prefix: str = "", **smallest: int) -> None:
    """Refuse fields below their smallest value."""
    for name, least in smallest.items():
        value = getattr(holder, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value >= least or math.isinf(value):
            raise ConfigError(f"{prefix}{name} must be {least} or more, not {value!r}")
