"""Rows that are refused, each with its place, and the parts of the library that read the others."""

import importlib
import io
import pathlib
import re

import pytest
import sentencepiece
from broken_files import BROKEN
from host_texts import SUMS, as_parquet

from jaxrl_llm import tokenizers
from jaxrl_llm.tasks.reasoning_gym import reasoning_gym
from jaxrl_llm.tasks.rows import rows


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_the_place(write, name):
    file, content, words = BROKEN[name]
    path = write(content, file)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        rows(path, workers=1)
    assert file in str(error.value) or name == "one question"


def test_a_broken_parquet_column_is_refused_with_the_place(write, tmp_path):
    table = [{"prompt": "a", "answer": 1.5}, {"prompt": "b", "answer": None}]
    path = write(as_parquet(table, tmp_path / "made.parquet"), "some.parquet")
    with pytest.raises(ValueError, match=r"some\.parquet: row 2: field 'answer' is empty"):
        rows(path, workers=1)
    with pytest.raises(ValueError, match=r"some\.parquet: there is no column 'anser'; did you mean 'answer'"):
        rows(path, answer="anser", workers=1)
    path = write(as_parquet([{"prompt": "a", "answer": float("nan")}], tmp_path / "made.parquet"), "other.parquet")
    with pytest.raises(ValueError, match="row 1: field 'answer' is nan, which is no number"):
        rows(path, workers=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"match": "numerik"}, "no match 'numerik'; did you mean 'numeric'"),
        ({"tokenizer": "chars"}, "no tokenizer 'chars'; did you mean 'char'"),
        ({"tokenizer": "absent.model"}, "absent.model"),
        ({"heldout": 0.0}, "heldout is a share"),
        ({"heldout": -1.0}, "heldout is a share"),
        ({"heldout": 2.5}, "heldout is a share"),
        ({"heldout": 50.0}, "heldout must be from 1 to 49 of these 50 questions, not 50"),
        ({"prompt_length": 4}, "50 of 50 prompts are longer than prompt_length=4; the longest has 5 tokens"),
        ({"answer_length": 2}, "10 of 50 answers are longer than answer_length=2; the longest has 3 tokens"),
        ({"split": "test"}, "one table: it has no split 'test'"),
        ({"subset": "main"}, "one table: it has no split 'train' or subset 'main'"),
        ({"prompt": "promt"}, "no column 'promt'; did you mean 'prompt'"),
        ({"workers": 0}, "above 0"),
        ({"seconds": 0.0}, "above 0"),
    ],
)
def test_wrong_options_are_refused(write, options, words):
    with pytest.raises((ValueError, OSError), match=re.escape(words)):
        rows(write(SUMS), **options)


@pytest.mark.parametrize("match", ["numeric", "math_verify"])
def test_an_answer_that_could_never_match_is_refused(write, match):
    table = [*SUMS[:3], {"prompt": "what?", "answer": "$" if match == "math_verify" else "nothing"}]
    with pytest.raises(ValueError, match=r"data\.jsonl: line 4: the answer '.*' does not match itself"):
        rows(write(table), match=match, workers=1, seconds=60.0)


def test_a_character_that_a_tokenizer_lacks_is_refused_with_the_place(write):
    options = {**tokenizers.TRAINER, "byte_fallback": False, "vocab_size": 30}
    model = io.BytesIO()
    texts = iter([row["prompt"] + row["answer"] for row in SUMS])
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=texts, model_writer=model, **options)
    path = write(model.getvalue(), "digits.model")
    with pytest.raises(ValueError, match=r"data\.jsonl: line 51: character 'x' at position 1"):
        rows(write([*SUMS, {"prompt": "1x", "answer": "2"}]), tokenizer=path, workers=1)


def test_absent_files_and_hub_names_are_refused(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no file '.*absent\.csv'"):
        rows(str(tmp_path / "absent.csv"))
    with pytest.raises(ValueError, match=r"rows are read from .* or a data set OWNER/NAME"):
        rows(str(tmp_path))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="owner/name: rows are read from"):
        rows("owner/name")
    with pytest.raises(ValueError, match=r"nobody/nothing: cannot be loaded: .*without a network"):
        rows("nobody/nothing")


def test_a_hub_name_is_read_by_the_library(monkeypatch):
    datasets = importlib.import_module("datasets")
    asked = []

    def load(*args, **options):
        asked.append((args, options))
        return datasets.Dataset.from_list([{**row, "other": 1} for row in SUMS])

    monkeypatch.setattr(datasets, "load_dataset", load)
    with rows("owner/name", split="test", subset="main", workers=1).pool as pool:
        assert asked == [(("owner/name",), {"name": "main", "split": "test"})]
        assert pool.counts["errors"] == 0


def test_a_path_with_a_comma_is_refused(write):
    with pytest.raises(ValueError, match="comma"):
        rows(write(SUMS, "a,b.jsonl"))


@pytest.mark.parametrize("package", ["reasoning_gym", "math_verify"])
def test_a_missing_package_is_named(write, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    with pytest.raises(ValueError, match=r"pip install 'jaxrl_llm\[tasks\]'"):
        reasoning_gym("chain_sum") if package == "reasoning_gym" else rows(write(SUMS), match="math_verify")


def test_a_refusal_leaves_no_process(write):
    def children():
        return {p for t in pathlib.Path("/proc/self/task").iterdir() for p in (t / "children").read_text().split()}

    before = children()
    for build in (lambda: rows(write(SUMS), heldout=50.0), lambda: reasoning_gym("products", max_digits=1)):
        with pytest.raises(ValueError, match=r"at most|must be") as error:
            build()
        assert children() <= before
        assert error  # it holds on to the frames, so that nothing is tidied up by forgetting
