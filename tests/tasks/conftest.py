"""Tables in files, and tasks made of them."""

import json

import pytest
from host_texts import SUMS

from jaxrl_llm.tasks._host import HostTask
from jaxrl_llm.tasks.rows import rows


@pytest.fixture
def cache(tmp_path_factory, monkeypatch):
    """Tokenizers and tables are cached out of the way."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def write(cache, tmp_path):
    """Writes a file and returns its path; a list of rows becomes JSON lines."""

    def make(content, name="data.jsonl") -> str:
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return make


@pytest.fixture
def built(write):
    """Builds tasks of rows and closes them."""
    made = []

    def make(content=SUMS, name="data.jsonl", **options) -> HostTask:
        made.append(rows(write(content, name), **{"workers": 1, **options}))
        return made[-1]

    yield make
    for task in made:
        task.close()
