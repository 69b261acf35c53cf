"""Arms of a sweep: what each changes of the base, and which runs are the same."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from jaxrl_llm import spec
from jaxrl_llm.config import Config, ConfigError, WarmUp
from jaxrl_llm.policies.config import DecoderConfig

Arm = Mapping[str, Any] | Config
# Fields that change no number of a sweep.
SILENT = ("mesh", "checkpoint_every", "keep_checkpoints", "samples_every", "variance_every", "variance_estimators")
# What a smoke run changes, whatever an arm says of it.
SMOKE = {
    **{"steps": 4, "prompts_per_step": 8, "answers_per_prompt": 4, "accumulation": 1},
    **{"eval_every": 2, "eval_problems": 32},  # with the samples of the base: an experiment may read its pass@k
    "warmup": WarmUp(max_steps=10, check_every=10, batch=32),
    "model": DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=32),
}


def arm_config(base: Config, name: str, arm: Arm) -> Config:
    """The base with the fields of an arm. Raises ConfigError, which names the arm, for one that cannot be run."""
    if isinstance(arm, Config):
        return dataclasses.replace(arm, seed=base.seed)
    known = [field.name for field in dataclasses.fields(Config) if field.name != "seed"]
    changes = dict(arm)
    for field, value in changes.items():
        if field == "seed":
            raise ConfigError(f"arm {name!r}: the sweep gives the seed")
        if field not in known:
            raise ConfigError(f"arm {name!r}: there is no field {field!r}{spec.nearest(field, known)}")
        if isinstance(value, Mapping):
            part = getattr(base, field)
            inner = [each.name for each in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []
            for key in value:
                if key not in inner:
                    raise ConfigError(f"arm {name!r}: {field} has no field {key!r}{spec.nearest(key, inner)}")
            changes[field] = dataclasses.replace(part, **value)
    try:
        return dataclasses.replace(base, **changes)
    except ValueError as error:
        raise ConfigError(f"arm {name!r}: {error}") from error


def read_arm(text: str) -> tuple[str, dict[str, Any]]:
    """`RECIPE[@FIELD=VALUE...]`, as a command line has it -> name and changes. Raises ConfigError for another form."""
    recipe, *pairs = text.split("@")
    changes: dict[str, Any] = {"recipe": recipe}
    for pair in pairs:
        field, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"arm {text!r}: {pair!r} is not of the form FIELD=VALUE")
        try:
            changes[field] = json.loads(value)
        except ValueError:
            changes[field] = value
    return text, changes


def digest(config: Config, but: tuple[str, ...] = ()) -> str:
    """The same for two runs with the same fields, whose methods are told apart by their spelling; `but` is left out."""
    fields = {name: value for name, value in config.to_json().items() if name not in (*SILENT, *but)}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def base_digest(config: Config) -> str:
    """The same for two runs that start from the same base policy."""
    fields = config.to_json()
    kept = {name: fields[name] for name in ("task", "model", "warmup", "seed", "eval_problems")}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def smaller(arm: Arm) -> Arm:
    """An arm without what a smoke run decides, but for the size of its groups, which may be all that sets it apart."""
    if isinstance(arm, Config):
        return dataclasses.replace(arm, **SMOKE)
    return {field: value for field, value in arm.items() if field not in SMOKE or field == "answers_per_prompt"}
