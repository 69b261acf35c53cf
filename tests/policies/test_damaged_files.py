"""Damaged weights and descriptions: a clear error that names the path, or a model; never a crash, a hang or a giant."""

import json
import pathlib
import subprocess
import sys

import damaged_files
import jax
import numpy as np
import pytest
from damaged_files import HUB, INDEX, KINDS, SINGLE, bounded, outcome, shardings, write_good

from jaxrl_llm.policies.hub.gguf_file import GgufFile
from jaxrl_llm.policies.hub.load import load_folder, load_gguf

FEW, MANY, TOTAL = 40, 400, 2000  # of each kind; and what all kinds shall be together


def campaign(count, folder):
    script = pathlib.Path(damaged_files.__file__)
    done = subprocess.run(
        [sys.executable, str(script), str(count), str(folder)],
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"it ended with {done.returncode}: {done.stderr[-3000:]}"
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "count",
    [pytest.param(FEW, id="few", marks=pytest.mark.slow), pytest.param(MANY, id="many", marks=pytest.mark.long)],
)
def test_damage_is_a_clear_error_or_harmless(count, tmp_path):
    found = campaign(count, tmp_path)
    print(found)
    assert set(found) == set(KINDS)
    for kind, counts in found.items():
        assert counts["loaded"] + counts["refused"] == count
        assert 0 < counts["loaded"] < 0.6 * count, f"the damage to {kind} is too small or too large to tell anything"


def test_the_long_campaign_is_as_long_as_promised():
    assert MANY * len(KINDS) >= TOTAL


def test_undamaged_files_load(tmp_path):
    good = write_good(tmp_path)
    hub, params = load_folder(good["single"], shardings)
    assert hub == HUB
    assert (good["single"] / SINGLE).is_file()
    assert (good["cut"] / INDEX).is_file()
    jax.tree.map(np.testing.assert_array_equal, load_folder(good["cut"], shardings)[1], params)
    for kind in ("gpt2", "llama"):
        same, rounded = load_gguf(good[f"{kind}.gguf"], shardings)
        assert same.config == hub.config
        # Q8_0 keeps 7 bits of the largest of 32 weights.
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=float(abs(a).max()) / 250), params, rounded)
        with GgufFile(good[f"{kind}.gguf"]) as file:
            tokenizer = damaged_files.load_gguf_tokenizer(file)
        assert len(tokenizer.encode("the")) <= 2, "words are merged"
    for name, (source, *_, load) in KINDS.items():
        assert outcome(load, good[source]) == "loaded", name


def test_an_error_without_its_file_and_one_of_memory_fail_the_campaign(tmp_path):
    def raising(error):
        def load(path):
            raise error

        return load

    with pytest.raises(AssertionError, match="does not name its file"):
        outcome(raising(ValueError("damaged")), tmp_path)
    with pytest.raises(AssertionError, match="more than"):
        outcome(raising(ValueError(f"{tmp_path}: MemoryError: ")), tmp_path)
    for error in (MemoryError(), KeyError("x"), TypeError("x"), IndexError("x")):
        with pytest.raises(type(error)):
            outcome(raising(error), tmp_path)
    assert outcome(raising(OSError(f"{tmp_path} is gone")), tmp_path) == "refused"


def test_more_memory_than_there_is_room_for_is_an_error():
    """In a process of its own, for the limit stays."""
    code = "import damaged_files as d; d.bounded(); bytearray(d.ROOM // 2); print('half'); bytearray(2 * d.ROOM)"
    folder = pathlib.Path(bounded.__code__.co_filename).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "half"
    assert "MemoryError" in done.stderr
