"""Rotary positions of config.json: every kind, either form of the file, and fields that are refused by name."""

import math

import pytest

from jaxrl_llm.policies.config import Rope
from jaxrl_llm.policies.hub.rope_json import local_base, read_rope, write_rope

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
SWA, FULL = "sliding_attention", "full_attention"
READ = {
    "default": (None, Rope(base=5e3)),
    "empty": ({}, Rope(base=5e3)),
    "named default": ({"rope_type": "default"}, Rope(base=5e3)),
    "linear": ({"rope_type": "linear", "factor": 2.5}, Rope(base=5e3, kind="linear", factor=2.5)),
    "linear, old name": ({"type": "linear", "factor": 2}, Rope(base=5e3, kind="linear", factor=2.0)),
    "llama3": (LLAMA3, Rope(base=5e3, kind="llama3", factor=8.0, original_length=32, low=1.0, high=4.0)),
    "yarn": (
        YARN,
        Rope(
            **{"base": 5e3, "kind": "yarn", "factor": 4.0, "original_length": 16, "low": 1.0, "high": 32.0},
            attention_factor=0.1 * math.log(4) + 1,
        ),
    ),
    "yarn, all fields": (
        YARN | {"beta_slow": 2, "beta_fast": 20, "truncate": False, "attention_factor": 1.5},
        Rope(
            **{"base": 5e3, "kind": "yarn", "factor": 4.0, "original_length": 16, "low": 2.0, "high": 20.0},
            **{"attention_factor": 1.5, "truncate": False},
        ),
    ),
    "yarn, mscale": (
        YARN | {"mscale": 0.7, "mscale_all_dim": 1.3},
        Rope(
            **{"base": 5e3, "kind": "yarn", "factor": 4.0, "original_length": 16, "low": 1.0, "high": 32.0},
            attention_factor=(0.07 * math.log(4) + 1) / (0.13 * math.log(4) + 1),
        ),
    ),
}


@pytest.mark.parametrize("case", READ)
def test_every_kind_is_read_in_either_form_and_written(case):
    scaling, wanted = READ[case]
    assert read_rope({"rope_theta": 5e3, "rope_scaling": scaling}, "llama") == wanted
    assert read_rope({"rope_parameters": {"rope_theta": 5e3, **(scaling or {})}}, "llama") == wanted
    nested = {"rope_parameters": {FULL: {"rope_theta": 5e3, **(scaling or {})}, SWA: None}}
    assert read_rope(nested, "gemma3_text") == wanted
    assert read_rope(write_rope(wanted), "llama") == wanted


def test_the_length_before_stretching_is_that_of_the_model_where_none_is_named():
    short = {name: value for name, value in YARN.items() if name != "original_max_position_embeddings"}
    found = read_rope({"rope_scaling": short, "max_position_embeddings": 64}, "qwen2")
    assert (found.original_length, found.base) == (64, 10000.0)
    with pytest.raises(ValueError, match="original_max_position_embeddings is missing"):
        read_rope({"rope_scaling": short}, "qwen2")


def test_bases_of_gemma3():
    assert read_rope({}, "gemma3_text").base == 1e6
    assert local_base({}) == 1e4
    assert local_base({"rope_local_base_freq": 5e3}) == 5e3
    assert local_base({"rope_local_base_freq": 5e3, "rope_parameters": {SWA: {"rope_theta": 7e3}}}) == 7e3
    assert local_base({"rope_parameters": {SWA: {"type": "default"}}}) == 1e4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, "rope_type 'dynamic' is none of default, linear"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope_type 'longrope' is none of"),
        ({"rope_scaling": {"rope_type": 3}}, "rope_type must be a string, not 3"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1}}, "factor must be a positive number, not -1"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": None}}, "low_freq_factor is missing"),
        ({"rope_scaling": LLAMA3 | {"low_freq_factor": 5.0}}, "rope.kind llama3 needs .* 0 < low < high"),
        ({"rope_scaling": YARN | {"truncate": 1}}, "truncate must be true or false, not 1"),
        ({"rope_scaling": YARN | {"long_factor": [1.0]}}, r"rope field long_factor \(value \[1.0\]\) is not known"),
        ({"rope_scaling": {"facto": 2}}, "rope field facto .* is not known.*factor"),
        ({"rope_scaling": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"rope_scaling": "linear"}, "rope_scaling must be an object or null, not 'linear'"),
        ({"rope_parameters": [1]}, r"rope_parameters must be an object, not \[1\]"),
        ({"rope_parameters": {FULL: {"rope_theta": 1e4}}}, "rope field full_attention .* is not known"),
        ({"rope_theta": "x"}, "rope_theta must be a positive number, not 'x'"),
        (
            {"rope_scaling": {"factor": 2, "type": "linear"}, "rope_parameters": {"factor": 4}},
            "factor is 4 in rope_parameters and 2 in rope_scaling",
        ),
    ],
)
def test_a_wrong_field_is_refused_by_name(fields, words):
    with pytest.raises(ValueError, match=words):
        read_rope(fields, "llama")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({FULL: {}, "rope_theta": 5e3}, "rope_parameters.rope_theta .*5000.0.* is not known"),
        (
            {"rope_type": "linear", "factor": 8.0},
            "rope_parameters.rope_type .*'linear'.* stand under full_attention and",
        ),
        ({FULL: {}, "slidin_attention": {}}, "rope_parameters.slidin_attention .*did you mean 'sliding_attention'"),
        ({FULL: 3}, "rope_parameters must be an object or null, not 3"),
        ({FULL: {"rope_theta": 1e6, "facto": 2}}, "rope field facto"),
        ({SWA: 3}, "rope_parameters.sliding_attention must be an object, not 3"),
        ({SWA: {"rope_type": "linear"}}, "rope_parameters.sliding_attention.rope_type is 'linear', not default"),
        ({SWA: {"type": "linear"}}, "rope_parameters.sliding_attention.rope_type is 'linear', not default"),
        ({SWA: {"factor": 2.0}}, r"rope_parameters.sliding_attention.factor \(value 2.0\) is not known"),
        ({SWA: {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ],
)
def test_a_wrong_field_of_gemma3_is_refused_by_name(parts, words):
    def read():
        read_rope({"rope_parameters": parts}, "gemma3_text")
        local_base({"rope_parameters": parts})

    with pytest.raises(ValueError, match=words):
        read()
