"""Notebooks are short, keep their outputs, and their cells run."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


@every_notebook
def test_they_are_short_and_keep_what_they_showed(path):
    cells = code_cells(path)
    assert sum(len([line for line in source(cell).splitlines() if line.strip()]) for cell in cells) < 100
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))  # run once, from top to bottom
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


@every_notebook
def test_figures_are_kept(path):
    shows = sum("plt.show()" in source(cell) for cell in code_cells(path))
    kept = sum("image/png" in output.get("data", {}) for cell in code_cells(path) for output in cell["outputs"])
    assert kept >= shows


TRAINS = ("04", "05")  # these train policies, for minutes
RUNS = [pytest.param(path, id=path.stem, marks=[pytest.mark.long] * path.stem.startswith(TRAINS)) for path in NOTEBOOKS]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS)
def test_cells_run(path, tmp_path):
    script = tmp_path / "cells.py"
    script.write_text("\n".join(source(cell) for cell in code_cells(path)), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {"MPLBACKEND": "agg"}
    environment["JAX_COMPILATION_CACHE_DIR"] = jax.config.jax_compilation_cache_dir
    done = subprocess.run(
        [sys.executable, str(script)], cwd=path.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
