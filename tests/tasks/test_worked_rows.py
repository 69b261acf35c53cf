"""Rows as those of GSM8K and MATH: worked solutions, rewards of parts, and the formats that `datasets` writes."""

import importlib
import re

import numpy as np
import pytest
from host_texts import SUMS
from test_host_tasks import say

from jaxrl_llm import tasks
from jaxrl_llm.evaluate import best_constant, right
from jaxrl_llm.rewards import pool as pools
from jaxrl_llm.spec import SpecError, build
from jaxrl_llm.tasks.rows import rows

GSM8K = [
    {"question": f"Tom has {n} bags of 1,000 beans. How many?", "answer": f"1000*{n}=<<{n}>>{n},000\n#### {n},000"}
    for n in range(1, 9)
]
MATH = [
    {
        "problem": rf"Halve, not by 1/0, $\frac{{1}}{{{n}}}$.",
        "solution": rf"It is \boxed{{\frac{{1}}{{2 \cdot {n}}}}}.",
        "level": "1",
    }
    for n in range(2, 9)
]


def gsm8k(built, content=GSM8K, **options):
    return built(content, prompt="question", match="gsm8k", answer_length=48, **options)


def grade(task, row, texts, **how):
    answer, acted = say(task, [texts], **how)
    return task.grade(answer, acted, {"row": np.asarray([row])})


def test_the_truth_of_gsm8k_stands_behind_the_hashes(built):
    task = gsm8k(built)
    assert [item["truth"] for item in task.items] == [f"{n},000" for n in range(1, 9)]
    found = grade(task, 2, ["3000", "a=1\n#### 3,000", "#### 3000.0", "3", "", "1000*3=3,000 beans"])
    assert found.reward.tolist() == [[1, 1, 1, 0, 0, 1]]


def test_a_worked_solution_is_what_is_imitated(built):
    task = gsm8k(built)
    table = task.train
    found = task.grade(table.solution[:, None], table.solution_mask[:, None], table.truth)
    assert (found.reward == 1).all()
    assert best_constant(task, 8)[0] <= 1


def test_the_truth_of_math_stands_in_the_last_box(built):
    task = built(MATH, prompt="problem", answer="solution", match="math", seconds=60.0, answer_length=48)
    assert task.items[0]["truth"] == r"\frac{1}{2 \cdot 2}"
    found = grade(task, 0, [r"\boxed{\frac{1}{4}}", r"\boxed{.25}", "1/4", r"\boxed{4}", "not"])
    assert found.reward.tolist() == [[1, 1, 1, 0, 0]]
    assert found.valid.all()


def test_a_reward_is_a_sum_of_parts_and_accuracy_is_read_off_one(built):
    task = gsm8k(built, reward="correct+0.5*hashes-0.1*length")
    assert task.component_names == ("correct", "hashes", "length")
    found = grade(task, 0, ["1000", "#### 1000", "#### 7", "7"])
    share = [5 / 48, 10 / 48, 7 / 48, 2 / 48]
    np.testing.assert_allclose(
        found.components[0], [[1, 0, share[0]], [1, 1, share[1]], [0, 1, share[2]], [0, 0, share[3]]], rtol=1e-6
    )
    np.testing.assert_allclose(found.reward[0], [1 - 0.1 * share[0], 1.5 - 0.1 * share[1], 0.5 - 0.1 * share[2],
                                                 -0.1 * share[3]], rtol=1e-5)  # fmt: skip
    assert right(found, task.component_names).tolist() == [[True, True, False, False]]
    cut = grade(task, 0, ["#### 1000"], end=False)
    np.testing.assert_allclose(cut.components[0], [[0, 0, 9 / 48]], rtol=1e-6)


def test_a_time_out_is_no_zero_whatever_else_the_answer_earns(built, monkeypatch):
    """The grader says nothing of one answer: it has no reward for its form either, and is counted."""
    task = gsm8k(built, reward="correct+0.5*hashes")
    monkeypatch.setattr(
        pools.GraderPool, "_ask", lambda self, item, seconds: late(item) if "8" in item["answer"] else (1.0, None)
    )
    found = grade(task, 0, ["#### 8", "#### 1000"])
    assert found.valid.tolist() == [[False, True]]
    assert found.components.tolist() == [[[0, 0], [1, 1]]]
    assert found.reward.tolist() == [[0, 1.5]]
    assert task.counts["timeouts"] == 1


