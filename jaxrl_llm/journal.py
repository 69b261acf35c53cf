"""The log of a run, one step late: rows of metrics, tables of sampled answers, and the stop on refused updates."""

import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxrl_llm.display import Progress
from jaxrl_llm.distributed import summed
from jaxrl_llm.evaluate import Evaluator
from jaxrl_llm.finite import SITES
from jaxrl_llm.metrics import MetricsLog
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs, drawn
from jaxrl_llm.sharding import fetch
from jaxrl_llm.tokenizers import decode_answers
from jaxrl_llm.types import Rollout

SAMPLED_PROMPTS = 4  # prompts whose answers are shown in the table of samples


class NonFiniteError(RuntimeError):
    """So many updates in a row were refused that the run cannot go on."""


class Journal:
    """Writes the row of a step once the next one is under way, so that the device never waits for the host."""

    def __init__(self, programs: Programs, log: MetricsLog | None, progress: Progress, before: Mapping[str, int]):
        """`log`: of process 0; the others have none. `before`: what it has counted so far, by the names of the log."""
        self.programs, self.log, self.progress, self.before = programs, log, progress, before
        self.tokens = before.get("num_tokens", 0)
        self.pending: tuple | None = None
        self.evaluation: dict[str, float] = {}
        self.evaluated: int | None = None  # the step of that evaluation
        self.mark, self.aside = time.perf_counter(), 0.0

    def put(
        self, step: int, metrics: dict[str, Any], sample: tuple[Rollout, Any] | None, extra: dict[str, float]
    ) -> None:
        """Take the row of a new step, still on the device but for `extra`, and write the one before."""
        self.flush()
        self.pending = (step, metrics, sample, dict(extra))

    def evaluate(self, evaluator: Evaluator, params: Params, step: int) -> None:
        """Add held-out figures to the row that waits."""
        jax.block_until_ready(params)  # or the step would count as evaluation
        began = time.perf_counter()
        self.evaluation, self.evaluated = evaluator(params, step), step
        seconds = time.perf_counter() - began
        self.aside += seconds
        self.pending[3].update(self.evaluation, **{"perf/eval_seconds": seconds})

    def sync(self) -> None:
        """Write the row that waits, and wait until the disk has all rows."""
        self.flush()
        if self.log is not None:
            self.log.sync()

    def flush(self) -> None:
        """Write the row that waits, if one does. Raises NonFiniteError when too many updates were refused."""
        if self.pending is None:
            return
        (step, metrics, sample, extra), self.pending = self.pending, None
        metrics = fetch(metrics)
        now = time.perf_counter()
        seconds, self.mark, self.aside = now - self.mark - self.aside, now, 0.0
        config, task = self.programs.config, self.programs.task
        components = metrics.pop("reward/component")
        tokens = int(metrics.pop("num_tokens"))
        self.tokens += tokens
        row = {name: value.item() for name, value in metrics.items()} | extra
        row |= {f"reward/component/{name}": float(x) for name, x in zip(task.component_names, components, strict=True)}
        counts = {f"ungraded/{cause}": count for cause, count in summed(getattr(task, "counts", {})).items()}
        row |= {name: count + self.before.get(name, 0) for name, count in counts.items()}
        row |= {
            "num_tokens": self.tokens,
            "epoch": step / (len(self.programs.agenda.rows) // drawn(config)[0]),
            "perf/step_seconds": seconds,
            "perf/tokens_per_second": tokens / seconds,
        }
        sample = fetch(sample)
        if self.log is not None:
            self.log.log(step, row)
            if sample is not None:
                self.log.log_samples(step, sample_rows(task, *sample))
        self.progress.update(step, row)
        if row["nonfinite/streak"] >= config.max_nonfinite:
            site = SITES[int(row["nonfinite/site"]) - 1]
            raise NonFiniteError(
                f"step {step}: {int(row['nonfinite/streak'])} updates in a row were refused because a {site} was not "
                f"finite; the parameters are those of the last good update"
            )


def sample_rows(
    task: Any, rollout: Rollout, credit: np.ndarray, prompts: int = SAMPLED_PROMPTS
) -> list[dict[str, Any]]:
    """The answers to the first few prompts, as rows of the table of samples."""
    answers = decode_answers(task.tokenizer, rollout.answer[:prompts], rollout.acted[:prompts])
    return [
        {
            "prompt": task.tokenizer.decode(rollout.prompt[p][rollout.prompt_mask[p]].tolist()),
            "answer": text,
            "reward": float(rollout.reward[p, g]),
            "advantage": float(credit[p, g]),
            "truncated": bool(rollout.truncated[p, g]),
        }
        for p, group in enumerate(answers)
        for g, text in enumerate(group)
    ]
