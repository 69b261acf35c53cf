"""Saving over an earlier save: the new weights are read back, whatever the files, and nothing is left over."""

import itertools
import json

import jax
import numpy as np
import pytest
import tiny
from safetensors.numpy import load_file

from jaxrl_llm.policies.config import DecoderConfig
from jaxrl_llm.policies.hub import safetensors_save
from jaxrl_llm.policies.hub.config_json import Hub
from jaxrl_llm.policies.hub.load import load_folder, save_folder
from jaxrl_llm.policies.hub.safetensors_files import INDEX, SINGLE
from jaxrl_llm.sharding import MeshShape, make_mesh, state_shardings

CONFIG = DecoderConfig(layers=1, width=32, heads=2, kv_heads=1, head_size=16, mlp_width=32, norm_eps=1e-5)
HUB = Hub(config=CONFIG, family="llama", vocab_size=40, max_length=64, bos=1, eos=(2,), pad=0)
SIZES = {"one file": 2**30, "some files": 14_000, "many files": 6_000}  # bytes of a file
BESIDE = ("tokenizer.json", "adapter_model.safetensors", "model.gguf", "model-card.md")


def shardings(policy):
    return state_shardings(make_mesh(MeshShape()), policy.init, jax.random.key(0))


def params_of(seed):
    return tiny.decoder(HUB.vocab_size, seed, **{f: getattr(CONFIG, f) for f in CONFIG.__dataclass_fields__})[1]


def save(folder, seed, size, monkeypatch):
    monkeypatch.setattr(safetensors_save, "FILE_BYTES", SIZES[size])
    params = params_of(seed)
    save_folder(folder, HUB, params)
    return params


def weights_in(folder):
    names = {path.name for path in folder.iterdir()}
    return {name for name in names if "safetensors" in name} - set(BESIDE)


def test_a_save_in_several_files_is_indexed_whole(tmp_path, monkeypatch):
    params = save(tmp_path, 0, "some files", monkeypatch)
    index = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2
    assert shards == [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    found = {file: load_file(tmp_path / file) for file in shards}
    assert {name: file for file, tensors in found.items() for name in tensors} == index["weight_map"]
    sizes = {file: sum(each.nbytes for each in tensors.values()) for file, tensors in found.items()}
    assert index["metadata"] == {"total_size": sum(sizes.values())}
    assert all(size <= SIZES["some files"] or len(found[file]) == 1 for file, size in sizes.items())
    jax.tree.map(np.testing.assert_array_equal, load_folder(tmp_path, shardings)[1], params)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(SIZES, SIZES)))
def test_a_save_over_another_is_what_is_read_back(old, new, tmp_path, monkeypatch):
    for name in BESIDE:
        (tmp_path / name).write_text("kept")
    save(tmp_path, 0, old, monkeypatch)
    params = save(tmp_path, 1, new, monkeypatch)
    jax.tree.map(np.testing.assert_array_equal, load_folder(tmp_path, shardings)[1], params)
    index = tmp_path / INDEX
    shards = set(json.loads(index.read_text())["weight_map"].values()) if index.is_file() else set()
    assert weights_in(tmp_path) == (shards | {INDEX} if shards else {SINGLE})
    assert {(tmp_path / name).read_text() for name in BESIDE} == {"kept"}


class Died(BaseException):
    """What no handler of errors catches."""


@pytest.mark.parametrize(("old", "new"), list(itertools.product(["one file", "some files"], repeat=2)))
def test_a_save_that_dies_leaves_the_old_model_the_new_one_or_none(old, new, tmp_path, monkeypatch):
    """Killed before each file that it writes, renames or removes."""
    first, second, outcomes = params_of(0), params_of(1), []
    for last in itertools.count():
        folder = tmp_path / str(last)
        save(folder, 0, old, monkeypatch)
        with monkeypatch.context() as patch:
            calls = itertools.count()

            def counted(function, calls=calls, last=last):
                def call(*args, **options):
                    if next(calls) == last:
                        raise Died
                    return function(*args, **options)

                return call

            patch.setattr(safetensors_save, "_write", counted(safetensors_save._write))
            patch.setattr(safetensors_save.os, "replace", counted(safetensors_save.os.replace))
            patch.setattr(safetensors_save.pathlib.Path, "unlink", counted(safetensors_save.pathlib.Path.unlink))
            patch.setattr(
                safetensors_save.pathlib.Path, "write_text", counted(safetensors_save.pathlib.Path.write_text)
            )
            try:
                save(folder, 1, new, monkeypatch)
            except Died:
                outcomes.append(read_back(folder, first, second))
            else:
                break
    assert set(outcomes) <= {"old", "new", "none"}
    assert outcomes[0] == "old"
    order = [kind for kind, _ in itertools.groupby(outcomes)]
    assert order in (["old", "none"], ["old", "none", "new"]), "never the old one again, and never a mixture"


def read_back(folder, first, second):
    try:
        _, params = load_folder(folder, shardings)
    except FileNotFoundError:
        return "none"
    same = lambda other: all(jax.tree.leaves(jax.tree.map(np.array_equal, params, other)))  # noqa: E731
    return "old" if same(first) else "new" if same(second) else "mixture"


def test_a_save_that_fails_leaves_no_drafts(tmp_path, monkeypatch):
    params = save(tmp_path, 0, "some files", monkeypatch)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path, content):
        if "00003" in path.name:
            raise OSError("no space left on device")
        path.write_bytes(b"x")

    monkeypatch.setattr(safetensors_save, "_write", full)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path, 1, "many files", monkeypatch)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    jax.tree.map(np.testing.assert_array_equal, load_folder(tmp_path, shardings)[1], params)