def late(item):
    return None, pools._NoGradeError("timeouts", "no grade within 5 s")


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        (
            [*GSM8K, {"question": "q", "answer": "42"}],
            {},
            "data.jsonl: line 9: field 'answer' gives no final answer as",
        ),
        ([*GSM8K, {"question": "q", "answer": "#### "}], {}, "line 9: field 'answer' gives no final answer as '####"),
        (
            [*GSM8K, {"question": "q", "answer": "#### many"}],
            {},
            "line 9: the answer '#### many' does not match itself",
        ),
        (
            [*GSM8K, {"question": "q", "answer": "#### 4\n5"}],
            {},
            r"line 9: the answer '#### 4\n5' does not match itself",
        ),
        (GSM8K, {"match": "math"}, r"line 1: field 'answer' gives no final answer as \boxed{ANSWER}"),
        (GSM8K, {"match": "gsm8"}, "no match 'gsm8'; did you mean 'gsm8k'"),
        (GSM8K, {"reward": "correct+formatted"}, "no part 'formatted'"),
        (GSM8K, {"reward": "hashes"}, "lacks correct"),
    ],
)
def test_what_is_wrong_is_named_with_file_row_and_field(write, content, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        rows(write(content), prompt="question", answer_length=48, workers=1, **{"match": "gsm8k", **options})


def test_the_command_line_spells_it(write):
    path = write(GSM8K)
    spelling = (
        f"rows:{path},answer_length=48,match=gsm8k,prompt=question,reward=correct+0.2*hashes-0.1*length,workers=1"
    )
    with build(tasks, spelling, "task").pool:
        pass
    task = build(tasks, spelling, "task")
    task.close()
    assert task.spec == spelling
    with pytest.raises(SpecError, match="no part 'hash'; did you mean 'hashes'"):
        build(tasks, spelling.replace("hashes", "hash"), "task")


@pytest.mark.parametrize("kind", ["folder", "splits", "arrow file"])
def test_tables_that_datasets_has_saved(kind, tmp_path, cache):
    datasets = importlib.import_module("datasets")
    table, other = datasets.Dataset.from_list(SUMS), datasets.Dataset.from_list([{"prompt": "x", "answer": "1"}])
    path, options = tmp_path / "saved", {}
    if kind == "splits":
        datasets.DatasetDict({"train": other, "test": table}).save_to_disk(path)
        options = {"split": "test"}
    else:
        table.save_to_disk(path)
    path = next(path.glob("*.arrow")) if kind == "arrow file" else path
    task = rows(str(path), workers=1, **options)
    task.close()
    assert sorted(item["truth"] for item in task.items) == sorted(row["answer"] for row in SUMS)
    with pytest.raises(ValueError, match=r"there is no column 'anser'; did you mean 'answer'"):
        rows(str(path), answer="anser", workers=1, **options)
    with pytest.raises(ValueError, match="subset"):
        rows(str(path), subset="main", workers=1, **options)


def test_wrong_splits_and_damaged_folders_are_named(tmp_path, cache):
    datasets = importlib.import_module("datasets")
    table = datasets.Dataset.from_list([{"prompt": "x", "answer": "1"}, {"prompt": "y", "answer": None}])
    datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "d")
    with pytest.raises(ValueError, match="there is no split 'tests'"):
        rows(str(tmp_path / "d"), split="tests", workers=1)
    with pytest.raises(ValueError, match=r"d: row 2: field 'answer' is empty \(null\)"):
        rows(str(tmp_path / "d"), workers=1)
    with pytest.raises(ValueError, match="one table: no split 'test'"):
        rows(str(tmp_path / "d" / "train"), split="test", workers=1)
    for file in (tmp_path / "d" / "train").glob("*.arrow"):
        file.write_bytes(b"ARROW not really")
    with pytest.raises(ValueError, match="d: cannot be loaded"):
        rows(str(tmp_path / "d"), workers=1)


TESTS = '[["2\\n", "4\\n"]]'
PROGRAMS = [{"prompt": f"Double a number, in style {n}.", "answer": TESTS} for n in range(4)]


def test_programs_are_run_when_a_match_asks_for_it(built):
    task = built([*PROGRAMS, {"prompt": "?print(2*int(input()))0", "answer": TESTS}], match="code", answer_length=24)
    grades = grade(task, 0, ["print(2*int(input()))", "print(2)"])
    assert grades.reward.tolist() == [[1, 0]]
    assert np.asarray(grades.valid).all()


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ([{"prompt": "a", "answer": "4"}, *PROGRAMS], {}, "line 1: field 'answer': it must be JSON"),
        ([*PROGRAMS, {"prompt": "a", "answer": "[[1"}], {}, "line 5: field 'answer': no JSON"),
        ([*PROGRAMS, {**PROGRAMS[0], "answer": '[["", "1"]]'}], {}, "line 5 asks what"),
        (PROGRAMS, {"shots": 1}, "match=code knows of no program that is right"),
    ],
)
def test_tests_of_programs_are_read_at_the_start(write, content, options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        rows(write(content), match="code", **options)
