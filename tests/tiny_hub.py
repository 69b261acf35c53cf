"""A small published model: a Hugging Face folder with a trained tokenizer, a chat template and random weights."""

import json
import pathlib

import tiny
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import save_folder

MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=16, norm_eps=1e-5)
ROWS = 520  # of the embedding: more than the tokenizer has tokens, as many models have


def write_tokenizer(folder: pathlib.Path, texts: list[str]) -> pathlib.Path:
    """tokenizer.json of byte-level pairs, with its configuration."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=MARKS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(texts * 20, trainer)
    made.add_tokens([AddedToken("<think>", special=False)])
    made.save(str(folder / "tokenizer.json"))
    mark = {"__type": "AddedToken", "content": "<|im_end|>", "special": True, "normalized": False}
    mark |= {"lstrip": False, "rstrip": False, "single_word": False}
    fields = {"eos_token": mark, "bos_token": "<|im_start|>", "pad_token": "<|im_end|>"}
    fields |= {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<|endoftext|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 0]}', encoding="utf-8")
    return folder


def write_model(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Weights and tokenizer of one layer that has learned nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    hub = Hub(config=CONFIG, family="llama", vocab_size=ROWS, max_length=128, bos=1, eos=(2, 0), pad=2)
    _, params = tiny.decoder(ROWS, seed, **{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__})
    save_folder(folder, hub, params)
    return write_tokenizer(folder, ["What is 12 + 7? Answer: 19\n", "Question: "])
