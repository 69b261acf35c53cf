"""Tasks of text: what is asked, what is graded, and how a task is spelled."""

import csv
import json
import types

import jax.numpy as jnp
import numpy as np
import pytest
from host_texts import SUMS, as_parquet, prompts, solutions

from jaxrl_llm import spec, tokenizers
from jaxrl_llm.tasks._host import HostTask
from jaxrl_llm.tasks.reasoning_gym import reasoning_gym
from jaxrl_llm.tasks.rows import rows
from jaxrl_llm.types import Task

MODULE = types.ModuleType("tasks")
MODULE.__dict__.update(__all__=["reasoning_gym", "rows"], reasoning_gym=reasoning_gym, rows=rows)


def say(task: HostTask, texts: list[list[str]], end: bool = True) -> tuple[jnp.ndarray, jnp.ndarray]:
    """Answers [P G T] of the texts, and their mask."""
    T = task.answer_length
    ids = [
        [[*task.tokenizer.encode(text), *([task.tokenizer.eos] if end else [])] for text in group] for group in texts
    ]
    answer = [[row + [task.tokenizer.pad] * (T - len(row)) for row in group] for group in ids]
    acted = [[[k < len(row) for k in range(T)] for row in group] for group in ids]
    return jnp.asarray(answer), jnp.asarray(acted)


def test_a_task_is_a_task(built):
    task = built()
    assert isinstance(task, Task)
    assert not task.on_device
    assert task.component_names == ("correct",)
    assert hash(task) != hash(built())


def test_tables_hold_the_questions_and_the_answers(built):
    task = built(heldout=10.0)
    truth = {row["prompt"]: row["answer"] for row in SUMS}
    assert task.train.prompt.shape == (40, 5)
    assert task.train.solution.shape == (40, 64)
    assert task.heldout.prompt.shape == (10, 5)
    for problems in (task.train, task.heldout):
        assert [truth[text] for text in prompts(task, problems)] == solutions(task, problems)
        assert problems.prompt_mask[:, -1].all()
        assert problems.solution_mask[:, 0].all()
        assert (problems.solution == task.tokenizer.eos).sum() == len(problems.solution)
        for text, row in zip(prompts(task, problems), problems.truth["row"].tolist(), strict=True):
            assert task.items[row]["truth"] == truth[text]


def test_train_and_heldout_share_no_question(built):
    task = built([*SUMS, *SUMS[:7]], heldout=0.3)
    asked = prompts(task, task.train) + prompts(task, task.heldout)
    assert sorted(asked) == sorted(row["prompt"] for row in SUMS)
    assert len(task.heldout.prompt) == 15
    assert task.duplicates == 7


def test_the_split_is_chosen_by_its_seed_and_not_by_the_order(built):
    first, again, other = (prompts(task, task.heldout) for task in (built(), built(), built(split_seed=1)))
    assert first == again != other
    assert first != [row["prompt"] for row in SUMS[:5]]


def test_grades_are_those_of_the_row_that_was_asked(built):
    task = built()
    chosen = task.train.truth["row"][jnp.asarray([3, 0])]
    (a, b) = (task.items[row]["truth"] for row in chosen.tolist())
    assert a != b
    texts = [[a, b, f" {a}".strip(), ""], [a, b, b + "0", "0"]]
    grade = task.grade(*say(task, texts), {"row": chosen})
    right = [[float(text == truth) for text in group] for group, truth in zip(texts, (a, b), strict=True)]
    np.testing.assert_array_equal(grade.reward, right)
    np.testing.assert_array_equal(grade.components[..., 0], right)
    assert grade.components.shape == (2, 4, 1)
    assert grade.valid.all()


def test_an_answer_without_its_end_is_wrong(built):
    task = built()
    row = task.train.truth["row"][:1]
    text = solutions(task, task.train)[0]
    answer, acted = say(task, [[text]])
    size = len(text) + 1
    assert task.grade(answer, acted, {"row": row}).reward.item() == 1
    assert task.grade(*say(task, [[text]], end=False), {"row": row}).reward.item() == 0
    assert task.grade(answer, acted.at[..., size - 1].set(False), {"row": row}).reward.item() == 0
    for behind in (task.tokenizer.eos, task.tokenizer.pad):
        longer = task.grade(answer.at[..., size].set(behind), acted.at[..., size].set(True), {"row": row})
        assert longer.reward.item() == 0
        assert longer.valid.all()
    off = task.grade(answer.at[..., size:].set(task.tokenizer.eos), acted, {"row": row})
    assert off.reward.item() == 1


def test_a_solution_is_a_right_answer(built):
    for match in ("exact", "numeric", "math_verify"):
        task = built(match=match, answer_length=8, seconds=60.0)
        grade = task.grade(task.train.solution[:, None], task.train.solution_mask[:, None], task.train.truth)
        assert grade.reward.min() == 1


def test_what_has_no_grade_is_not_valid(built, monkeypatch):
    task = built()
    answer, acted = say(task, [["1", "2", "1"]])
    seen = []
    monkeypatch.setattr(task.pool, "grade", lambda items: seen.extend(items) or [None, 1.0])
    grade = task.grade(answer, acted, {"row": jnp.asarray([4])})
    np.testing.assert_array_equal(grade.valid, [[False, True, False]])
    np.testing.assert_array_equal(grade.reward, [[0, 1, 0]])
    assert seen == [{"truth": SUMS[4]["answer"], "answer": "1"}, {"truth": SUMS[4]["answer"], "answer": "2"}]


