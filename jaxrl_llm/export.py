"""A checkpoint of a run as a Hugging Face folder, which `transformers` and every inference server load."""

import os
import pathlib

from rich.console import Console

from jaxrl_llm import published
from jaxrl_llm.config import Config
from jaxrl_llm.inspect_run import load_trained
from jaxrl_llm.metrics import RunError
from jaxrl_llm.policies.hub.config_json import Hub, family_of
from jaxrl_llm.policies.hub.load import save_folder
from jaxrl_llm.policies.hub.peft_folder import save_adapter
from jaxrl_llm.published_tokenizer import PublishedTokenizer, save_published


def export_run(
    run: str | os.PathLike[str], out: pathlib.Path, step: int | None = None, adapter: bool = False
) -> pathlib.Path:
    """Write config.json, weights in float32, and the tokenizer where it is a published one; return the folder.

    Adapters are merged into the weights, or with `adapter` written alone as PEFT reads them. Raises RunError for a
    folder that holds something already and for `adapter` of a run without one, and as `load_trained` and `save_folder`.
    """
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty: choose another --out")
    programs, params, step = load_trained(run, step)
    config = programs.config
    if adapter:
        if not config.lora.rank:
            raise RunError(f"{run} has no adapters (its lora.rank is 0): leave --adapter out")
        save_adapter(out, config.model, config.lora, params, base=config.pretrained)
        Console().print(
            f"{out}: adapters of step {step}, rank {config.lora.rank}, on {config.pretrained or 'its trunk'}"
        )
        return out
    hub = described(config)
    save_folder(out, hub, programs.trained.merged(params))
    tokenizer = programs.task.tokenizer
    if isinstance(tokenizer, PublishedTokenizer):
        save_published(tokenizer, out)
        kept = "weights and tokenizer"
    else:
        kept = f"weights; the tokenizer of {programs.task.spec} has no file that others read"
    Console().print(f"{out}: {hub.family} model of step {step}, {kept}")
    return out


def described(config: Config) -> Hub:
    """The model of a run as a folder describes it."""
    if config.pretrained:
        return published.describe(config.pretrained)
    tokenizer, length = config.task.tokenizer, config.task.train.prompt.shape[1] + config.task.answer_length
    return Hub(
        config=config.model,
        family=family_of(config.model),
        vocab_size=config.vocab_size,
        max_length=length,
        bos=tokenizer.bos,
        eos=(tokenizer.eos,),
        pad=tokenizer.pad,
    )
