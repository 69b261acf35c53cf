"""Damaged weights and descriptions: a clear error that names the file, or a model; never a crash, a hang or a giant."""

import json
import random
import struct
import time

import gguf
import jax
import numpy as np
import pytest
import tiny

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import load_folder, load_gguf, save_folder
from jaxrl_llm.policies.hub.names import places
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

CONFIG = DecoderConfig(layers=1, width=32, heads=2, kv_heads=1, head_size=16, mlp_width=32, norm_eps=1e-5)
HUB = Hub(config=CONFIG, family="llama", vocab_size=40, max_length=64, bos=1, eos=(2,), pad=0)
FEW, MANY, SECONDS = 60, 700, 5


def shardings(policy):
    return state_shardings(make_mesh(MeshShape()), policy.init, jax.random.key(0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("good")
    _, params = tiny.decoder(HUB.vocab_size, **{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__})
    save_folder(path, HUB, params)
    return path


@pytest.fixture(scope="module")
def gguf_path(folder, tmp_path_factory):
    """The same model as a GGUF file, with quantised weights and a vocabulary."""
    from safetensors.numpy import load_file

    path, tensors = tmp_path_factory.mktemp("gguf") / "model.gguf", load_file(folder / "model.safetensors")
    write = gguf.GGUFWriter(path, "llama")
    write.add_block_count(1)
    write.add_context_length(64)
    write.add_embedding_length(CONFIG.width)
    write.add_feed_forward_length(CONFIG.mlp_width)
    write.add_head_count(CONFIG.heads)
    write.add_head_count_kv(CONFIG.kv_heads)
    write.add_layer_norm_rms_eps(CONFIG.norm_eps)
    write.add_rope_dimension_count(CONFIG.head_size)
    write.add_tokenizer_model("gpt2")
    write.add_token_list([f"<{i}>" for i in range(HUB.vocab_size)])
    for place in places(CONFIG).values():
        tensor = tensors[place.tensor.format(0)]
        if "attn_q" in place.gguf or "attn_k" in place.gguf:  # pairs of a head stand side by side in these files
            heads = tensor.shape[0] // CONFIG.head_size
            tensor = tensor.reshape(heads, 2, CONFIG.head_size // 2, -1).swapaxes(1, 2).reshape(tensor.shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if tensor.ndim == 2 else gguf.GGMLQuantizationType.F32
        write.add_tensor(place.gguf.format(0), gguf.quantize(tensor, kind), raw_dtype=kind)
    write.write_header_to_file()
    write.write_kv_data_to_file()
    write.write_tensors_to_file()
    write.close()
    return path


def damaged(content: bytes, seed: int) -> bytes:
    """One of: some bytes changed, mostly near the front; a number made huge; cut short; a part zeroed or doubled."""
    draw, data = random.Random(seed), bytearray(content)
    front = min(len(data), 4000)
    kind = seed % 5
    if kind == 0:
        for _ in range(draw.randint(1, 8)):
            data[draw.randrange(front)] = draw.randrange(256)
    elif kind == 1:
        at = draw.randrange(max(1, front - 8))
        data[at : at + 8] = struct.pack("<Q", draw.choice([2**63, 2**40, 2**31, 2**64 - 1, 0]))
    elif kind == 2:
        del data[draw.randrange(len(data)) :]
    elif kind == 3:
        at = draw.randrange(front)
        data[at : at + 64] = bytes(len(data[at : at + 64]))
    else:
        at = draw.randrange(front)
        data[at:at] = data[at : at + draw.randint(1, 64)]
    return bytes(data)


def damaged_json(content: bytes, seed: int) -> bytes:
    """A field removed, renamed, or set to something odd; every third a damage to the bytes."""
    if seed % 3 == 0:
        return damaged(content, seed // 3)
    draw, fields = random.Random(seed), json.loads(content)
    name = draw.choice(sorted(fields))
    value = fields.pop(name)
    odd = [None, -1, 0, 2**70, 1e400, "x", [], {}, [[]], {"rope_type": "x"}, True, [1, "a"], 7, 3.5]
    if seed % 3 == 1:
        fields[name] = draw.choice(odd)
    elif draw.random() < 0.5:
        fields[name + "_x"] = value
    return json.dumps(fields).encode()


def outcome(load, path) -> bool:
    """Whether it loads. Any error but a clear one that names the path fails the test."""
    start = time.monotonic()
    try:
        _, params = load()
    except (ValueError, OSError) as error:
        if str(path) not in str(error):
            raise AssertionError(f"an error does not name its file: {error}") from error
        return False
    finally:
        assert time.monotonic() - start < SECONDS
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(params))
    return True


def counts(of):
    return [pytest.param(of, FEW, id=f"{of}-few"), pytest.param(of, MANY, id=f"{of}-many", marks=pytest.mark.long)]


@pytest.mark.parametrize(("kind", "count"), [*counts("safetensors"), *counts("gguf"), *counts("config.json")])
def test_damage_is_a_clear_error_or_harmless(kind, count, folder, gguf_path, tmp_path):
    loaded = 0
    for seed in range(count):
        if kind == "gguf":
            path = tmp_path / "model.gguf"
            path.write_bytes(damaged(gguf_path.read_bytes(), seed))
            loaded += outcome(lambda path=path: load_gguf(path, shardings), path)
            continue
        files = {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
        if kind == "safetensors":
            files["model.safetensors"] = damaged(files["model.safetensors"], seed)
        else:
            files[kind] = damaged_json(files[kind], seed)
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
        loaded += outcome(lambda: load_folder(tmp_path, shardings), tmp_path)
    assert loaded < 0.6 * count


def test_undamaged_files_load(folder, gguf_path):
    hub, params = load_folder(folder, shardings)
    same, rounded = load_gguf(gguf_path, shardings)
    assert same.config == hub.config
    # Q8_0 keeps 7 bits of the largest of 32 weights.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=float(abs(a).max()) / 250), params, rounded)
