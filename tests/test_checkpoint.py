"""Checkpoints: what counts as one, what is noticed, which ones stay, and onto which devices they are read."""

import itertools
import json
import pathlib
import re
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import heartbeat, manifest
from jaxrl_llm.checkpoint import CheckpointError, Checkpoints, Keep, abstract, kept
from jaxrl_llm.sharding import MeshShape, by_prompt, make_mesh, place, replicated

sys.path.append(str(pathlib.Path(__file__).parent))
from faults import damage


@pytest.fixture
def folder(tmp_path):
    damage.save_both(tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def read(folder, step=None):
    told = []
    with Checkpoints(folder, tell=told.append) as store:
        return store.restore(damage.state(0), step), told


def assert_is(tree, step):
    jax.tree.map(np.testing.assert_array_equal, tree, damage.state(step))


def test_the_newest_is_read_and_nothing_is_said(folder):
    found, told = read(folder)
    assert_is(found, damage.NEW)
    assert told == []
    assert_is(read(folder, damage.OLD)[0], damage.OLD)
    with pytest.raises(CheckpointError, match=re.escape("no checkpoint of step 5 (there are: [3, 7])")):
        read(folder, 5)


def test_a_step_without_its_digests_is_unfinished(folder):
    (folder / "7" / "digests.0.json").unlink()
    found, told = read(folder)
    assert_is(found, damage.OLD)
    assert told == [f"{folder}/7 is unfinished: there is no digests.0.json"]
    with Checkpoints(folder) as store:
        assert (store.steps(), store.latest()) == ([3], 3)


def rewrite(path, change):
    """Change the content of a manifest, under a crc32 that fits it."""
    told = json.loads(path.read_text())
    del told["crc32"]
    change(told)
    path.write_text(json.dumps(manifest.sealed(told)))


def test_values_that_were_not_saved_are_noticed_by_leaf(folder):
    """A reader that gives other bits than were saved, in one value of one leaf; the files are as they were."""

    def other_bits(told):
        told["leaves"]["['params']['mlp']"][0][2] ^= 1

    rewrite(folder / "7" / "digests.0.json", other_bits)
    found, said = read(folder)
    assert_is(found, damage.OLD)
    assert said[0].startswith(f"{folder}/7 is damaged: leaf ['params']['mlp'] has the crc32 ")
    with pytest.raises(CheckpointError, match="mlp"):
        read(folder, 7)


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told["leaves"].pop("['step']"),
        lambda told: told["leaves"].update(new=[]),
        lambda told: told["leaves"].update({"['step']": [[[], "int64", 0]]}),
        lambda told: told["leaves"].update({"['step']": "7"}),
        lambda told: told.update(processes=2),
        lambda told: told.update(processes="1"),
        lambda told: told.pop("leaves"),
        lambda told: told["files"].update(absent=[0, 0]),
    ],
)
def test_digests_that_do_not_fit_are_noticed(folder, change):
    rewrite(folder / "7" / "digests.0.json", change)
    found, said = read(folder)
    assert_is(found, damage.OLD)
    assert len(said) == 1
    assert "does not have the crc32" not in said[0]


