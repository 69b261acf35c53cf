"""config.json family by family: what is read, what an absent field means, and what is refused by name."""

import pytest

from jaxrl_llm.policies.config import Rope
from jaxrl_llm.policies.hub.config_json import MOST_LAYERS, read_config, write_config
from jaxrl_llm.policies.hub.known_fields import DEFAULTS, FAMILIES, GEMMA, IDLE, READ

SHAPE = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 6, "num_attention_heads": 4}
CLASSES = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma2": "Gemma2", "gemma3_text": "Gemma3Text"}
# A value that each field has in some family, and that computes something there.
ODD = {
    "hidden_act": "silu",
    "hidden_activation": "gelu_pytorch_tanh",
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "sliding_window": 8,
    "use_sliding_window": True,
    "max_window_layers": 2,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
    "rope_local_base_freq": 5e3,
    "sliding_window_pattern": 2,
    "_sliding_window_pattern": 2,
}
OTHERS = [(family, name) for family in FAMILIES for name in sorted(set(ODD) - READ[family])]
OTHERS = [pair for pair in OTHERS if pair not in [(family, "hidden_act") for family in GEMMA]]


def given(family, **fields):
    return {"model_type": family, "num_key_value_heads": 2, "head_dim": 8} | SHAPE | fields


def test_odd_fields_are_all_of_those_that_some_family_lacks():
    every = set().union(*READ.values())
    assert set(ODD) == every - set.intersection(*map(set, READ.values()))


@pytest.mark.parametrize(("family", "name"), OTHERS)
def test_a_field_of_another_family_is_refused_by_name(family, name):
    owners = " and ".join(other for other in FAMILIES if name in READ[other])
    with pytest.raises(ValueError, match=rf"^{name} is not a known field of {family} .*; it is one of {owners}$"):
        read_config(given(family, **{name: ODD[name]}))
    assert read_config(given(family, **{name: None})) == read_config(given(family)), "null is no field"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [2.0, 0, "x", [1], {"a": 1}, True])
