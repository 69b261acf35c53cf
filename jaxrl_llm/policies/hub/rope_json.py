"""Rotary positions as config.json describes them, in the form of either version of the file."""

import math
from collections.abc import Mapping
from typing import Any

from jaxrl_llm.policies.config import Rope
from jaxrl_llm.policies.hub.fields import flag, number, text
from jaxrl_llm.spec import nearest

ROPE_FIELDS = {
    *("rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings", "low_freq_factor"),
    *("high_freq_factor", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate"),
    "partial_rotary_factor",
}
KINDS = ("default", "linear", "llama3", "yarn")
LOCAL_FIELDS = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
PARTS = ("full_attention", "sliding_attention")  # of Gemma 3's rope_parameters


def read_rope(fields: Mapping[str, Any], family: str) -> Rope:
    """Of the layers without a window. Raises ValueError, which names the field."""
    given = _rope_fields(fields, family)
    _check_known(given, ROPE_FIELDS, "rope field ")
    kind = text(given, "rope_type") or text(given, "type", "default")
    base = float(number(given, "rope_theta", 1e6 if family == "gemma3_text" else 10000.0, kind=float))
    if kind not in KINDS:
        raise ValueError(f"rope_type {kind!r} is none of {', '.join(KINDS)}{nearest(kind, list(KINDS))}")
    if kind == "default":
        return Rope(base=base)
    factor = float(number(given, "factor", kind=float))
    if kind == "linear":
        return Rope(base=base, kind="linear", factor=factor)
    length = number(given, "original_max_position_embeddings", fields.get("max_position_embeddings"))
    if kind == "llama3":
        low, high = (float(number(given, f"{name}_freq_factor", kind=float)) for name in ("low", "high"))
        return Rope(base=base, kind="llama3", factor=factor, original_length=length, low=low, high=high)
    low, high = (float(number(given, *pair, kind=float)) for pair in (("beta_slow", 1), ("beta_fast", 32)))
    sizes = {"original_length": length, "low": low, "high": high, "truncate": flag(given, "truncate", True)}
    return Rope(base=base, kind="yarn", factor=factor, attention_factor=_attention_factor(given, factor), **sizes)


def local_base(fields: Mapping[str, Any]) -> float:
    """Base of the layers with a window (Gemma 3)."""
    where = "rope_parameters.sliding_attention"
    local = (fields.get("rope_parameters") or {}).get("sliding_attention") or {}
    if not isinstance(local, Mapping):
        raise ValueError(f"{where} must be an object, not {local!r}")
    _check_known(local, LOCAL_FIELDS, f"{where}.")
    kind = text(local, "rope_type") or text(local, "type", "default")
    if kind != "default":
        raise ValueError(f"{where}.rope_type is {kind!r}, not default")
    given = {"rope_local_base_freq": local.get("rope_theta", fields.get("rope_local_base_freq"))}
    return float(number(given, "rope_local_base_freq", 10000.0, kind=float))


def _check_known(given: Mapping[str, Any], known: set[str], where: str) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            raise ValueError(f"{where}{name} (value {value!r}) is not known{nearest(name, sorted(known))}")
    if given.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(f"partial_rotary_factor is {given['partial_rotary_factor']!r}: whole heads are rotated here")


def _rope_fields(fields: Mapping[str, Any], family: str) -> Mapping[str, Any]:
    """Parameters of the rotary positions, in the form of either version of the file."""
    both = fields.get("rope_parameters")
    if both is not None and not isinstance(both, Mapping):
        raise ValueError(f"rope_parameters must be an object, not {both!r}")
    if both and family == "gemma3_text":
        for name, value in both.items():
            if name not in PARTS and value is not None:
                raise ValueError(
                    f"rope_parameters.{name} (value {value!r}) is not known: "
                    f"those of {family} stand under {' and '.join(PARTS)}{nearest(name, list(PARTS))}"
                )
        both = both.get("full_attention")
    old = fields.get("rope_scaling") or {}
    for name, value in (("rope_parameters", both or {}), ("rope_scaling", old)):
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be an object or null, not {value!r}")
    for name, value in (both or {}).items():
        if old.get(name, value) != value:
            raise ValueError(f"{name} is {value!r} in rope_parameters and {old[name]!r} in rope_scaling")
    base = fields.get("rope_theta")
    return {**({} if base is None else {"rope_theta": base}), **old, **(both or {})}


def _attention_factor(given: Mapping[str, Any], factor: float) -> float:
    """What yarn multiplies queries and keys by."""
    if given.get("attention_factor") is not None:
        return float(number(given, "attention_factor", kind=float))
    growth = lambda scale: 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0  # noqa: E731
    if given.get("mscale") and given.get("mscale_all_dim"):
        above, below = (float(number(given, name, kind=float)) for name in ("mscale", "mscale_all_dim"))
        return growth(above) / growth(below)
    return growth(1)


def write_rope(rope: Rope) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`."""
    if rope.kind == "plain":
        return {"rope_theta": rope.base, "rope_scaling": None}
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind != "linear":
        scaling["original_max_position_embeddings"] = rope.original_length
    if rope.kind == "llama3":
        scaling |= {"low_freq_factor": rope.low, "high_freq_factor": rope.high}
    if rope.kind == "yarn":
        scaling |= {"beta_slow": rope.low, "beta_fast": rope.high, "truncate": rope.truncate}
        scaling["attention_factor"] = rope.attention_factor
    return {"rope_theta": rope.base, "rope_scaling": scaling}
