"""The shape of a decoder. Apart from the decoder, so that a wrong flag is refused before flax is imported."""

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """Shape of a decoder. The default has about one million parameters."""

    layers: int = 4  # blocks of attention and MLP
    width: int = 128  # of the residual stream
    heads: int = 4  # query heads; divisible by kv_heads
    kv_heads: int = 2  # key and value heads
    head_size: int = 32  # even, because halves are rotated
    mlp_width: int = 512  # hidden units of the gated MLP
    rope_base: float = 10000.0  # longest wavelength of the rotary positions, over 2 pi
    norm_eps: float = 1e-6  # under the root of RMSNorm
    tied: bool = True  # the head is the transposed embedding
    bfloat16: bool = False  # compute in bfloat16; parameters stay float32

    def __post_init__(self):
        for name in ("layers", "width", "heads", "kv_heads", "head_size", "mlp_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.heads % self.kv_heads:
            divisors = [n for n in range(1, self.heads + 1) if self.heads % n == 0]
            raise ValueError(f"kv_heads must divide heads={self.heads}, not {self.kv_heads} (choices: {divisors})")
        if self.head_size % 2:
            raise ValueError(f"head_size must be even, not {self.head_size}")

    @property
    def dtype(self) -> jnp.dtype:
        """Type of activations."""
        return jnp.dtype(jnp.bfloat16 if self.bfloat16 else jnp.float32)
