"""GRPO steps of TRL's trainer, timed: the other side of grpo_step.py, run by it with the Python of an environment that
has torch, transformers and trl. Neither jax nor jaxrl_llm is imported.

    /tmp/trl/bin/python benchmarks/trl_step.py FOLDER < order.json
"""

import json
import pathlib
import sys
import time

import datasets
import torch
import transformers
import trl


class Clock(transformers.TrainerCallback):
    """Seconds of every optimizer step, sampling included."""

    def __init__(self):
        self.began, self.seconds = 0.0, []

    def on_step_begin(self, *_, **__):
        """A step begins."""
        self.began = time.perf_counter()

    def on_step_end(self, *_, **__):
        """It ends."""
        self.seconds.append(time.perf_counter() - self.began)
        print(f"step {len(self.seconds)}: {self.seconds[-1]:.2f} s, {peak():,} bytes", file=sys.stderr, flush=True)


def peak() -> int:
    """Bytes that this process has held at most."""
    status = pathlib.Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def settings(order: dict, folder: str) -> trl.GRPOConfig:
    """Plain GRPO without a reference model: AdamW on all parameters, one update a batch, all lengths forced."""
    prompts, answers, length = len(order["prompts"]), order["answers"], order["length"]
    batch = prompts * answers // order["accumulation"]
    return trl.GRPOConfig(
        output_dir=str(pathlib.Path(folder) / "trl"),
        **{"use_cpu": True, "bf16": False, "fp16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True},
        **{"max_steps": order["steps"], "learning_rate": order["learning_rate"], "lr_scheduler_type": "constant"},
        **{"per_device_train_batch_size": batch, "gradient_accumulation_steps": order["accumulation"]},
        **{"num_generations": answers, "max_completion_length": length, "temperature": 1.0, "beta": 0.0},
        **{"gradient_checkpointing": order["checkpointing"], "logging_steps": order["steps"], "seed": 0},
        generation_kwargs={"min_new_tokens": length},
        loss_type="grpo",
    )


def main() -> None:
    """Train, and print one line of JSON."""
    folder, order = sys.argv[1], json.load(sys.stdin)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for prompt, ids in zip(order["prompts"], order["ids"], strict=True):
        if tokenizer(prompt)["input_ids"] != ids:
            raise ValueError(f"{prompt!r} is spelled {tokenizer(prompt)['input_ids']}, not {ids}")
    sizes = set()

    def even(completion_ids: list[list[int]], **_) -> list[float]:
        sizes.update(map(len, completion_ids))
        return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]

    clock = Clock()
    trainer = trl.GRPOTrainer(
        model=model,
        reward_funcs=even,
        args=settings(order, folder),
        train_dataset=datasets.Dataset.from_dict({"prompt": order["prompts"] * order["steps"]}),
        processing_class=tokenizer,
        callbacks=[clock],
    )
    trainer.train()
    if sizes != {order["length"]}:
        raise ValueError(f"answers have {sorted(sizes)} tokens, not {order['length']}")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "trl": trl.__version__}
    print(json.dumps({"seconds": clock.seconds, "bytes": peak(), "threads": torch.get_num_threads()} | versions))


if __name__ == "__main__":
    main()
