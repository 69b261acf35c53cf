"""Folders of safetensors: indices that lie, tensors that are missing, left over or misshapen, and 16-bit floats."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub import safetensors_save
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import load_folder, save_folder
from jaxrl_llm.policies.hub.safetensors_files import INDEX, SINGLE, SafetensorsFolder
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

CONFIG = DecoderConfig(layers=1, width=32, heads=2, kv_heads=1, head_size=16, mlp_width=48, norm_eps=1e-5)
HUB = Hub(config=CONFIG, family="llama", vocab_size=40, max_length=64, bos=1, eos=(2,), pad=0)
GATE, EMBEDDING = "model.layers.0.mlp.gate_proj.weight", "model.embed_tokens.weight"


def shardings(policy):
    return state_shardings(make_mesh(MeshShape()), policy.init, jax.random.key(0))


@pytest.fixture
def params():
    return tiny.decoder(HUB.vocab_size, **{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__})[1]


@pytest.fixture
def folder(tmp_path, params):
    """A model in one file."""
    save_folder(tmp_path, HUB, params)
    return tmp_path


@pytest.fixture
def cut(tmp_path, params, monkeypatch):
    """The same in several files, and its index."""
    monkeypatch.setattr(safetensors_save, "FILE_BYTES", 14_000)
    save_folder(tmp_path, HUB, params)
    return tmp_path, json.loads((tmp_path / INDEX).read_text())


def assert_refused(folder, words, kind=ValueError):
    with pytest.raises(kind, match=words) as caught:
        load_folder(folder, shardings)
    assert str(folder) in str(caught.value)


def test_an_index_reads_the_same_weights(cut, params):
    folder, index = cut
    assert len(set(index["weight_map"].values())) > 2
    jax.tree.map(np.testing.assert_array_equal, load_folder(folder, shardings)[1], params)


def test_files_beside_the_index_are_let_be(cut, params):
    folder, _ = cut
    save_file({GATE: np.zeros((2, 2), np.float32)}, folder / "adapter_model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_folder(folder, shardings)[1], params)


def test_a_shard_that_is_missing_is_named(cut):
    folder, index = cut
    (folder / index["weight_map"][GATE]).unlink()
    assert_refused(folder, f"there is no file .*{index['weight_map'][GATE]}", FileNotFoundError)


def test_a_shard_that_is_damaged_is_named(cut):
    folder, index = cut
    (folder / index["weight_map"][GATE]).write_bytes(b"\xff" * 100)
    assert_refused(folder, f"{index['weight_map'][GATE]} is no readable safetensors file")


def test_a_tensor_in_another_shard_than_the_index_says_is_named(cut):
    folder, index = cut
    other = next(file for file in index["weight_map"].values() if file != index["weight_map"][GATE])
    index["weight_map"][GATE] = other
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused(folder, f"{INDEX} says that {GATE} is in {other}, where it is not")


def test_a_tensor_that_no_shard_has_is_named(cut):
    folder, index = cut
    index["weight_map"]["model.ghost"] = index["weight_map"][GATE]
    (folder / INDEX).write_text(json.dumps(index))
    assert_refused(folder, f"{INDEX} says that model.ghost is in .*, where it is not")


def test_a_tensor_that_the_index_forgets_is_read_where_it_is(cut, params):
    """`transformers` reads whole shards too: the index says which."""
    folder, index = cut
    index["weight_map"].pop(GATE)
    (folder / INDEX).write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, load_folder(folder, shardings)[1], params)


def test_a_tensor_in_two_shards_is_refused(cut):
    """Which of them the model was saved with, nobody can say."""
    folder, index = cut
    own = index["weight_map"][GATE]
    other = min(set(index["weight_map"].values()) - {own})
    save_file(load_file(folder / other) | {GATE: np.zeros((48, 32), np.float32)}, folder / other)
    assert_refused(folder, f"{GATE} stands in {min(other, own)} and in {max(other, own)}$")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", f"{INDEX} is no JSON file"),
        ("[]", f"{INDEX} must hold a JSON object, not list"),
        ("[" * 100_000, f"{INDEX} is no JSON file"),
        ("{}", f"{INDEX}: weight_map must be an object of tensors and their files"),
        ('{"weight_map": []}', f"{INDEX}: weight_map must be an object"),
        ('{"weight_map": {}}', f"{INDEX}: weight_map must be an object"),
        ('{"weight_map": {"a": 3}}', f"{INDEX}: a must be in a .safetensors file of the same folder, not 3"),
        ('{"weight_map": {"a": "../b.safetensors"}}', "a must be in a .safetensors file of the same folder"),
        ('{"weight_map": {"a": "/etc/b.safetensors"}}', "a must be in a .safetensors file of the same folder"),
        ('{"weight_map": {"a": "b.bin"}}', "a must be in a .safetensors file of the same folder, not 'b.bin'"),
        ('{"weight_map": {"a": "b.safetensors"}}', "there is no file .*b.safetensors"),
    ],
)
def test_a_wrong_index_is_named(content, words, cut):
    (cut[0] / INDEX).write_text(content)
    assert_refused(cut[0], words, (ValueError, OSError))


def test_a_folder_without_weights_is_named(folder):
    (folder / SINGLE).unlink()
    assert_refused(folder, f"there is no file .*{SINGLE}", FileNotFoundError)


CHANGES = {
    "missing": (lambda t: t.pop(GATE), f"tensors are missing: {GATE}$"),
    "two missing": (lambda t: (t.pop(GATE), t.pop(EMBEDDING)), f"tensors are missing: {EMBEDDING}, {GATE}$"),
    "extra": (lambda t: t.update(ghost=t[GATE]), "tensors have no place in this model: ghost$"),
    "of another layer": (
        lambda t: t.update({GATE.replace("0", "1"): t[GATE]}),
        f"tensors have no place in this model: {GATE.replace('0', '1')}$",
    ),
    "renamed": (lambda t: t.update(ghost=t.pop(GATE)), f"missing: {GATE}; tensors have no place in this model: ghost$"),
    "transposed": (
        lambda t: t.update({GATE: np.ascontiguousarray(t[GATE].T)}),
        rf"{GATE} is transposed: \[32, 48\] instead of \[48, 32\]$",
    ),
    "misshapen": (
        lambda t: t.update({GATE: t[GATE][:, :-1].copy()}),
        rf"{GATE} is of another shape: \[48, 31\] instead of \[48, 32\]$",
    ),
    "of another rank": (lambda t: t.update({GATE: t[GATE].ravel()}), rf"{GATE} is of another shape: \[1536\] instead"),
    "of whole numbers": (
        lambda t: t.update({GATE: t[GATE].astype(np.int8)}),
        f"{GATE} is I8, not one of F32, F16, BF16",
    ),
    "of 64 bits": (lambda t: t.update({GATE: t[GATE].astype(np.float64)}), f"{GATE} is F64, not one of F32, F16, BF16"),
    "not finite": (lambda t: t[GATE].fill(np.nan), f"{GATE} holds weights that are not finite"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_wrong_tensors_are_named(case, folder):
    change, words = CHANGES[case]
    tensors = load_file(folder / SINGLE)
    change(tensors)
    save_file(tensors, folder / SINGLE)
    assert_refused(folder, words)


def test_what_old_files_hold_beside_is_not_read(folder, params):
    tensors = load_file(folder / SINGLE)
    tensors |= {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32), "lm_head.weight": tensors[GATE]}
    save_file(tensors, folder / SINGLE)
    jax.tree.map(np.testing.assert_array_equal, load_folder(folder, shardings)[1], params)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_16_bits_are_read_as_the_numbers_that_they_are(kind, folder):
    tensors = {name: value.astype(kind) for name, value in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / SINGLE)
    _, params = load_folder(folder, shardings)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    save_folder(folder / "again", HUB, params)
    for name, value in load_file(folder / "again" / SINGLE).items():
        np.testing.assert_array_equal(value, tensors[name].astype(np.float32), err_msg=name)


@pytest.mark.parametrize(("kind", "bits"), [("F16", 10), ("BF16", 7)])
def test_every_pattern_of_16_bits(kind, bits, tmp_path):
    """Against the definition: sign, exponent, fraction. Written byte by byte, with no library's conversion."""
    patterns = np.arange(2**16, dtype=np.uint16)
    header = json.dumps({"x": {"dtype": kind, "shape": [2**16], "data_offsets": [0, 2**17]}}).encode()
    (tmp_path / SINGLE).write_bytes(len(header).to_bytes(8, "little") + header + patterns.tobytes())
    with SafetensorsFolder(tmp_path) as source:
        found = source.read("x", ((0, 2**16),))
        np.testing.assert_array_equal(source.read("x", ((5, 9),)), found[5:9])
    sign, fraction = 1.0 - 2.0 * (patterns >> 15), (patterns & (2**bits - 1)) / 2**bits
    width = 15 - bits
    power, bias = ((patterns >> bits) & (2**width - 1)).astype(int), 2 ** (width - 1) - 1
    wanted = np.where(power == 0, sign * fraction * 2.0 ** (1 - bias), sign * (1 + fraction) * 2.0 ** (power - bias))
    finite = power < 2**width - 1
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[finite], wanted[finite].astype(np.float32))
    assert not np.isfinite(found[~finite]).any()
