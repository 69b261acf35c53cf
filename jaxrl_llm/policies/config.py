"""The shape of a decoder. Apart from the decoder, so that a wrong flag is refused before flax is imported."""

import dataclasses
import math
from typing import Any, Literal

import jax.numpy as jnp

from jaxrl_llm.spec import nearest

LINEARS = ("query", "key", "value", "out", "gate", "up", "down")  # of every layer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary positions: pair i of the D/2 of a head turns by position · base^(-2i/D), or slower in long texts."""

    base: float = 10000.0  # longest wavelength, over 2 pi
    kind: Literal["plain", "linear", "llama3", "yarn"] = "plain"  # how long wavelengths are stretched
    factor: float = 1.0  # by how much; 1 or more
    original_length: int = 0  # positions that the model was trained on before; llama3 and yarn
    low: float = 1.0  # wavelengths above original_length/low are stretched whole
    high: float = 4.0  # those below original_length/high not at all
    attention_factor: float = 1.0  # on queries and keys alike; yarn
    truncate: bool = True  # yarn: the ends of the ramp are whole pairs

    def __post_init__(self):
        for name in ("base", "factor", "attention_factor", "low", "high"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"rope.{name} must be a finite number above 0, not {getattr(self, name)}")
        if self.original_length < 0:
            raise ValueError(f"rope.original_length must be 0 or more, not {self.original_length}")
        if self.kind in ("llama3", "yarn") and not (self.original_length > 0 and 0 < self.low < self.high):
            raise ValueError(
                f"rope.kind {self.kind} needs original_length above 0 and 0 < low < high, not "
                f"{self.original_length}, {self.low}, {self.high}"
            )