def test_an_unknown_field_is_refused_by_name(family, value):
    with pytest.raises(ValueError, match=f"^residual_multiplier is not a known field of {family} and may change"):
        read_config(given(family, residual_multiplier=value))
    for nothing in (None, False):
        assert read_config(given(family, residual_multiplier=nothing)) == read_config(given(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_misspelt_field_is_told_the_nearest(family):
    with pytest.raises(ValueError, match=r"rope_thetta is not a known field .*rope_theta"):
        read_config(given(family, rope_thetta=1e5))


@pytest.mark.parametrize("family", FAMILIES)
def test_fields_that_compute_nothing_are_let_be(family):
    assert read_config(given(family, **dict.fromkeys(IDLE, "x"))) == read_config(given(family))


@pytest.mark.parametrize(
    ("family", "name", "value"),
    [
        *[(family, "mlp_bias", True) for family in FAMILIES],
        *[(family, "attention_bias", family != "qwen2") for family in FAMILIES],
        *[(family, "partial_rotary_factor", value) for family in FAMILIES for value in (0.5, 0)],
        *[(family, "quantization_config", {"bits": 4}) for family in FAMILIES],
        ("llama", "rope_interleaved", True),
        ("gemma3_text", "use_bidirectional_attention", True),
    ],
)
def test_a_value_that_the_decoder_cannot_compute_is_refused(family, name, value):
    with pytest.raises(ValueError, match=f"^{name} is .*: the decoder computes {family} only with"):
        read_config(given(family, **{name: value}))


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("gpt2", {}, "model_type 'gpt2' is not a family that the decoder knows"),
        ("qwen4", {}, "model_type 'qwen4' .*qwen3"),
        ("llama", {"hidden_size": "x"}, "hidden_size must be a positive whole number, not 'x'"),
        ("llama", {"vocab_size": 2**39}, f"vocab_size must be a positive whole number below {2**31}, not {2**39}"),
        ("llama", {"hidden_act": "relu"}, "hidden_act is 'relu': the decoder has silu"),
        ("gemma2", {"hidden_activation": "gelu_pytorch_tan"}, "hidden_activation is .*gelu_pytorch_tanh"),
        ("llama", {"num_hidden_layers": 2**30}, f"num_hidden_layers is {2**30}, and no model has more than"),
        ("gemma3_text", {"num_hidden_layers": MOST_LAYERS + 1}, "no model has more than"),
        ("gemma2", {"num_key_value_heads": None}, "num_key_value_heads is missing"),
        ("qwen3", {"head_dim": None}, "head_dim is missing"),
        ("qwen2", {"layer_types": ["chunked_attention"] * 6}, "layer_types must name 6 layers as sliding_attention"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types must name 6 layers"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 6}, "use_sliding_window is off, and layer_types"),
        ("gemma2", {"sliding_window": None}, "sliding_window is null, and layer_types, or the habit of gemma2"),
        ("gemma3_text", {"_sliding_window_pattern": 3}, "_sliding_window_pattern is 3 and sliding_window_pattern 6"),
    ],
)
def test_a_wrong_value_is_refused_by_name(family, fields, words):
    with pytest.raises(ValueError, match=words):
        read_config(given(family, **fields))


def windows_of(config):
    """Window of each layer of a configuration of `transformers`."""
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return [config.sliding_window if kind == "sliding_attention" else 0 for kind in kinds]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_absent_field_means_what_it_means_to_transformers(family):
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[parity]'")
    shape = SHAPE | {"num_attention_heads": 32, "hidden_size": 256}
    theirs = getattr(transformers, f"{CLASSES[family]}Config")(**shape)
    hub = read_config({"model_type": family, **shape})
    c = hub.config
    assert c.kv_heads == theirs.num_key_value_heads
    assert c.head_size == (getattr(theirs, "head_dim", None) or 256 // 32)
    assert c.norm_eps == theirs.rms_norm_eps
    assert c.tied == theirs.tie_word_embeddings
    assert c.query_scale == getattr(theirs, "query_pre_attn_scalar", 0)
    assert c.attention_cap == (getattr(theirs, "attn_logit_softcapping", None) or 0)
    assert c.logit_cap == (getattr(theirs, "final_logit_softcapping", None) or 0)
    activation = theirs.hidden_activation if family in GEMMA else theirs.hidden_act
    assert c.activation == {"silu": "silu", "gelu_pytorch_tanh": "gelu"}[activation]
    assert [c.window if local else 0 for local in c.windowed or [False] * c.layers] == windows_of(theirs)
    parts = theirs.rope_parameters
    assert c.rope == Rope(base=parts.get("full_attention", parts)["rope_theta"])
    assert c.local_rope_base == parts.get("sliding_attention", {"rope_theta": 0})["rope_theta"]
    assert hub.max_length == theirs.max_position_embeddings
    assert (hub.bos, hub.pad) == (theirs.bos_token_id, theirs.pad_token_id)
    assert hub.eos == (() if theirs.eos_token_id is None else (theirs.eos_token_id,))


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_of_fields_that_the_family_reads(family):
    assert set(DEFAULTS[family]) <= READ[family]


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_of_qwen(family):
    on = {"use_sliding_window": True, "sliding_window": 8}
    windowed = lambda **fields: read_config(given(family, **fields)).config.windowed  # noqa: E731
    assert windowed(**on, max_window_layers=4) == (False,) * 4 + (True,) * 2
    assert windowed(**on, max_window_layers=0) == (True,) * 6
    assert windowed(**on | {"sliding_window": None}, max_window_layers=0) == ()
    assert windowed(sliding_window=8, max_window_layers=0) == ()
    assert read_config(given(family, use_sliding_window=True, max_window_layers=4)).config.window == 4096


@pytest.mark.parametrize("family", GEMMA)
def test_a_gemma_without_windows_is_written_so_that_it_is_read_back(family):
    hub = read_config(given(family, layer_types=["full_attention"] * 6, sliding_window=None))
    assert hub.config.windowed == ()
    assert read_config(write_config(hub)) == hub
