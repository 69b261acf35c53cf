"""Laws of every device task: the split, the tables and the grader."""

import functools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_llm import spec, tasks
from jaxrl_llm.tasks import _table

DEFAULTS = ["addition", "digit_sort", "modular_chain", "countdown"]
SMALL = [
    "addition,digits=1,terms=3,heldout=5,split_seed=7",
    "digit_sort,length=2",
    "modular_chain,terms=2,modulus=13",
    "countdown,numbers=2,maximum=12,target_maximum=20",
    "critique:addition,share=0.5,digits=1,terms=3",
]
every_task = pytest.mark.parametrize("text", [*DEFAULTS, *SMALL])
small_task = pytest.mark.parametrize("text", SMALL)


@functools.cache
def build(text):
    return spec.build(tasks, text, "task")


def module(name):
    return sys.modules[f"jaxrl_llm.tasks.{name}"]


def texts(task, ids):
    return [task.tokenizer.decode(row) for row in np.asarray(ids).tolist()]


def grade(task, answer, acted, truth):
    """Rewards of answers [P G T]."""
    return np.asarray(jax.jit(task.grade)(jnp.asarray(answer, jnp.int32), jnp.asarray(acted), truth).reward)


# What a prompt asks, worked out from its text alone.


def chain_of(prompt):
    chain, modulus = re.fullmatch(r"(.*)%(\d+)=", prompt).groups()
    return int(modulus), [(op or None, int(x)) for op, x in re.findall(r"([-+*]?)(\d+)", chain)]


def key_of_chain(prompt):
    """Runs of sums and runs of products, as multisets."""
    _, [(_, first), *steps] = chain_of(prompt)
    runs = []
    for operator, value in [("*" if steps[0][0] == "*" else "+", first), *steps]:
        if not runs or (runs[-1][-1][0] == "*") != (operator == "*"):
            runs.append([])
        runs[-1].append((operator, value))
    return tuple(tuple(sorted(run)) for run in runs)


def key_of_countdown(prompt):
    numbers, target = prompt.rstrip(":").split(">")
    return tuple(sorted(map(int, numbers.split()))), int(target)


KEYS = {
    "addition": lambda prompt: tuple(sorted(map(int, prompt.rstrip("=").split("+")))),
    "digit_sort": lambda prompt: "".join(sorted(prompt.rstrip("="))),
    "modular_chain": key_of_chain,
    "countdown": key_of_countdown,
    "critique:addition": lambda prompt: KEYS["addition"](asked(prompt)),
}


def asked(prompt):
    """The question of a critique, or the question itself."""
    return prompt[: prompt.index("=") + 1]


def judged(prompt, base="addition"):
    """What is right to say of a question with an answer shown, or of the question itself."""
    question, right = asked(prompt), ANSWERS[base](asked(prompt))
    return right if prompt == question else "T" if prompt == f"{question}{right}?" else "F"


def answer_of_chain(prompt):
    modulus, [(_, value), *steps] = chain_of(prompt)
    for operator, x in steps:
        value = value + x if operator == "+" else value - x if operator == "-" else value * x
    return str(value % modulus)


ANSWERS = {
    "addition": lambda prompt: str(sum(map(int, prompt.rstrip("=").split("+")))),
    "digit_sort": lambda prompt: "".join(sorted(prompt.rstrip("="))),
    "modular_chain": answer_of_chain,
    "critique:addition": judged,
}


def test_chains_are_one_problem_where_only_the_order_of_sums_or_of_products_differs():
    chains = ["3+4*2-5", "4+3*2-5", "3-5*2+4", "3+4-5*2", "3-5+4*2", "2*3*4+1", "4*2*3+1", "3+0*2-5"]
    rows = [[int(x) if x.isdigit() else "+-*".index(x) for x in chain] for chain in chains]
    keys = [tuple(key) for key in module("modular_chain").canonical(np.asarray(rows)).tolist()]
    assert keys[0] == keys[1]
    assert keys[3] == keys[4]
    assert keys[5] == keys[6]
    assert len(set(keys)) == 5


