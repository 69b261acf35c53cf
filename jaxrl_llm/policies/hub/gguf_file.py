"""A GGUF file: its description, its vocabulary's marks, and its tensors, dequantised part by part."""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_llm.policies.config import Rope
from jaxrl_llm.policies.hub.config_json import FULL, MOST_LAYERS, Hub, read_config
from jaxrl_llm.policies.hub.gguf_header import check_header
from jaxrl_llm.policies.hub.names import Span
from jaxrl_llm.policies.rope import frequencies
from jaxrl_llm.spec import nearest

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma2": "gemma2", "gemma3": "gemma3_text"}
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K")
# Of `ARCHITECTURE.`, and the field of config.json that says the same.
FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "rope.freq_base": "rope_theta",
}
GEMMA3 = {"rope.freq_base_swa": "rope_local_base_freq", "attention.sliding_window_pattern": "sliding_window_pattern"}
CHECKED = ("vocab_size", "rope.dimension_count", "attention.value_length")
SCALING = ("type", "factor", "original_context_length", "finetuned")
IDLE_SCALING = {"attn_factor": 1.0, "yarn_log_multiplier": 0.0}  # any other value stretches otherwise than is done here
LARGEST = {"gemma2": 46, "gemma3": 62}  # layers of those whose queries are scaled by width / heads
LLAMA3 = tuple(Rope(kind="llama3", factor=factor, original_length=8192) for factor in (8.0, 32.0))
# What a damaged file makes the reader raise: it trusts every count and offset that it reads.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError)


