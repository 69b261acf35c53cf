"""Rewards made of parts, and where the final answer of a worked solution stands."""

import time

import numpy as np
import pytest

from jaxrl_llm.rewards import parts
from jaxrl_llm.rewards.composite import Composite, read_composite
from jaxrl_llm.rewards.finals import after_hashes, last_boxed
from jaxrl_llm.rewards.parts import Seen

BOXED = {
    r"so \boxed{42}.": "42",
    r"\boxed{\frac{1}{2}}": r"\frac{1}{2}",
    r"\boxed{1} and then \boxed{ \sqrt{a_{1}} }": r"\sqrt{a_{1}}",
    r"\boxed{\{1, 2\}}": r"\{1, 2\}",
    r"\boxed {7}": "7",
    r"\boxed{x = \{ 3}": r"x = \{ 3",
    r"\boxed{a \} b}": r"a \} b",
    r"\fbox{3}": "3",
    r"\boxed{a} then \boxed{b": "a",
    r"\boxed{x \boxed{y}}": r"x \boxed{y}",
    r"{\boxed{1}": "1",
    r"\boxed{}": "",
    r"\boxed{\text{if } x \ge 0}": r"\text{if } x \ge 0",
    r"\boxed{1\\2}": r"1\\2",
    "42": None,
    "boxed{42}": None,
    r"\boxed": None,
    r"\boxed{": None,
    r"\boxed 42": None,
    r"\boxed\{42\}": None,
    "": None,
}
HASHED = {
    "2+2=4\n#### 4": "4",
    "#### 1\n#### 2 \n": "2",
    "#### 1,000": "1,000",
    "####4": "4",
    "####": "",
    "#### \n4": "",
    "### 4": None,
    "4": None,
}


@pytest.mark.parametrize("text", BOXED)
def test_the_last_box(text):
    assert last_boxed(text) == BOXED[text]


@pytest.mark.parametrize("text", HASHED)
def test_behind_the_last_hashes(text):
    assert after_hashes(text) == HASHED[text]


@pytest.mark.parametrize("text", [r"\boxed{" * 20_000, "{ " * 50_000, "\\" * 100_000, "#" * 100_000, " " * 100_000])
def test_a_hostile_text_takes_no_longer_than_its_length(text):
    start = time.monotonic()
    last_boxed(text), after_hashes(text)
    for name in parts.__all__:
        getattr(parts, name)(seen(text))
    assert time.monotonic() - start < 2


def seen(text, **changes):
    return Seen(**{"text": text, "correct": 1.0, "tokens": 3, "room": 12, "finished": True} | changes)


SCORES = {
    "boxed": [(r"\boxed{1}", 1), (r"\boxed{ }", 0), ("1", 0)],
    "hashes": [("why\n#### 3", 1), ("#### 3\nso there", 0), ("####", 0), ("3", 0), ("#### 3\n\n", 1)],
    "think": [
        ("<think>a</think> 3", 1),
        ("<think></think>3", 1),
        ("<think>a</think>", 0),
        ("a <think>b</think> 3", 0),
        ("<think>a 3", 0),
        ("<think>a<think>b</think> 3", 0),
        ("<think>a</think>b</think> 3", 0),
    ],
    "finished": [("x", 1)],
    "correct": [("x", 1)],
    "length": [("x", 0.25)],
}


@pytest.mark.parametrize("name", parts.__all__)
def test_each_part(name):
    for text, wanted in SCORES[name]:
        assert getattr(parts, name)(seen(text)) == wanted, text


@pytest.mark.parametrize(
    ("text", "names", "weights"),
    [
        ("correct", ("correct",), (1,)),
        ("correct+0.2*boxed-0.1*length", ("correct", "boxed", "length"), (1, 0.2, -0.1)),
        ("-length+2*correct", ("length", "correct"), (-1, 2)),
        ("0*correct+hashes", ("correct", "hashes"), (0, 1)),
    ],
)
def test_the_spelling(text, names, weights):
    found = read_composite(text)
    assert (found.names, found.weights) == (names, weights)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("corect", "no part 'corect'; did you mean 'correct'"),
        ("correct+0.2boxed", "is no sum of"),
        ("correct boxed", "' boxed' is no sum of"),
        ("correct+", "is no sum of"),
        ("correct+correct", "correct is given twice"),
        ("boxed", "lacks correct"),
        ("", "lacks correct"),
        ("correct+__import__", "no part '__import__'"),
        ("correct+Seen", "no part 'Seen'"),
        ("correct+1e3*boxed", "is no sum of"),
        ("correct--boxed", "is no sum of"),
    ],
)
def test_what_cannot_be_read_is_named(text, words):
    with pytest.raises(ValueError, match="reward") as error:
        read_composite(text)
    assert words in str(error.value)


def test_columns_and_their_sum():
    """Right and boxed, wrong and cut off, not graded, right and not boxed."""
    reward = read_composite("correct+0.5*boxed-0.1*length")
    grade = reward.grade(
        texts=[[r"\boxed{1}", r"\boxed{2}"], [r"\boxed{3}", "4"]],
        correct=np.asarray([[1, 0], [0, 1]], np.float32),
        valid=np.asarray([[True, True], [False, True]]),
        finished=np.asarray([[True, False], [True, True]]),
        tokens=np.asarray([[5, 10], [5, 1]]),
        room=10,
    )
    np.testing.assert_allclose(grade.components, [[[1, 1, 0.5], [0, 0, 1]], [[0, 0, 0], [1, 0, 0.1]]])
    np.testing.assert_allclose(grade.reward, [[1.45, -0.1], [0, 0.99]], rtol=1e-6)
    assert grade.valid.tolist() == [[True, True], [False, True]]
    assert Composite().names == ("correct",)