def assert_split(task):
    """No problem is on both sides, nor in a table twice, nor held out in two spellings."""
    key = KEYS[task.spec.split(",")[0]]
    train, heldout = texts(task, task.train.prompt), texts(task, task.heldout.prompt)
    held = set(map(key, heldout))
    assert (len(set(train)), len(held)) == (len(train), len(heldout))
    assert not held & set(map(key, train))


@every_task
def test_train_and_heldout_share_no_problem(text):
    assert_split(build(text))


@pytest.mark.parametrize("name", DEFAULTS)
def test_split_law_sees_a_split_that_takes_each_spelling_for_a_problem_of_its_own(name, monkeypatch):
    monkeypatch.setattr(module(name), "canonical", lambda *columns: np.column_stack(columns))
    with pytest.raises(AssertionError):
        assert_split(spec.build(tasks, name, "task"))


@every_task
def test_prompts_are_bos_and_text_padded_on_the_left(text):
    task = build(text)
    for part in (task.train, task.heldout):
        prompt, mask = np.asarray(part.prompt), np.asarray(part.prompt_mask)
        assert prompt.dtype == np.int32
        assert mask[:, -1].all()
        assert (mask == np.maximum.accumulate(mask, axis=1)).all()
        assert (prompt[np.arange(len(prompt)), mask.argmax(axis=1)] == task.tokenizer.bos).all()
        assert (prompt[~mask] == task.tokenizer.pad).all()
        for row, line in zip(prompt, texts(task, prompt), strict=True):
            assert [task.tokenizer.bos, *task.tokenizer.encode(line)] == [i for i in row if i != task.tokenizer.pad]


@every_task
def test_solutions_are_right_and_end_with_eos(text):
    task = build(text)
    for part in (task.train, task.heldout):
        solution, mask = np.asarray(part.solution), np.asarray(part.solution_mask)
        assert solution.shape == (len(part.prompt), task.answer_length)
        assert (mask == np.minimum.accumulate(mask, axis=1)).all()
        assert (solution[np.arange(len(solution)), mask.sum(axis=1) - 1] == task.tokenizer.eos).all()
        assert ((solution == task.tokenizer.eos).sum(axis=1) == 1).all()
        assert (grade(task, part.solution[:, None], part.solution_mask[:, None], part.truth) == 1).all()
        if answer := ANSWERS.get(text.split(",")[0]):
            assert texts(task, solution) == [answer(prompt) for prompt in texts(task, part.prompt)]


@every_task
def test_the_longest_solution_and_prompt_fill_their_arrays(text):
    task = build(text)
    parts = (task.train, task.heldout)
    assert max(int(part.solution_mask.sum(axis=1).max()) for part in parts) == task.answer_length
    assert max(int(part.prompt_mask.sum(axis=1).max()) for part in parts) == task.train.prompt.shape[1]


def corrupted(task, part, rng):
    """Answers [P G T] and acted [P G T], one of each way to spoil a solution, all worth 0 where one answer is right."""
    solution, mask = np.asarray(part.solution), np.asarray(part.solution_mask)
    (N, T), V = solution.shape, task.tokenizer.vocab_size
    rows, last = np.arange(N), mask.sum(axis=1) - 1
    changed = solution.copy()
    place = rng.integers(0, last + 1)
    changed[rows, place] = (changed[rows, place] + rng.integers(1, V, N)) % V
    cut = mask & (np.arange(T) != last[:, None])
    hole = mask & (np.arange(T) != 0)
    longer = mask | (np.arange(T) == np.minimum(last + 1, T - 1)[:, None])
    longer[last == T - 1] = False
    ways = [(changed, mask), (solution, cut), (solution, hole), (solution, longer), (solution, mask & False)]
    return tuple(np.stack(arrays, axis=1) for arrays in zip(*ways, strict=True))


