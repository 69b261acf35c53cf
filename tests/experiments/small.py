"""A sweep of the smallest size whose answers are right now and then."""

import dataclasses

from experiments.sweep import Sweep
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.config import DecoderConfig

MODEL = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=32)
BASE = Config(
    **{"task": "addition,digits=1,heldout=20", "recipe": "rloo", "steps": 5, "prompts_per_step": 16},
    **{"answers_per_prompt": 4, "learning_rate": 3e-3, "eval_every": 2, "eval_samples": 4, "seed": 1},
    **{"model": MODEL, "warmup": WarmUp(max_steps=60, check_every=30, learning_rate=1e-2)},
)


def sweep(arms=None, seeds=(0, 1), chunk=8, **changes):
    return Sweep(
        base=dataclasses.replace(BASE, **changes), arms=arms or {"rloo": {}}, seeds=seeds, chunk=chunk, quick=True
    )


def without_time(records):
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]