WAYS = ("bfloat16", "recompute", "attention")  # fields that say how a decoder is computed, and not which it is


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder. The default has about one million parameters; what is off by default some families have."""

    layers: int = 4  # blocks of attention and MLP
    width: int = 128  # of the residual stream
    heads: int = 4  # query heads; divisible by kv_heads
    kv_heads: int = 2  # key and value heads
    head_size: int = 32  # even, because halves are rotated
    mlp_width: int = 512  # hidden units of the gated MLP
    rope: Rope = dataclasses.field(default_factory=Rope)  # rotary positions
    norm_eps: float = 1e-6  # under the root of RMSNorm
    tied: bool = True  # the head is the transposed embedding
    bfloat16: bool = False  # compute in bfloat16; parameters stay float32
    activation: Literal["silu", "gelu"] = "silu"  # of the gate; gelu: by tanh (Gemma)
    qkv_bias: bool = False  # on queries, keys and values (Qwen2)
    qk_norm: bool = False  # RMSNorm of each head's queries and keys (Qwen3, Gemma 3)
    norm_offset: bool = False  # RMSNorm multiplies by 1 + its weight (Gemma)
    post_norms: bool = False  # further norms behind attention and MLP (Gemma)
    scaled_embedding: bool = False  # times the root of width (Gemma)
    query_scale: float = 0.0  # queries are divided by its root; 0: by that of head_size
    attention_cap: float = 0.0  # attention logits are bent to stay within it; 0: not (Gemma 2)
    logit_cap: float = 0.0  # likewise the logits of tokens
    window: int = 0  # positions that a windowed layer sees, its own included
    windowed: tuple[bool, ...] = ()  # which layers have a window; empty: none
    local_rope_base: float = 0.0  # plain rotary positions of windowed layers; 0: as in the others (Gemma 3)
    recompute: bool = True  # activations are computed again in the backward pass: much less memory, a third more work
    attention: Literal["xla", "cudnn"] = "xla"  # what computes it; cudnn: flash attention of NVIDIA GPUs, in bfloat16

    def __post_init__(self):
        for name in ("layers", "width", "heads", "kv_heads", "head_size", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise ValueError(f"kv_heads must divide heads={self.heads}, not {self.kv_heads} (choices: {divisors})")
        if self.head_size % 2:
            raise ValueError(f"head_size must be even, not {self.head_size}")
        if not 0 <= self.norm_eps < math.inf:
            raise ValueError(f"norm_eps must be a finite number, 0 or more, not {self.norm_eps}")
        for name in ("query_scale", "attention_cap", "logit_cap", "window", "local_rope_base"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 (off) or more, and finite, not {getattr(self, name)}")
        if len(self.windowed) not in (0, self.layers):
            raise ValueError(f"windowed must say it of each of the {self.layers} layers, not of {len(self.windowed)}")
        if any(self.windowed) and not self.window:
            raise ValueError("windowed layers need a window of at least 1")
        if self.attention == "cudnn":
            self._must_suit_cudnn()

    def _must_suit_cudnn(self):
        """Raise ValueError where flash attention of cuDNN cannot be what this shape asks for."""
        for name, value, needed in (
            ("bfloat16", self.bfloat16, "True: it computes in 16 bits"),
            ("attention_cap", not self.attention_cap, "0: it does not bend logits"),
            ("head_size", self.head_size % 8 == 0 and self.head_size <= 256, "a multiple of 8, at most 256"),
        ):
            if not value:
                raise ValueError(f"attention=cudnn needs {name} {needed}; it is {getattr(self, name)} (or take xla)")

    def computed_as(self, other: "DecoderConfig") -> "DecoderConfig":
        """This decoder, computed in the way of another."""
        return dataclasses.replace(self, **{name: getattr(other, name) for name in WAYS})

    @property
    def dtype(self) -> jnp.dtype:
        """Type of activations."""
        return jnp.dtype(jnp.bfloat16 if self.bfloat16 else jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lora:
    """Adapters x W + (alpha/rank) (x A) B on linear maps, W frozen (Hu et al., 2021, arXiv 2106.09685)."""

    rank: int = 0  # columns of A and rows of B; 0: no adapters, all parameters are trained
    alpha: float = 16.0  # the product of A and B counts alpha/rank times
    targets: tuple[str, ...] = LINEARS  # linear maps that have adapters; `head` too where it is not the embedding
    merged: bool = True  # sample from W + (alpha/rank) A B, made anew each step: faster, one more copy of the targets

    def __post_init__(self):
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 0:
            raise ValueError(f"lora.rank must be 1 or more, or 0 for none, not {self.rank!r}")
        if not 0 < self.alpha < float("inf"):
            raise ValueError(f"lora.alpha must be a finite number above 0, not {self.alpha}")
        for name in self.targets:
            if name not in (*LINEARS, "head"):
                raise ValueError(f"lora.targets: there is no linear map {name!r}{nearest(name, [*LINEARS, 'head'])}")
        if not self.targets or len(set(self.targets)) != len(self.targets):
            raise ValueError(f"lora.targets must name each linear map once and one at least, not {list(self.targets)}")

    @property
    def scale(self) -> float:
        """alpha/rank; only where there are adapters."""
        return self.alpha / self.rank

    def check(self, config: DecoderConfig) -> None:
        """Raise ValueError for a target that a decoder does not have."""
        if self.rank and "head" in self.targets and config.tied:
            raise ValueError(
                f"lora.targets: the head of a tied model is its embedding and takes no adapter (choices: "
                f"{', '.join(LINEARS)})"
            )


def read_lora(**values: Any) -> Lora:
    """The inverse of `dataclasses.asdict`, from JSON."""
    return Lora(**values | {"targets": tuple(values.get("targets", LINEARS))})


def read_decoder(**values: Any) -> DecoderConfig:
    """The inverse of `dataclasses.asdict`, from JSON."""
    rope, windowed = values.pop("rope", {}), tuple(values.pop("windowed", ()))
    return DecoderConfig(rope=Rope(**rope), windowed=windowed, **values)