@every_task
def test_spoilt_solutions_are_worth_nothing(text):
    task = build(text)
    answer, acted = corrupted(task, task.train, np.random.default_rng(0))
    reward = grade(task, answer, acted, task.train.truth)
    # One changed token can make another right expression of countdown; test_countdown.py holds that to a reference.
    assert (reward[:, 1 if text.startswith("countdown") else 0 :] == 0).all()


@every_task
def test_tokens_off_acted_change_nothing(text):
    task = build(text)
    rng = np.random.default_rng(1)
    answer, acted = corrupted(task, task.heldout, rng)
    answer[:, 0], acted[:, 0] = task.heldout.solution, task.heldout.solution_mask
    junk = rng.integers(-5, task.tokenizer.vocab_size + 5, answer.shape)
    before = grade(task, answer, acted, task.heldout.truth)
    after = grade(task, np.where(acted, answer, junk), acted, task.heldout.truth)
    np.testing.assert_array_equal(before, after)
    assert (after[:, 0] == 1).all()


@small_task
def test_a_grade_is_the_same_compiled_or_not_in_any_batch_and_under_vmap(text):
    task = build(text)
    part = jax.tree.map(lambda x: x[:6], task.train)
    answer, acted = map(jnp.asarray, corrupted(task, part, np.random.default_rng(2)))
    answer, acted = answer.at[:, 0].set(part.solution), acted.at[:, 0].set(part.solution_mask)
    whole = task.grade(answer, acted, part.truth)
    P, G = whole.reward.shape
    assert 0 < whole.reward.sum() < P * G
    assert whole.reward.dtype == jnp.float32
    assert whole.components.shape == (P, G, len(task.component_names))
    np.testing.assert_array_equal(whole.components[..., 0], whole.reward)
    np.testing.assert_array_equal(whole.valid, np.ones((P, G), bool))
    compiled = jax.jit(task.grade)
    jax.tree.map(np.testing.assert_array_equal, whole, compiled(answer, acted, part.truth))
    halves = [
        compiled(*jax.tree.map(lambda x, h=h: x[h], (answer, acted, part.truth))) for h in (slice(3), slice(3, 6))
    ]
    jax.tree.map(lambda x, *y: np.testing.assert_array_equal(x, np.concatenate(y)), whole, *halves)
    seeds = jax.jit(jax.vmap(task.grade))(*jax.tree.map(lambda x: x[None], (answer, acted, part.truth)))
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y[0]), whole, seeds)


@small_task
def test_spec_and_arguments_decide_the_tables(text):
    task = build(text)
    again = spec.build(tasks, task.spec, "task")
    assert (task.spec, again.spec) == (text, text)
    jax.tree.map(np.testing.assert_array_equal, (task.train, task.heldout), (again.train, again.heldout))
    other = spec.build(tasks, re.sub(",split_seed=.*", "", text) + ",split_seed=2", "task")
    assert other.train.prompt.shape[1] == task.train.prompt.shape[1]
    assert texts(other, other.heldout.prompt) != texts(task, task.heldout.prompt)
    assert_split(other)


def test_specs_are_normal_forms():
    assert build("addition,digits=2,heldout=512").spec == "addition"
    assert build("addition,terms=3,digits=1").spec == "addition,digits=1,terms=3"


def test_tables_stay_as_they_are():
    """A change of these lines moves problems across the split: results on held-out problems would not compare."""
    first = {name: texts(build(name), build(name).heldout.prompt[:3]) for name in DEFAULTS}
    assert first == {
        "addition": ["60+37=", "8+55=", "9+21="],
        "digit_sort": ["17431=", "47731=", "04293="],
        "modular_chain": ["1-4*1-7%10=", "7+1*4-9%10=", "3*4+6-2%10="],
        "countdown": ["2 3 5>4:", "1 9 9>81:", "1 2 6>12:"],
    }


