"""GGUF files of every family and every type against the same weights in safetensors, and by parts on many devices."""

import dataclasses
import math

import gguf
import jax
import numpy as np
import pytest
import tiny
from gguf_files import ARCHITECTURES, permuted, write_gguf
from safetensors.numpy import load_file

from jaxrl_llm.policies.config import DecoderConfig, Rope
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.gguf_file import TYPES, GgufFile, unpermuted
from jaxrl_llm.policies.hub.load import load_folder, load_gguf, load_params, save_folder
from jaxrl_llm.policies.hub.safetensors_files import SafetensorsFolder
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

SHAPE = {"layers": 2, "width": 32, "heads": 4, "kv_heads": 2, "head_size": 16, "mlp_width": 48, "norm_eps": 1e-5}
GEMMA = {"activation": "gelu", "norm_offset": True, "post_norms": True, "scaled_embedding": True, "query_scale": 16.0}
GEMMA |= {"window": 4, "tied": True}
LLAMA3 = Rope(base=5e5, kind="llama3", factor=32.0, original_length=8192)
YARN = Rope(base=1e4, kind="yarn", factor=4.0, original_length=16, low=1.0, high=32.0)
YARN = dataclasses.replace(YARN, attention_factor=0.1 * math.log(4.0) + 1)
LINEAR = Rope(base=1e6, kind="linear", factor=8.0)
FAMILIES = {
    "llama, llama3": ("llama", {"tied": False, "rope": LLAMA3}),
    "llama, llama3 by 8": ("llama", {"tied": False, "rope": dataclasses.replace(LLAMA3, factor=8.0)}),
    "qwen2, yarn": ("qwen2", {"qkv_bias": True, "tied": False, "rope": YARN}),
    "qwen3": ("qwen3", {"qk_norm": True, "rope": Rope(base=1e6)}),
    "gemma2": ("gemma2", GEMMA | {"windowed": (True, False), "attention_cap": 2.0, "logit_cap": 3.0}),
    "gemma3": (
        "gemma3_text",
        GEMMA
        | {"layers": 7, "windowed": (True,) * 5 + (False, True), "qk_norm": True}
        | {"local_rope_base": 1e4, "rope": LINEAR},
    ),
}


def shardings(policy):
    return state_shardings(make_mesh(MeshShape()), policy.init, jax.random.key(0))


def in_parts(policy):
    """On all 8 devices, cut along both axes of a parameter."""
    mesh = make_mesh(MeshShape(data=1, fsdp=4, tensor=2))
    return state_shardings(mesh, policy.init, jax.random.key(0))


def saved(folder, family, vocab=48, **changes):
    """A random decoder as a folder: its description and its tensors by name."""
    config = DecoderConfig(**SHAPE | changes)
    hub = Hub(config=config, family=family, vocab_size=vocab, max_length=64, bos=1, eos=(2,), pad=0)
    _, params = tiny.decoder(vocab, **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})
    save_folder(folder, hub, params)
    return hub, load_file(folder / "model.safetensors")


def same(a, b, **how):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **how), a, b)


@pytest.mark.parametrize("case", FAMILIES)
def test_a_gguf_file_of_each_family_is_its_folder(case, tmp_path):
    family, changes = FAMILIES[case]
    hub, tensors = saved(tmp_path, family, **changes)
    write_gguf(tmp_path / "m.gguf", hub, tensors)
    _, wanted = load_folder(tmp_path, shardings)
    found_hub, found = load_gguf(tmp_path / "m.gguf", shardings)
    assert found_hub == hub
    # A norm is stored as 1 + weight by Gemma, which rounds it; all else is the same number.
    same(found, wanted, rtol=0, atol=2e-7 if hub.config.norm_offset else 0)
    same(load_gguf(tmp_path / "m.gguf", in_parts)[1], found, rtol=0, atol=0)


def test_every_architecture_has_a_case():
    assert {family for family, _ in FAMILIES.values()} == set(ARCHITECTURES)


