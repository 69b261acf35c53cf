"""Read a run's checkpoint back, evaluate it, and look at what it says."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jaxrl_llm import random
from jaxrl_llm.checkpoint import Checkpoints
from jaxrl_llm.config import Config
from jaxrl_llm.display import ROW_NAMES
from jaxrl_llm.evaluate import Evaluator, best_constant
from jaxrl_llm.metrics import RunError, run_folder, wilson_interval
from jaxrl_llm.policies.policy import Params
from jaxrl_llm.programs import Programs
from jaxrl_llm.rollouts.generate import generate
from jaxrl_llm.rollouts.sampling import SamplingRules
from jaxrl_llm.rollouts.stopping import Stopping, limits
from jaxrl_llm.runs import read_config
from jaxrl_llm.sharding import fetch
from jaxrl_llm.tokenizers import decode_answers
from jaxrl_llm.types import Problems, Tokenizer


def load_run(run: str | os.PathLike[str], step: int | None = None) -> tuple[Programs, Params, int]:
    """The programs of a run's configuration, and the parameters of a checkpoint (default: the newest) with its step.

    Adapters are merged into their trunk. Raises as `load_trained`.
    """
    programs, params, step = load_trained(run, step)
    return programs, programs.trained.merged(params), step


def load_trained(run: str | os.PathLike[str], step: int | None = None) -> tuple[Programs, Params, int]:
    """The same with what was trained alone: adapters where the run has them, the trunk being in the programs.

    Raises RunError where there is no run or no checkpoint in it, CheckpointError where the step is not there.
    """
    folder = run_folder(run)
    programs = Programs(Config.from_json(read_config(folder)))
    with Checkpoints(pathlib.Path(folder) / "checkpoints") as checkpoints:
        if checkpoints.latest() is None:
            raise RunError(f"{folder} holds no checkpoint yet")
        state = checkpoints.restore(programs.state_like(), step)
    if programs.config.lora.rank:
        with Checkpoints(pathlib.Path(folder) / "reference", 1) as store:
            programs.trained.reference(store.restore(programs.trained.params_like()))
    return programs, state.params, int(state.step)


def evaluate_run(run: pathlib.Path, *, step: int | None, split: str, problems: int, samples: int, seed: int) -> dict:
    """Evaluate a checkpoint, print the table, and return the figures by their names in the glossary."""
    for name, value in (("problems", problems), ("samples", samples)):
        if value < 1:
            raise RunError(f"{name} must be 1 or more, not {value}")
    programs, params, step = load_run(run, step)
    evaluator = Evaluator(programs.policy, programs.task, programs.mesh, seed, problems, samples, split)
    figures = evaluator(params, step)
    low, high = wilson_interval(figures["eval/accuracy"], evaluator.problems)
    table = Table(title=f"{run}, step {step}: {evaluator.problems} {split} problems, {samples} samples each")
    table.add_column("")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        interval = f"  [{low:.3f}, {high:.3f}]" if name == "eval/accuracy" else ""
        table.add_row(ROW_NAMES.get(name, name.removeprefix("eval/")), f"{value:.3f}{interval}")
    constant = best_constant(programs.task, problems)
    if constant is not None and split == "heldout":
        table.add_row(f"best constant answer ({constant[1]})", f"{constant[0]:.3f}")
    Console().print(table)
    return figures


def sample_run(
    run: pathlib.Path, prompts: list[str], *, step: int | None, answers: int, rules: SamplingRules, seed: int
) -> None:
    """Print answers of a checkpoint to given prompts, or to the first held-out problems with their rewards."""
    if answers < 1:
        raise RunError(f"answers must be 1 or more, not {answers}")
    programs, params, step = load_run(run, step)
    task = programs.task
    if prompts:
        tokens, mask = pad_prompts(task.tokenizer, prompts)
    else:
        first: Problems = jax.tree.map(lambda x: x[:5], task.heldout)
        tokens, mask = first.prompt, first.prompt_mask
    rows = jnp.arange(len(tokens))
    keys = random.answer_keys(random.stream_key(seed, random.Stream.SAMPLE), step, rows, answers)
    stopping = Stopping.of(task)
    limit = None if prompts else limits(first.truth, answers)
    out = jax.jit(lambda p: generate(programs.policy, p, tokens, mask, keys, rules, stopping, limit))(params)
    reward = None if prompts else np.asarray(task.grade(out.answer, out.acted, first.truth).reward)
    out = fetch(out)
    table = Table(title=f"{run}, step {step}")
    for heading in ("prompt", "answer", "log-probability (nats)", *([] if reward is None else ["reward"])):
        table.add_column(heading)
    for i, group in enumerate(decode_answers(task.tokenizer, out.answer, out.acted)):
        prompt = task.tokenizer.decode(np.asarray(tokens[i])[np.asarray(mask[i])].tolist())
        for g, text in enumerate(group):
            # Text of a model may look like markup; Text shows it as it is.
            cells = [Text(prompt if g == 0 else ""), Text(text), f"{float(out.behaviour_logp[i, g].sum()):.2f}"]
            table.add_row(*cells, *([] if reward is None else [f"{reward[i, g]:g}"]))
        table.add_section()
    Console().print(table)


def pad_prompts(tokenizer: Tokenizer, prompts: list[str]) -> tuple[jax.Array, jax.Array]:
    """Prompts as tokens [P L], BOS first, padded on the left, and their mask. ValueError for text it cannot spell."""
    ids = [[tokenizer.bos, *tokenizer.encode(text)] for text in prompts]
    length = max(len(row) for row in ids)
    tokens = [[tokenizer.pad] * (length - len(row)) + row for row in ids]
    mask = [[False] * (length - len(row)) + [True] * len(row) for row in ids]
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask)
