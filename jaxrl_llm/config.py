"""One run as one value, checked before anything is compiled."""

import dataclasses
from typing import Annotated, Any, Literal, TypeVar

from tyro.constructors import PrimitiveConstructorSpec

from jaxrl_llm import config_checks, published, recipes, schedules, spec, tasks
from jaxrl_llm.config_checks import ConfigError
from jaxrl_llm.policies.config import WAYS, DecoderConfig, Lora, read_decoder, read_lora
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.select.plan import Plan
from jaxrl_llm.sharding import MeshShape
from jaxrl_llm.types import Task

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
    exact_logp: bool = False  # the learner scores answers again, one more forward pass a step: no gap left in ratios;
    # where a copy in bfloat16 or a server samples, what it says of the distribution that was sampled is kept
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
        config_checks.check_numbers(self)
        hub = self._published() if self.pretrained else None
        config_checks.check_lora(self)
        for name, module, cls in (("recipe", recipes, recipes.Recipe), ("schedule", schedules, schedules.Schedule)):
            self._resolve(name, module)
            if not isinstance(getattr(self, name), cls):
                raise ConfigError(f"{name} must be a {cls.__name__} or its name, not {getattr(self, name)!r}")
        config_checks.check_recipe(self)
        self._resolve("task", tasks)
        config_checks.check_task(self)
        self._set_vocabulary(hub)
        if self.variance_every:
            config_checks.check_variance(self)

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