def random_blocks(shape, kind, draw):
    """Bytes of a tensor of this shape, any of which is a number: halves are kept small and finite."""
    size, width = gguf.GGML_QUANT_SIZES[kind]
    blocks = draw.integers(0, 256, (*shape[:-1], shape[-1] // size, width), dtype=np.uint8)
    places = {"Q4_K": (0, 2), "Q6_K": (width - 2,), "Q4_0": (0,), "Q4_1": (0, 2), "Q8_0": (0,)}[kind.name]
    for at in places:
        scale = draw.uniform(0.001, 0.01, blocks.shape[:-1]).astype(np.float16)
        blocks[..., at : at + 2] = scale[..., None].view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_read_as_the_library_dequantises_it(name, tmp_path):
    kind, draw = gguf.GGMLQuantizationType[name], np.random.default_rng(0)
    long_rows = {"width": 256, "mlp_width": 256, "heads": 4, "kv_heads": 2, "head_size": 64, "layers": 1}
    hub, tensors = saved(tmp_path, "llama", vocab=8, **long_rows, tied=False)
    stored, wanted = {}, {}
    for tensor, value in tensors.items():
        if value.ndim == 1:
            stored[tensor], wanted[tensor] = value, value
            continue
        plain = name in ("F32", "F16", "BF16")
        data = gguf.quantize(value, kind) if plain else random_blocks(value.shape, kind, draw)
        stored[tensor] = (data, kind)
        whole = gguf.dequantize(data, kind).astype(np.float32)
        assert whole.shape == value.shape
        assert np.isfinite(whole).all()
        heads = next((n for part, n in (("q_proj", 4), ("k_proj", 2)) if part in tensor), None)
        wanted[tensor] = whole if heads is None else unpermuted(whole, 64)
        if heads:
            np.testing.assert_array_equal(permuted(wanted[tensor], heads), whole)
    write_gguf(tmp_path / "m.gguf", hub, stored)
    _, params = load_gguf(tmp_path / "m.gguf", shardings)
    save_folder(tmp_path / "out", hub, params)
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert set(found) == set(wanted)
    for tensor, value in found.items():
        np.testing.assert_array_equal(value, wanted[tensor], err_msg=tensor)
    same(load_gguf(tmp_path / "m.gguf", in_parts)[1], params, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["Q5_0", "Q2_K"])
def test_a_type_without_a_promise_is_refused(kind, tmp_path):
    hub, tensors = saved(tmp_path, "llama", width=256, mlp_width=256, heads=4, head_size=64, vocab=8)
    size, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    shape = tensors["model.embed_tokens.weight"].shape
    data = np.zeros((shape[0], shape[1] // size * width), np.uint8)
    tensors["model.embed_tokens.weight"] = (data, gguf.GGMLQuantizationType[kind])
    write_gguf(tmp_path / "m.gguf", hub, tensors)
    with pytest.raises(ValueError, match=f"token_embd.weight is {kind}, not one of F32"):
        load_gguf(tmp_path / "m.gguf", shardings)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("llama.expert_count", 8, "llama.expert_count is not a known field"),
        ("llama.rope.freq_base_swa", 1e4, "llama.rope.freq_base_swa is not a known field"),
        ("llama.rope.scaling.attn_factor", 1.5, "llama.rope.scaling.attn_factor is 1.5: positions"),
        ("llama.rope.scaling.yarn_log_multiplier", 0.1, "yarn_log_multiplier is 0.1: positions"),
        ("llama.rope.dimension_count", 8, "llama.rope.dimension_count is 8, not the size of a head, 16"),
    ],
)
def test_a_field_that_changes_the_computation_is_refused(field, value, words, tmp_path):
    hub, tensors = saved(tmp_path, "llama")
    write_gguf(tmp_path / "m.gguf", hub, tensors, fields=[(field, value)])
    with pytest.raises(ValueError, match=words):
        load_gguf(tmp_path / "m.gguf", shardings)


def test_another_stretching_of_llama3_is_refused(tmp_path):
    hub, tensors = saved(tmp_path, "llama", rope=dataclasses.replace(LLAMA3, factor=5.0))
    write_gguf(tmp_path / "m.gguf", hub, tensors)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight holds none of the known stretchings"):
        load_gguf(tmp_path / "m.gguf", shardings)


def test_newer_fields_of_gemma3_are_read(tmp_path):
    """The base of windowed layers, and which layers have a window: by their period, or layer by layer."""
    _, changes = FAMILIES["gemma3"]
    changes = changes | {"layers": 3, "windowed": (True, False, True), "local_rope_base": 5e3}
    hub, tensors = saved(tmp_path, "gemma3_text", **changes)
    fields = [("gemma3.rope.freq_base_swa", 5e3), ("gemma3.attention.sliding_window_pattern", 2)]
    write_gguf(tmp_path / "m.gguf", hub, tensors, fields=fields)
    assert load_gguf(tmp_path / "m.gguf", shardings)[0] == hub


def test_a_gemma3_without_windows_says_nothing_of_them(tmp_path):
    """A config.json without sliding_window means 4,096 positions, a GGUF file without it none."""
    changes = GEMMA | {"window": 0, "qk_norm": True, "local_rope_base": 1e4}
    hub, tensors = saved(tmp_path, "gemma3_text", **changes)
    write_gguf(tmp_path / "m.gguf", hub, tensors)
    assert load_gguf(tmp_path / "m.gguf", shardings)[0] == hub == load_folder(tmp_path, shardings)[0]


class Watched:
    """A source that remembers of which tensor, of how many elements, how many were read at a time."""

    def __init__(self, source):
        self.source, self.reads = source, []

    def names(self):
        return self.source.names()

    def shape(self, name):
        return self.source.shape(name)

    def read(self, name, spans):
        self.reads.append((name, math.prod(self.shape(name)), math.prod(end - start for start, end in spans)))
        return self.source.read(name, spans)


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_a_device_reads_only_what_it_holds(kind, tmp_path):
    hub, tensors = saved(tmp_path, "qwen2", qkv_bias=True, heads=4, kv_heads=2)
    write_gguf(tmp_path / "m.gguf", hub, tensors)
    file = SafetensorsFolder(tmp_path) if kind == "folder" else GgufFile(tmp_path / "m.gguf")
    with file as source:
        watched = Watched(source)
        params = load_params(hub, watched, in_parts, lambda place: place.tensor if kind == "folder" else place.gguf)
    same(params, load_folder(tmp_path, shardings)[1], rtol=0, atol=0)
    cut = 0
    for name, whole, elements in watched.reads:
        parts = 1 if "norm" in name else 2 if name.endswith("bias") else 8
        assert elements == whole // parts, name
        cut += parts > 1
    assert cut >= 8 * 7 * hub.config.layers