class GgufFile:
    """Reads parts of tensors, float32, as Hugging Face has them."""

    def __init__(self, path: str | pathlib.Path):
        """Raises OSError for a file that cannot be read, ImportError without gguf, ValueError for damage."""
        import gguf

        self.path = pathlib.Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"there is no GGUF file {str(path)!r}")
        try:
            check_header(self.path)
            reader = gguf.GGUFReader(self.path)
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
            self._fields = reader.fields
            self.architecture = self.field("general.architecture")
            known = isinstance(self.architecture, str) and self.architecture in FAMILIES
        except DAMAGE as error:
            raise ValueError(f"{path} is no readable GGUF file: {type(error).__name__}: {error}") from error
        if not known:
            raise ValueError(
                f"{path}: general.architecture {self.architecture!r} is not known"
                f"{nearest(str(self.architecture), list(FAMILIES))}"
            )
        self.hub = self._described()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._tensors = {}

    def field(self, name: str) -> Any:
        """A value of the header, None where it is absent. Numbers are float32 there: 1e-5 is read as 1e-5.

        Raises ValueError, which names the field, for text that is no UTF-8.
        """
        try:
            value = self._fields[name].contents() if name in self._fields else None
        except UnicodeDecodeError as error:
            raise ValueError(f"{name} is no UTF-8: {error}") from error
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor. Raises ValueError for a type that is not among TYPES."""
        tensor = self._tensors[name]
        if tensor.tensor_type.name not in TYPES:
            raise ValueError(f"{self.path}: {name} is {tensor.tensor_type.name}, not one of {', '.join(TYPES)}")
        return tuple(int(n) for n in reversed(tensor.shape))

    def read(self, name: str, spans: tuple[Span, ...]) -> np.ndarray:
        """Part of a tensor, float32. Rows are cut before they are dequantised."""
        import gguf

        tensor, (rows, *columns) = self._tensors[name], spans
        with np.errstate(all="ignore"):  # whoever reads the weights refuses those that are not finite
            part = gguf.dequantize(tensor.data[slice(*rows)], tensor.tensor_type).astype(np.float32)
        if columns:
            part = part[:, slice(*columns[0])]
        if self.architecture == "llama" and name.endswith(("attn_q.weight", "attn_k.weight")):
            return unpermuted(part, self.hub.config.head_size)
        return part - 1 if self.hub.config.norm_offset and name.endswith("norm.weight") else part

    def _described(self) -> Hub:
        """The header as a config.json says it, so that both are checked alike."""
        try:
            return read_config(self._as_config())
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        except DAMAGE as error:
            raise ValueError(f"{self.path} is damaged: {type(error).__name__}: {error}") from error

    def _as_config(self) -> dict[str, Any]:
        kind, family = self.architecture, FAMILIES[self.architecture]
        given = {key.removeprefix(f"{kind}."): self.field(key) for key in self._fields if key.startswith(f"{kind}.")}
        read = FIELDS | GEMMA3 if kind == "gemma3" else FIELDS
        _require_known(kind, given, read)
        if "token_embd.weight" not in self._tensors:
            raise ValueError("tensor token_embd.weight is missing")
        fields = {theirs: given[name] for name, theirs in read.items() if given.get(name) is not None}
        if isinstance(fields.get("sliding_window_pattern"), list):  # a flag a layer instead of the period
            flags = fields.pop("sliding_window_pattern")
            fields["layer_types"] = ["sliding_attention" if local else "full_attention" for local in flags]
        _add_habits(fields, kind)
        fields |= {"model_type": family, "vocab_size": self.shape("token_embd.weight")[0]}
        fields["tie_word_embeddings"] = "output.weight" not in self._tensors
        for mark in ("bos", "eos"):
            fields[f"{mark}_token_id"] = self.field(f"tokenizer.ggml.{mark}_token_id")
        fields["pad_token_id"] = self.field("tokenizer.ggml.padding_token_id")
        fields["rope_scaling"] = self._scaling(given)
        if family in ("gemma2", "gemma3_text"):
            heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
            whole = fields.get("num_hidden_layers") == LARGEST[kind]
            fields["query_pre_attn_scalar"] = width // heads if whole else fields.get("head_dim")
        hub = read_config(fields).config
        for name, wanted in (("rope.dimension_count", hub.head_size), ("attention.value_length", hub.head_size)):
            if given.get(name, wanted) != wanted:
                raise ValueError(f"{kind}.{name} is {given[name]}, not the size of a head, {wanted}")
        return fields

    def _scaling(self, given: Mapping[str, Any]) -> dict[str, Any] | None:
        kind = given.get("rope.scaling.type") or "none"
        if "rope_freqs.weight" in self._tensors:
            return self._llama3(float(given.get("rope.freq_base", 10000.0)))
        if kind == "none":
            return None
        scaling = {"rope_type": kind, "factor": given.get("rope.scaling.factor")}
        length = given.get("rope.scaling.original_context_length")
        return scaling | ({} if length is None else {"original_max_position_embeddings": length})

    def _llama3(self, base: float) -> dict[str, Any]:
        """The parameters of Llama 3's stretching, of which the file holds only the outcome: a divisor a pair."""
        table = self.read_plain("rope_freqs.weight")
        size = 2 * len(table)
        plain = frequencies(Rope(base=base), size)
        for rope in LLAMA3:
            stretched = Rope(base=base, kind="llama3", factor=rope.factor, original_length=rope.original_length)
            if np.allclose(plain / frequencies(stretched, size), table, rtol=1e-3):
                return {
                    **{"rope_type": "llama3", "factor": rope.factor, "low_freq_factor": rope.low},
                    **{"high_freq_factor": rope.high, "original_max_position_embeddings": rope.original_length},
                }
        raise ValueError("rope_freqs.weight holds none of the known stretchings of Llama 3 (factor 8 or 32)")

    def read_plain(self, name: str) -> np.ndarray:
        """A whole tensor as the file has it, float32."""
        import gguf

        tensor = self._tensors[name]
        return gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)


def _add_habits(fields: dict[str, Any], kind: str) -> None:
    """What a GGUF file leaves out is not what a config.json leaves out: the readers of either differ."""
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    if isinstance(heads, int) and heads > 0 and isinstance(width, int):
        fields.setdefault("num_key_value_heads", heads)
        fields.setdefault("head_dim", width // heads)
    if kind == "gemma3" and "sliding_window" not in fields:
        layers = fields.get("num_hidden_layers")
        fields["layer_types"] = [FULL] * (layers if isinstance(layers, int) and layers <= MOST_LAYERS else 0)


def _require_known(kind: str, given: Mapping[str, Any], read: Mapping[str, str]) -> None:
    """Refuse a field of the architecture that may change what is computed and is not read here."""
    idle = {f"rope.scaling.{name}": value for name, value in IDLE_SCALING.items()}
    known = {*read, *CHECKED, *idle, *(f"rope.scaling.{name}" for name in SCALING)}
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{kind}.{name} is not a known field{nearest(name, sorted(known))}")
        if value != idle.get(name, value):
            raise ValueError(f"{kind}.{name} is {value}: positions are only computed with {idle[name]}")


def unpermuted(rows: np.ndarray, head_size: int) -> np.ndarray:
    """Rows of queries or keys of Llama: GGUF has the pairs of a head side by side, Hugging Face in two halves."""
    heads = len(rows) // head_size
    return rows.reshape(heads, head_size // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)
