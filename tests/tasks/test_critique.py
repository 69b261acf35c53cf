"""Questions with an answer to judge: their share, balance and form, and that nothing leaks across the split."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_device_tasks import KEYS, asked, judged, texts

from jaxrl_llm import spec, tasks
from jaxrl_llm.tasks.critique import BASES, critique

SMALL = {
    "addition": "addition,digits=1,terms=3",
    "digit_sort": "digit_sort,length=3",
    "modular_chain": "modular_chain,terms=2",
}
every_base = pytest.mark.parametrize("base", SMALL)


@functools.cache
def build(text):
    return spec.build(tasks, text, "task")


def sides(task):
    """Prompts and right answers of train and of held-out, as texts."""
    return [
        list(zip(texts(task, part.prompt), texts(task, part.solution), strict=True))
        for part in (task.train, task.heldout)
    ]


def critiques(side):
    """Critiques of a table as (question, shown answer, label)."""
    return [(asked(p), p[len(asked(p)) : -1], a) for p, a in side if p.endswith("?")]


@every_base
@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_a_share_of_the_questions_is_replaced_and_labels_are_balanced(base, share):
    plain, task = build(SMALL[base]), build(f"critique:{SMALL[base]},share={share}")
    for before, after in zip(sides(plain), sides(task), strict=True):
        assert [asked(p) for p, _ in after] == [p for p, _ in before]
        found, right = critiques(after), dict(before)
        assert len(found) == round(share * len(before))
        for question, shown, label in found:
            assert label == ("T" if shown == right[question] else "F")
        labels = [label for _, _, label in found]
        assert labels.count("F") - labels.count("T") == len(found) % 2
        assert all(answer == right[p] for p, answer in after if not p.endswith("?"))


@every_base
def test_shown_answers_are_right_answers_of_train_questions_that_differ(base):
    task = build(f"critique:{SMALL[base]},share=1.0")
    answers = {answer for _, answer in sides(build(SMALL[base]))[0]}
    for side in sides(task):
        wrong = [(q, shown) for q, shown, label in critiques(side) if label == "F"]
        assert wrong
        assert {shown for _, shown in wrong} <= answers
        assert all(judged(f"{q}{shown}?", base) == "F" for q, shown in wrong)
    # They are drawn anew for each question: no one wrong answer is on most.
    shown = [s for _, s, label in critiques(sides(task)[0]) if label == "F"]
    assert max(map(shown.count, set(shown))) < len(shown) / 2


def test_right_and_wrong_answers_look_alike_without_the_question():
    """Their mean is the same within chance, so the shown answer alone does not tell the label."""
    found = critiques(sides(build("critique:addition,share=1.0"))[0])
    shown = {label: np.array([int(s) for _, s, x in found if x == label]) for label in "TF"}
    error = np.sqrt(sum(np.var(x) / len(x) for x in shown.values()))
    assert abs(shown["T"].mean() - shown["F"].mean()) < 4 * error


@every_base
@pytest.mark.parametrize("share", [0.2, 1.0])
def test_no_held_out_question_is_in_train_asked_or_shown(base, share):
    train, heldout = sides(build(f"critique:{SMALL[base]},share={share}"))
    key = KEYS[base]
    assert not {key(asked(p)) for p, _ in train} & {key(asked(p)) for p, _ in heldout}


def test_nothing_and_everything_may_be_a_critique():
    none = build("critique:addition,share=0,digits=1")
    assert sides(none) == sides(build("addition,digits=1"))
    assert not np.asarray(none.train.truth["critique"]).any()
    every = build("critique:addition,share=1,digits=1")
    assert all(prompt.endswith("?") for side in sides(every) for prompt, _ in side)


def test_spec_names_what_is_not_a_default():
    assert build("critique:addition").spec == "critique:addition"
    assert build("critique:addition,terms=2,share=0.2,digits=1").spec == "critique:addition,digits=1"
    task = build("critique:modular_chain,modulus=7,share=1,split_seed=3")
    assert task.spec == "critique:modular_chain,share=1.0,modulus=7,split_seed=3"
    assert sides(build(task.spec)) == sides(task)


def test_another_split_has_other_critiques():
    first, second = (
        {asked(p): p.endswith("?") for p, _ in sides(build(f"critique:addition,split_seed={seed}"))[0]}
        for seed in (0, 1)
    )
    both = set(first) & set(second)
    same = np.mean([first[q] == second[q] for q in both])
    # Independent choices of a fifth agree on 0.8² + 0.2² of the questions.
    assert same == pytest.approx(0.68, abs=4 * np.sqrt(0.68 * 0.32 / len(both)))


def test_critiques_stay_as_they_are():
    """A change of these lines changes which held-out questions are critiques: results would not compare."""
    prompts = [prompt for prompt, _ in sides(build("critique:addition"))[1]]
    assert prompts[:5] == ["60+37=97?", "8+55=", "9+21=", "36+97=127?", "2+69=114?"]


def grade(task, kind, answers):
    """Reward and form of texts, `.` for the EOS, as answers to the first problem that is a critique or is none."""
    row = int(np.flatnonzero(np.asarray(task.train.truth["critique"]) == kind)[0])
    answer, acted = np.zeros((2, 1, len(answers), task.answer_length), np.int32)
    for i, text in enumerate(answers):
        ids = [task.tokenizer.eos if c == "." else task.tokenizer.encode(c)[0] for c in text]
        answer[0, i, : len(ids)], acted[0, i, : len(ids)] = ids, 1
    truth = jax.tree.map(lambda x: x[row : row + 1], task.train.truth)
    found = task.grade(jnp.asarray(answer), jnp.asarray(acted, bool), truth)
    return texts(task, task.train.solution[row : row + 1])[0], np.asarray(found.components[0])


def test_the_form_of_a_critique_is_one_letter_and_the_end():
    task = build("critique:addition,share=0.5")
    forms = ["T.", "F.", "42.", "T", "F", "T..", "TF.", ".T", ".", "", "?."]
    right, components = grade(task, True, forms)
    np.testing.assert_array_equal(components[:, 1], [text in ("T.", "F.") for text in forms])
    np.testing.assert_array_equal(components[:, 0], [text == f"{right}." for text in forms])
    right, components = grade(task, False, forms)
    np.testing.assert_array_equal(components[:, 1], [text == "42." for text in forms])
    assert right.isdigit()


def test_a_constant_answer_and_a_guess_earn_one_half():
    """Guessing scores 1/2 on balanced labels, and no constant answer does better (Critique-Coder's trap)."""
    task = build("critique:addition,share=1.0,digits=1")
    part, eos = task.heldout, task.tokenizer.eos
    answers = jnp.asarray([[task.tokenizer.encode(c)[0], eos, 0] for c in "TF"])
    answer = jnp.broadcast_to(answers, (len(part.prompt), 2, 3))
    reward = np.asarray(task.grade(answer, answer != 0, part.truth).reward)
    n = len(reward)
    np.testing.assert_array_equal(reward.sum(axis=0), [n // 2, n - n // 2])
    np.testing.assert_array_equal(reward.mean(axis=1), 0.5)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="not 'adition'; did you mean 'addition'"):
        critique("adition")
    with pytest.raises(ValueError, match="one right answer, not 'countdown'"):
        critique("countdown")
    with pytest.raises(ValueError, match="addition has no argument 'digit'; did you mean 'digits'"):
        critique("addition", digit=1)
    with pytest.raises(ValueError, match="digits must be an integer from 1 to 9, not 0"):
        critique("addition", digits=0)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=f"share must be from 0 to 1, not {share}"):
            critique("addition", share)
    assert sorted(BASES) == sorted(SMALL)


def test_a_table_with_one_answer_has_no_wrong_one_to_show(monkeypatch):
    plain = build("addition,digits=1")
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), plain.train)
    monkeypatch.setitem(BASES, "addition", lambda: type(plain)(**{**vars(plain), "train": same}))
    with pytest.raises(ValueError, match="all answers in train are the same"):
        critique("addition")