def test_counts_are_those_of_the_pool(built):
    task = built(match="numeric")
    task.items[0] = {"truth": "none"}
    grade = task.grade(*say(task, [["1"]]), {"row": jnp.asarray([0])})
    assert not grade.valid.any()
    assert task.counts == {"timeouts": 0, "crashes": 0, "errors": 1, "oversized": 0}


@pytest.mark.parametrize(
    ("match", "answer", "right"), [("exact", "3.0", 0), ("numeric", "=3.0", 1), ("math_verify", "6/2", 1)]
)
def test_match_is_chosen(built, match, answer, right):
    task = built([*SUMS, {"prompt": "./", "answer": "77"}], match=match, seconds=60.0)
    row = next(k for k, item in enumerate(task.items) if item["truth"] == "3")
    assert task.grade(*say(task, [[answer]]), {"row": jnp.asarray([row])}).reward.item() == right


def test_tokenizer_is_chosen(built, tmp_path):
    assert built().tokenizer == tokenizers.CharTokenizer("0123456789+=")
    trained = built(tokenizer="sentencepiece")
    assert isinstance(trained.tokenizer, tokenizers.SentencePieceTokenizer)
    assert trained.tokenizer == built(tokenizer="sentencepiece").tokenizer
    assert sorted(prompts(trained, trained.heldout)) == sorted(prompts(built(), built().heldout))
    (tmp_path / "own.model").write_bytes(trained.tokenizer.model)
    assert built(tokenizer=str(tmp_path / "own.model")).tokenizer == trained.tokenizer


def test_prompt_length_is_as_asked(built):
    task = built(prompt_length=9)
    assert task.train.prompt.shape[1] == 9
    assert task.train.prompt_mask[:, -1].all()


def as_csv(table: list[dict]) -> str:
    return "prompt,answer\r\n" + "".join(f'"{row["prompt"]}",{row["answer"]}\r\n' for row in table)


@pytest.mark.parametrize("kind", ["jsonl", "lines.json", "list.json", "bom.json", "csv", "parquet"])
def test_all_formats_hold_the_same_rows(built, tmp_path, kind):
    content = {
        "jsonl": lambda: SUMS,
        "lines.json": lambda: SUMS,
        "list.json": lambda: json.dumps(SUMS, indent=2),
        "bom.json": lambda: b"\xef\xbb\xbf" + json.dumps(SUMS).encode(),
        "csv": lambda: as_csv(SUMS),
        "parquet": lambda: as_parquet(SUMS, tmp_path / "made.parquet"),
    }[kind]()
    task, same = built(content, f"data.{kind}"), built()
    assert prompts(task, task.train) == prompts(same, same.train)
    assert solutions(task, task.heldout) == solutions(same, same.heldout)


HARD = [
    "007",
    "NA",
    "null",
    "None",
    "2020-01-01",
    "12345678901234567890123",
    "3.10",
    "1e400",
    "true",
    "-0",
    "é漢\u2028x",
    "a,b",
    'a"b',
    "x\r\ny",
]
"""Answers that readers of tables change when they guess what is meant."""


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_answers_are_not_interpreted(built, tmp_path, kind):
    table = [{"prompt": f"p{k}", "answer": answer} for k, answer in enumerate(HARD)]
    content = table
    if kind == "csv":
        with open(tmp_path / "made.csv", "w", newline="") as file:
            csv.writer(file).writerows([["prompt", "answer"], *[row.values() for row in table]])
        content = (tmp_path / "made.csv").read_bytes()
    if kind == "parquet":
        content = as_parquet(table, tmp_path / "made.parquet")
    task = built(content, f"data.{kind}")
    assert sorted(item["truth"] for item in task.items) == sorted(HARD)


def test_numbers_keep_their_spelling(built):
    numbers = ["3.10", "12345678901234567890123", "1e400", "-0", "7"]
    task = built("".join(f'{{"prompt": {k}, "answer": {n}}}\n' for k, n in enumerate(numbers)))
    assert [item["truth"] for item in task.items] == numbers
    assert sorted(prompts(task, task.train) + prompts(task, task.heldout)) == ["0", "1", "2", "3", "4"]


def test_columns_are_chosen(built):
    task = built([{"q": row["prompt"], "a": row["answer"], "note": None} for row in SUMS], prompt="q", answer="a")
    assert len(task.train.prompt) == 45


SPECS = [
    "rows:PATH",
    "rows:PATH,answer_length=9,heldout=7.0,match=numeric,prompt_length=6,split_seed=3,tokenizer=sentencepiece",
    "reasoning_gym:products,heldout=10,max_digits=1,size=30,split_seed=5",
    "reasoning_gym:chain_sum,allow_negation=true,answer_length=8,heldout=5,max_terms=2,size=20,threshold=0.5,workers=1",
]


@pytest.mark.parametrize("text", SPECS)
def test_a_spec_builds_the_same_task_again(write, text):
    text = text.replace("PATH", write(SUMS))
    first = spec.build(MODULE, text, "task")
    again = spec.build(MODULE, first.spec, "task")
    assert first.spec == again.spec == text
    for problems, same in ((first.train, again.train), (first.heldout, again.heldout)):
        np.testing.assert_array_equal(problems.prompt, same.prompt)
        np.testing.assert_array_equal(problems.solution, same.solution)
    first.close()
    again.close()


def test_a_spec_is_short_and_in_order(write):
    path = write(SUMS)
    task = spec.build(MODULE, f"rows:{path},workers=1,heldout=0.1,match=numeric,answer_length=64", "task")
    assert task.spec == f"rows:{path},match=numeric,workers=1"
    task.close()
