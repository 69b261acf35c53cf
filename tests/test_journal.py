"""What a log counts from the first step on, counted on after a restart."""

import types

import jax.numpy as jnp

from jaxrl_llm.config import Config
from jaxrl_llm.display import Progress
from jaxrl_llm.journal import Journal
from jaxrl_llm.metrics import MetricsLog, read_metrics
from jaxrl_llm.programs import Programs
from jaxrl_llm.train import _so_far


def programs(counts):
    made = Programs.__new__(Programs)
    made.task = types.SimpleNamespace(counts=counts, component_names=())
    made.config = Config(task="addition,digits=1,terms=2", prompts_per_step=2, answers_per_prompt=2)
    made.agenda = types.SimpleNamespace(rows=range(8))
    return made


def life(folder, steps, counts, start=None):
    """One process that logs these steps, of 5 tokens each, while its graders lose an answer a step."""
    with MetricsLog(folder, start) as log:
        journal = Journal(programs(counts), log, Progress(9, quiet=True), _so_far(folder))
        for step in steps:
            counts["timeouts"] += 1
            metrics = {
                "num_tokens": jnp.asarray(5),
                "reward/component": jnp.zeros(0),
                "nonfinite/streak": jnp.asarray(0),
            }
            journal.put(step, metrics, None, {})
            journal.flush()


def test_counts_go_on_behind_a_restart(tmp_path):
    life(tmp_path, range(1, 4), {"timeouts": 0})
    life(tmp_path, range(3, 6), {"timeouts": 0}, start=2)
    curves = read_metrics(tmp_path)
    assert curves["ungraded/timeouts"] == ([1, 2, 3, 4, 5], [1, 2, 3, 4, 5])
    assert curves["num_tokens"] == ([1, 2, 3, 4, 5], [5, 10, 15, 20, 25])
