"""The parser that grades countdown in JAX agrees with a recursive-descent one in Python."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import tasks

EOS, CONTROL, FOREIGN = "$", "#", "?"  # how the tests below write EOS, another control id and an id out of range,
GAP = "_"  # and a token that is not acted


class Reference:
    """Recursive descent over the grammar at the head of countdown.py; ValueError where the text is not of it."""

    def __init__(self, text, precedence=True):
        self.text, self.at, self.used, self.precedence = text, 0, [], precedence

    def peek(self):
        return self.text[self.at] if self.at < len(self.text) else ""

    def take(self):
        self.at += 1
        return self.text[self.at - 1]

    def expression(self):
        value = self.term()
        while self.peek() and self.peek() in ("+-" if self.precedence else "+-*"):
            operator, other = self.take(), self.term()
            value = {"+": value + other, "-": value - other, "*": value * other}[operator]
        return value

    def term(self):
        value = self.factor()
        while self.precedence and self.peek() == "*":
            self.take()
            value *= self.factor()
        return value

    def factor(self):
        if self.peek() == "(":
            self.take()
            value = self.expression()
            if self.peek() != ")":
                raise ValueError("unclosed bracket")
            self.take()
            return value
        digits = ""
        while self.peek() and self.peek() in "0123456789":
            digits += self.take()
        if not digits or (digits[0] == "0" and digits != "0"):
            raise ValueError("no number")
        self.used.append(int(digits))
        return int(digits)

    def whole(self):
        value = self.expression()
        if self.at != len(self.text):
            raise ValueError("junk")
        return value


def value_of(text, numbers, precedence=True):
    """Value of an answer that uses the numbers exactly once each, or None."""
    reader = Reference(text.removesuffix(EOS), precedence)
    try:
        value = reader.whole()
    except ValueError:
        return None
    return value if text.endswith(EOS) and sorted(reader.used) == sorted(numbers) else None


@pytest.fixture(scope="module")
def task():
    return tasks.countdown()


@pytest.fixture(scope="module")
def graded(task):
    """Whether each text [P] is a right answer to its numbers [P n] and target [P]."""
    compiled = jax.jit(task.grade)
    ids = {c: task.tokenizer.encode(c)[0] for c in task.tokenizer.alphabet}
    ids |= {EOS: task.tokenizer.eos, CONTROL: task.tokenizer.pad, FOREIGN: task.tokenizer.vocab_size, GAP: 0}

    def run(texts, numbers, targets, T):
        answer = np.full((len(texts), 1, T), task.tokenizer.pad, np.int32)
        acted = np.zeros(answer.shape, bool)
        for row, text in enumerate(texts):
            answer[row, 0, : len(text)] = [ids[c] for c in text]
            acted[row, 0, : len(text)] = [c != GAP for c in text]
        truth = {"numbers": jnp.asarray(numbers, jnp.int32), "target": jnp.asarray(targets, jnp.int32)}
        return np.asarray(compiled(jnp.asarray(answer), jnp.asarray(acted), truth).reward)[:, 0] == 1

    return run


RIGHT = ["3*5+7", "7+5*3", "(3*5)+7", "((3*5+7))", "7+(5*3)", "(7)+(5)*(3)", "((((3*5))+7))"]
WRONG = [
    "", "+", "3", "3++5", ")(", "()", "22", "7+3*5+", "3*5+7-", "*3*5+7", "-3*5+7", "+7+3*5", "3*5+-7",
    "3*(5+7)", "3*5", "15+7", "3*5+7+7", "3*5+3", "3*5+6+1", "35-7", "3*57", "03*5+7", "3*5+07", "0+3*5+7", "3*5+70",
    "(3*5+7", "3*5+7)", "()3*5+7", "3*5+7()", "3*5()+7", "3(5)+7", "(3)(5)+7", "(3)5+7", "3*(5+)7", "(3*)5+7",
    "3*5)+(7", "3*5+7(", "3 *5+7", "3*5+7 ", "3*5+7>", "3*5+7:", "3*5+7#", "3*5#+7", "#3*5+7", "3*5+7?", "3*?5+7",
    "#*5+7", "?*5+7", "3*5+7$", "3*5+7$7", "3*5$+7", "$3*5+7", "3*5+_$7", "_3*5+7", "4294967299*5+7", "3*5+4294967303",
]  # fmt: skip


def test_right_and_wrong_answers_to_3_5_7_make_22(graded):
    texts = [text + EOS for text in RIGHT + WRONG] + RIGHT + [text for text in WRONG if not text.endswith(EOS)]
    reward = graded(texts, [(3, 5, 7)] * len(texts), [22] * len(texts), T=15)
    expected = [text in RIGHT for text in RIGHT + WRONG] + [False] * (len(texts) - len(RIGHT + WRONG))
    assert dict(zip(texts, reward, strict=True)) == dict(zip(texts, expected, strict=True))


@pytest.mark.parametrize("numbers", [(3, 5), (3, 3, 5), (5,)])
def test_every_short_text_is_graded_as_by_the_reference(graded, numbers):
    """All texts of up to 5 tokens, against every target that one of them or a part of one might make."""
    texts = ["".join(text) + EOS for n in range(6) for text in itertools.product("35+-*()", repeat=n)]
    values = [value_of(text, numbers) for text in texts]
    assert len(values) - values.count(None) >= {2: 18, 3: 27, 1: 3}[len(numbers)]
    given = np.broadcast_to(numbers, (len(texts), len(numbers)))
    for target in {0, 1, *numbers, *values} - {None}:
        expected = np.asarray([value == target for value in values])
        np.testing.assert_array_equal(graded(texts, given, np.full(len(texts), target), T=6), expected)


def random_expression(rng, numbers):
    """An expression of the numbers, with some brackets that it does not need."""
    if len(numbers) == 1:
        text = str(numbers[0])
    else:
        at = rng.integers(1, len(numbers))
        left, right = random_expression(rng, numbers[:at]), random_expression(rng, numbers[at:])
        text = left + rng.choice(list("+-*")) + right
    return f"({text})" if rng.random() < 0.3 else text


def mutated(rng, text):
    """One or two tokens put in, taken out, replaced or exchanged."""
    for _ in range(rng.integers(1, 3)):
        at, other = rng.integers(len(text) + 1), rng.choice(list("0123456789()+-*()+-*$#? "))
        way = rng.integers(4)
        if way == 0:
            text = text[:at] + other + text[at:]
        elif way == 1:
            text = text[:at] + text[at + 1 :]
        elif way == 2:
            text = text[:at] + other + text[at + 1 :]
        else:
            text = text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
    return text


@pytest.fixture(scope="module")
def random_answers():
    """(numbers, text) by the thousand, valid and mutated, of 2 to 5 numbers."""
    rng, answers = np.random.default_rng(0), []
    while len(answers) < 6000:
        numbers = rng.integers(1, 21, 2 + len(answers) % 4)
        text = random_expression(rng, rng.permutation(numbers)) + EOS
        text = text if rng.random() < 0.4 else mutated(rng, text)
        if len(text) <= 24:
            answers.append((tuple(numbers.tolist()), text))
    return answers


def disagreements(graded, answers, precedence=True):
    """How many answers the grader and the reference judge differently, and how many are right."""
    wrong = right = 0
    for n in range(2, 6):
        numbers, texts = zip(*(answer for answer in answers if len(answer[0]) == n), strict=True)
        values = [value_of(text, given, precedence) for given, text in zip(numbers, texts, strict=True)]
        expected = np.asarray([value is not None for value in values])
        targets = [value if value is not None else 24 for value in values]
        wrong += int((graded(texts, numbers, targets, T=24) != expected).sum())
        right += int(expected.sum())
    return wrong, right


def test_random_and_mutated_texts_are_graded_as_by_the_reference(graded, random_answers):
    wrong, right = disagreements(graded, random_answers)
    assert wrong == 0
    assert 2000 < right < 4500


def test_the_comparison_sees_a_parser_without_precedence(graded, random_answers):
    wrong, _ = disagreements(graded, random_answers, precedence=False)
    assert wrong > 100


def test_the_largest_value_is_within_int32(graded):
    text = "*".join(["35"] * 6)
    for answer, target in ((text, 35**6), (text.replace("*35*", "*(35)*"), 35**6), (text, 35**6 - 1)):
        assert graded([answer + EOS], [(35,) * 6], [target], T=26) == [target == 35**6]
    assert graded(["2-35*35*35*35*35" + EOS], [(35,) * 5 + (2,)], [2 - 35**5], T=26) == [True]


def test_brackets_nest_as_deep_as_the_answer_is_long(graded):
    for T in (6, 7, 16):
        depth = (T - 4) // 2
        inner = "(" * (depth - 1) + "5-(3)" + ")" * (depth - 1)
        outer = "5-" + "(" * depth + "3" + ")" * depth
        texts = [inner, outer, "(" * (T - 1), ")" * (T - 1), "(" * (T - 4) + "5-3", "5-3" + ")" * (T - 4)]
        reward = graded([text + EOS for text in texts], [(5, 3)] * 6, [2] * 6, T)
        np.testing.assert_array_equal(reward, [True, True, False, False, False, False])


@pytest.mark.parametrize("arguments", [{}, {"numbers": 2, "maximum": 99}, {"numbers": 6, "maximum": 35}])
def test_every_problem_can_be_solved_within_the_answer_length(arguments):
    task = tasks.countdown(**arguments)
    maximum = arguments.get("maximum", 9)
    for part in (task.train, task.heldout):
        for prompt, solution, numbers, target in zip(
            *map(np.asarray, (part.prompt, part.solution, part.truth["numbers"], part.truth["target"])), strict=True
        ):
            assert task.tokenizer.decode(prompt.tolist()) == " ".join(map(str, sorted(numbers))) + f">{target}:"
            assert value_of(task.tokenizer.decode(solution.tolist()) + EOS, numbers.tolist()) == target
            assert 1 <= target <= 99
            assert 1 <= min(numbers) <= max(numbers) <= maximum
