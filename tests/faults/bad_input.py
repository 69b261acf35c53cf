"""Wrong configurations and broken data files through the command line: is each refused at once, by name?

    python tests/faults/bad_input.py --configurations 200 --files 50 --seed 0

Each is `jaxrl-llm train ...` in this process. It must end with status 2 and words that name the field (of a file: the
place, and the field where there is one), before anything is compiled, leaving nothing behind. More are asked for than
exist: all of them.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import random
import re
import shutil
import sys
import tempfile

if __name__ == "__main__":
    root = pathlib.Path(__file__).parents[2]
    sys.path[:1] = [str(root), str(root / "tests" / "tasks")]

import jax
from broken_files import BROKEN

import jaxrl_llm.train
from jaxrl_llm import recipes, spec, tasks
from jaxrl_llm.cli import main as command
from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.config import DecoderConfig, Lora, Rope
from jaxrl_llm.sharding import MeshShape

PARTS = {"": Config, "warmup.": WarmUp, "model.": DecoderConfig, "model.rope.": Rope, "mesh.": MeshShape, "lora.": Lora}
SMALLEST = {"max_grad_norm": 0, "weight_decay": 0, "top_k": 0, "variance_every": 0, "max_steps": 0, "window": 0}
SMALLEST |= {"query_scale": 0, "attention_cap": 0, "logit_cap": 0, "local_rope_base": 0, "seed": 0, "rank": 0}
SMALLEST |= {"original_length": 0}
FREE = {"mesh.fsdp"}  # -1: the rest of the devices
ARGUMENTS = {"reasoning_gym": "zebra_puzzles", "critique": "base must be"}  # they look at `x` first
TABLES = {"jit(stage)", "jit(convert_element_type)"}  # what brings the problems of a task to the device
TOGETHER = [
    (["--answers-per-prompt", "1"], "answers_per_prompt=1"),
    (["--accumulation", "3"], "accumulation=3"),
    (["--prompts-per-step", "100000"], "prompts_per_step"),
    (["--model.kv-heads", "3"], "kv_heads"),
    (["--model.head-size", "7"], "head_size"),
    (["--model.windowed", "True"], "windowed"),
    (["--model.windowed", "True", "True", "True", "True"], "window"),
    (["--model.attention", "cudnn"], "bfloat16"),
    (["--model.rope.kind", "yarn"], "original_length"),
    (["--model.rope.kind", "llama3", "--model.rope.original-length", "8", "--model.rope.low", "9"], "low < high"),
    (["--lora.rank", "4", "--lora.targets", "query", "vlaue"], "lora.targets"),
    (["--lora.rank", "4", "--lora.targets", "query", "query"], "lora.targets"),
    (["--lora.rank", "4", "--lora.targets", "head"], "lora.targets"),
    (["--lora.rank", "4", "--variance-every", "5"], "variance_every"),
    (["--variance-every", "5", "--variance-estimators", "rlo"], "rlo"),
    (["--mesh.data", "-1"], "mesh"),
    (["--mesh.data", "1000"], "mesh 1000"),
    (["--mesh.tensor", "1000"], "1000 (data x fsdp x tensor)"),
    (["--pretrained", "/no/such/folder"], "pretrained"),
    (["--pretrained", "no_such_file.gguf"], "pretrained"),
    (["--task", "reasoning_gym:chain_sun"], "chain_sum"),
    (["--task", "reasoning_gym"], "reasoning_gym:NAME"),
    (["--task", "rows:nowhere.jsonl"], "nowhere.jsonl"),
    (["--task", "addition,digits=0"], "digits"),
    (["--recipe", "grpo,low"], "key=value"),
    (["--recipe", "grpo,low=0.1,low=0.2"], "given twice"),
    (["--recipe", "grpo:x"], "grpo"),
    (["--schedule", "cosine,warmup=-1"], "warmup must be 0 or more"),
    (["--schedule", "cosine,warmup=1.5"], "warmup takes int"),
    (["--out", "taken"], "--out"),
    (["--resume", "--out", "absent"], "absent"),
    (["--keep.every", "-1"], "keep.every"),
    (["--cluster", "of"], "--cluster"),
    (["--coordinator", "host:1"], "coordinator"),
    (["--init-timeout", "0"], "init_timeout"),
]


class AcceptedError(Exception):
    """The run would have begun."""


def accept(*_, **__):
    """Stands where a run makes its first program."""
    raise AcceptedError


def flags():
    """Each field of a configuration: its flag, its type as written, and what it is called in full."""
    for prefix, cls in PARTS.items():
        for field in dataclasses.fields(cls):
            if field.name not in ("warmup", "model", "mesh", "lora", "rope"):
                yield "--" + (prefix + field.name).replace("_", "-"), field, prefix + field.name


def wrong_configurations():
    """All of them: (arguments, words of the refusal). Names are off by a letter, values no numbers or out of range."""
    found = list(TOGETHER)
    for flag, field, name in flags():
        kind = getattr(field.type, "__name__", "")
        typo = flag[:-2] + flag[-1] + flag[-2]
        found.append(([typo, "1"], flag))
        if kind in ("int", "float"):
            found.append(([flag, "many"], flag))
        if kind in ("int", "float") and name not in FREE:
            found.append(([flag, str(SMALLEST.get(field.name, 1 if kind == "int" else 0) - 1)], field.name))
        if kind == "float":
            found += [([flag, value], field.name) for value in ("nan", "inf")]
        if kind == "int":
            found.append(([flag, "1.5"], flag))
        if kind == "bool":
            found.append(([flag, "perhaps"], "perhaps"))  # a switch takes no word
        if kind == "Literal":
            found.append(([flag, "perhaps"], flag))
    for flag, module in (("--recipe", recipes), ("--task", tasks)):
        for name, function in spec.public_functions(module).items():
            found.append(([flag, name[:-1] + "zz"], "there is no"))
            argument = ":x" if ":" in spec.signature(name, function) else ""
            found.append(([flag, f"{name}{argument},kye=1"], ARGUMENTS.get(name, "no argument 'kye'")))
    return found


def broken_files(folder):
    """All of them: (arguments, words of the refusal)."""
    for name, (file, content, words) in BROKEN.items():
        path = folder / name.replace(" ", "_") / file
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        yield ["--task", f"rows:{path},workers=1"], words


def refusal(arguments, compiled):
    """How a request ended that is not refused as it must be, or None; and what it said."""
    compiled.clear()
    before = sorted(pathlib.Path.cwd().rglob("*"))
    said, status, wrong = io.StringIO(), None, None
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            command(["train", *arguments])
    except AcceptedError:
        wrong = "it was accepted"
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        wrong = f"it raised {type(error).__name__}: {error}"
    if wrong is None and status != 2:
        wrong = f"it ended with status {status}"
    if wrong is None and compiled:
        wrong = f"compiled: {', '.join(compiled)}"
    if sorted(pathlib.Path.cwd().rglob("*")) != before:
        wrong = wrong or "it left files behind"
        shutil.rmtree("runs", ignore_errors=True)
    return wrong, re.sub(r"[\s│]+", " ", said.getvalue())


def campaign(requests):
    """Failures of the requests [(arguments, words)]: each with its cause and what was said."""
    compiled, failures = [], []

    def watch(event, *_, fun_name="?", **__):
        if event.endswith("backend_compile_duration") and fun_name not in TABLES:
            compiled.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(watch)
    original, jaxrl_llm.train.Evaluator = jaxrl_llm.train.Evaluator, accept
    try:
        for arguments, words in requests:
            wrong, said = refusal(arguments, compiled)
            if wrong is None and words not in said:
                wrong = f"it does not say {words!r}"
            if wrong:
                failures.append({"arguments": arguments, "wrong": wrong, "said": said[-300:]})
                print(failures[-1], file=sys.stderr, flush=True)
    finally:
        jaxrl_llm.train.Evaluator = original
    return failures


def some(members, count, seed):
    """So many of them at random, or all."""
    return members if count >= len(members) else random.Random(seed).sample(members, count)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", type=int, default=200)
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as data:
        os.chdir(folder)
        pathlib.Path("taken").mkdir()
        pathlib.Path("taken/config.json").write_text("{}")
        configurations = some(wrong_configurations(), asked.configurations, asked.seed)
        files = some(list(broken_files(pathlib.Path(data))), asked.files, asked.seed)
        failures = campaign([*configurations, *files])
        os.chdir("/")
    print(json.dumps({"configurations": len(configurations), "files": len(files), "failures": len(failures)}))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