def test_a_flipped_bit_of_a_figure_never_decides_which_step_stays(folder):
    """Figures stand in the manifests, which have a crc32 of their own content."""
    path = folder / "7" / "digests.0.json"
    whole = path.read_bytes()
    figures = whole.index(b'"metrics"'), whole.index(b'"files"')
    said = []
    for at, bit in itertools.product(range(*figures), range(8)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        path.write_bytes(flipped)
        try:
            found = manifest.read_manifests(folder / "7")[0]["metrics"]
        except manifest.DamageError as error:
            said.append(str(error))
        else:
            assert found == damage.FIGURES[7]
    assert len(said) > 7 * (figures[1] - figures[0])
    assert all(str(path) in text for text in said)
    path.write_bytes(whole.replace(b"0.546875", b"0.046875"))
    with Checkpoints(folder, 1, Keep(best="eval/accuracy"), tell=lambda text: None) as store:
        assert store.steps() == [3]
        store.save(9, damage.state(9), {"eval/accuracy": 0.1})
    assert sorted(path.name for path in folder.iterdir()) == ["7", "9"], "a damaged step is not deleted for its figure"


def test_every_damage_is_noticed_or_harmless(tmp_path):
    counts, failures = damage.campaign(32, 0, tmp_path)
    assert not failures
    struck = {tuple(name.split()[:2]) for name in counts}
    assert struck == set(itertools.product(damage.KINDS, damage.TARGETS))


def test_without_digests_flipped_bits_are_read_in_silence(tmp_path, monkeypatch):
    """What the digests are for: Orbax alone takes the bits that it finds. So the campaign can fail."""
    monkeypatch.setattr(manifest, "require_files", lambda folder: None)
    monkeypatch.setattr(manifest, "require_leaves", lambda *_: None)
    rng = np.random.default_rng(0)
    damage.save_both(tmp_path / "c")
    data = max(
        (path for path in (tmp_path / "c" / "7").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    found = []
    whole = data.read_bytes()
    for _ in range(20):
        damage.strike(data, "bit", rng)
        found.append(damage.outcome(tmp_path / "c"))
        data.write_bytes(whole)
    assert "wrong values were read as step 7" in found


def test_when_nothing_is_good_all_is_named(folder):
    for step in (3, 7):
        (folder / str(step) / "digests.0.json").unlink()
    with pytest.raises(CheckpointError, match=re.escape("no checkpoint that can be used (there are: [3, 7])")):
        read(folder)
    with Checkpoints(folder, tell=lambda text: None) as store, pytest.raises(CheckpointError, match="can be used"):
        store.take_up(damage.state(0))


def test_what_is_not_good_goes_when_a_run_goes_on(folder):
    (folder / "7" / "digests.0.json").unlink()
    (folder / "9.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(folder, tell=lambda text: None) as store:
        step, found = store.take_up(damage.state(0))
        assert step == 3
        assert_is(found, 3)
        assert [path.name for path in folder.iterdir()] == ["3"]
        store.save(7, damage.state(8))
    assert_is(read(folder)[0], 8)


def test_a_first_step_that_was_cut_short_is_none(tmp_path):
    with Checkpoints(tmp_path) as store:
        assert store.take_up(damage.state(0)) is None
        store.save(0, damage.state(1))
        store.wait()
        manifest.forget(tmp_path / "0")
        assert store.take_up(damage.state(0)) is None
        store.save(0, damage.state(2))
    assert_is(read(tmp_path)[0], 2)


def test_which_checkpoints_stay():
    figures = {
        step: {"eval/accuracy": x} for step, x in ((0, 0.1), (10, 0.5), (20, 0.9), (30, 0.9), (40, 0.2), (50, 0.3))
    }
    figures[45] = {}
    assert kept(figures, 2, Keep()) == {45, 50}
    assert kept(figures, 1, Keep(every=20)) == {0, 20, 40, 50}
    assert kept(figures, 1, Keep(best="eval/accuracy")) == {30, 50}
    assert kept({}, 1, Keep(best="eval/accuracy")) == set()
    for wrong, message in (({"every": -1}, "0 or more"), ({"best": "eval/acuracy"}, "did you mean 'eval/accuracy'")):
        with pytest.raises(ValueError, match=message):
            Keep(**wrong)
    with pytest.raises(ValueError, match="held-out figure"):
        Keep(best="loss")
    with pytest.raises(ValueError, match=r"keep\.patience must be above 0 s, not 0"):
        Keep(patience=0.0)


def test_old_ones_go_only_once_a_new_one_is_whole(tmp_path):
    state = damage.state(0)
    with Checkpoints(tmp_path, 1, Keep(best="eval/accuracy")) as store:
        for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.1), (4, None)):
            store.save(step, state, None if accuracy is None else {"eval/accuracy": accuracy})
            store.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "4"]


@pytest.mark.parametrize("fails", ["write_manifest", "read_manifests"])
def test_a_save_that_fails_leaves_the_one_before(tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path, 1) as store:
        store.save(1, damage.state(1))
        store.wait()
        with monkeypatch.context() as patch:
            patch.setattr(manifest, fails, full)
            store.save(2, damage.state(2))
            store._saving._thread.join()
        message = rf"{tmp_path}/2 could not be saved: .*No space left on device"
        with pytest.raises(CheckpointError, match=message):
            store.save(3, damage.state(3))
    assert_is(read(tmp_path)[0], 2 if fails == "read_manifests" else 1)


def test_a_store_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, 1, Keep(patience=0.01)) as store:
        monkeypatch.setattr(store, "_finish", lambda *_: time.sleep(0.5))
        store.save(1, damage.state(1))
        with pytest.raises(CheckpointError, match=r"within 0\.01 s .keep\.patience.; there is none before it"):
            store.wait()


def test_whoever_waits_for_a_save_is_seen_to_live(tmp_path, monkeypatch):
    heart = heartbeat.Heart(tmp_path / "sign")
    monkeypatch.setattr(heartbeat, "_hearts", [heart])
    with Checkpoints(tmp_path / "store", 1) as store:
        monkeypatch.setattr(store, "_finish", lambda *_: time.sleep(1.0))
        store.save(1, damage.state(1))
        store.wait()
    assert 3 <= heartbeat.read(heart.path)["midway"] <= 5


MESHES = {
    n: make_mesh(MeshShape(data=data, fsdp=n // data), jax.devices()[:n])
    for n, data in ((1, 1), (2, 1), (4, 2), (8, 8))
}


@pytest.mark.parametrize("written", MESHES)
def test_any_mesh_reads_what_any_other_wrote(tmp_path, written):
    tree = {"rows": jnp.arange(48.0).reshape(16, 3), "all": jnp.float32(2.5)}
    shardings = lambda mesh: {"rows": by_prompt(mesh), "all": replicated(mesh)}  # noqa: E731
    with Checkpoints(tmp_path) as store:
        store.save(1, jax.tree.map(place, tree, shardings(MESHES[written])))
    for mesh in MESHES.values():
        with Checkpoints(tmp_path) as store:
            found = store.restore(abstract(tree, shardings(mesh)))
        jax.tree.map(np.testing.assert_array_equal, found, tree)
        assert found["rows"].sharding == by_prompt(mesh)