def test_small_spaces_are_listed_in_full_and_hold_out_at_most_a_fifth():
    task = build("addition,digits=1")
    held = set(map(KEYS["addition"], texts(task, task.heldout.prompt)))
    assert len(held) == 11  # of 55 unordered pairs
    every = {f"{a}+{b}=" for a in range(10) for b in range(10) if tuple(sorted((a, b))) not in held}
    assert set(texts(task, task.train.prompt)) == every


def test_draws_of_a_large_space_are_distinct_and_in_range():
    radices = (3, 10**9, 50)
    rows = _table.draw(radices, 0)
    assert len(np.unique(rows, axis=0)) == len(rows) == _table.DRAWS
    assert (rows >= 0).all()
    assert (rows.max(axis=0) < radices).all()
    assert rows[:, 1].max() > 0.99e9
    assert set(rows[:, 0]) == {0, 1, 2}


BAD = [
    ("addition", "digits", (0, 10, True, 2.0)),
    ("addition", "terms", (1, 10)),
    ("digit_sort", "length", (1, 33)),
    ("modular_chain", "terms", (1, 17)),
    ("modular_chain", "modulus", (1, 1001)),
    ("countdown", "numbers", (1, 7)),
    ("countdown", "maximum", (1, 100)),
    ("countdown", "target_maximum", (8, 10_000)),
    *((name, "heldout", (0, _table.MAXIMUM_HELDOUT + 1)) for name in DEFAULTS),
    *((name, "split_seed", (-1, 2**32)) for name in DEFAULTS),
]


@pytest.mark.parametrize(("name", "argument", "values"), BAD)
def test_bad_arguments_are_named_with_their_range_before_any_work(name, argument, values, monkeypatch):
    monkeypatch.setattr(module(name), "draw", lambda *_: pytest.fail("the table was drawn"))
    for value in values:
        with pytest.raises((ValueError, TypeError), match=rf"{argument}.*{value}") as refusal:
            getattr(tasks, name)(**{argument: value})
        if type(value) is int:
            assert re.search(r"from \d+ to \d+", str(refusal.value))


def test_numbers_of_countdown_stay_within_int32():
    with pytest.raises(ValueError, match="maximum must be an integer from 2 to 35, not 36"):
        tasks.countdown(numbers=6, maximum=36)


def test_a_leading_zero_is_wrong():
    task = build("addition")
    short = np.flatnonzero(~np.asarray(task.train.solution_mask)[:, -1])[:100]
    zero = task.tokenizer.encode("0")[0]
    answer = np.insert(np.asarray(task.train.solution)[short, :-1], 0, zero, axis=1)
    acted = np.insert(np.asarray(task.train.solution_mask)[short, :-1], 0, True, axis=1)
    truth = jax.tree.map(lambda x: x[short], task.train.truth)
    assert (grade(task, answer[:, None], acted[:, None], truth) == 0).all()


FORMS = ["42.", "4.", "0.", "42", ".", "", "4+.", "4=2.", "+.", "42..", "4.2", "4.2."]


def test_the_form_of_an_answer_is_digits_and_then_the_end():
    """`.` stands for the EOS. The form does not look at the truth, and the truth does not look at the form."""
    task = build("addition")
    answer, acted = np.zeros((1, len(FORMS), task.answer_length), np.int32), None
    acted = np.zeros(answer.shape, bool)
    for i, text in enumerate(FORMS):
        ids = [task.tokenizer.eos if c == "." else task.tokenizer.encode(c)[0] for c in text]
        answer[0, i, : len(ids)], acted[0, i, : len(ids)] = ids, True
    truth = jax.tree.map(lambda x: x[:1], task.train.truth)
    grade = task.grade(jnp.asarray(answer), jnp.asarray(acted), truth)
    assert task.component_names == ("correct", "format")
    np.testing.assert_array_equal(grade.components[0, :, 1], [text in ("42.", "4.", "0.") for text in FORMS])


@small_task
def test_solutions_are_well_formed(text):
    task = build(text)
    grade = task.grade(task.train.solution[:, None], task.train.solution_mask[:, None], task.train.truth)
    np.testing.assert_array_equal(grade.components, 1)
