"""Held-out figures against enumeration, and what they may not depend on."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from jaxrl_llm.evaluate import Evaluator, best_constant, majority, pass_at_k, right
from jaxrl_llm.metrics import meaning
from jaxrl_llm.rollouts.sampling import GREEDY, SamplingRules
from jaxrl_llm.sharding import MeshShape, make_mesh
from jaxrl_llm.tasks import addition
from jaxrl_llm.tasks._table import DeviceTask
from jaxrl_llm.types import Grade

PLAIN = SamplingRules()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Compiling is most of the time here."""
    monkeypatch.setattr(jax, "jit", tiny.jit)


def short_and_even(answer, acted, truth):
    """Right where the first token is even and the answer ends in time; half a reward for evenness alone."""
    del truth
    even, ended = answer[..., 0] % 2 == 0, jnp.sum(acted, axis=-1) < answer.shape[-1]
    reward = jnp.where(even, jnp.where(ended, 1.0, 0.5), 0.0)
    return Grade(reward=reward, components=reward[..., None], valid=answer[..., 0] != 4)


TASK = dataclasses.replace(addition(digits=1), grade_fn=short_and_even)
POLICY, PARAMS = tiny.decoder(vocab=TASK.tokenizer.vocab_size, seed=2)


def evaluator(devices=1, **changes):
    fixed = {"seed": 5, "problems": 10, "samples": 6}
    return Evaluator(POLICY, TASK, make_mesh(MeshShape(), jax.devices()[:devices]), **(fixed | changes))


def test_pass_at_k_is_the_chance_that_a_subset_holds_a_right_answer():
    for samples in range(1, 7):
        correct = np.arange(samples + 1)
        for k in range(1, samples + 1):
            subsets = list(itertools.combinations(range(samples), k))
            shares = [np.mean([min(subset) < c for subset in subsets]) for c in correct]
            for c in correct:
                assert pass_at_k(np.asarray([c]), samples, k) == pytest.approx(shares[c])
            assert pass_at_k(correct, samples, k) == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("k", [0, 5])
def test_pass_at_k_beyond_the_samples_is_refused(k):
    with pytest.raises(ValueError, match=f"k must be from 1 to 4 .* not {k}"):
        pass_at_k(np.asarray([1, 2]), 4, k)


@pytest.mark.parametrize(
    ("votes", "right_answers", "expected"),
    [
        ("aab", "a", 1.0),
        ("abb", "a", 0.0),
        ("abab", "a", 0.5),
        ("abc", "a", 1 / 3),
        ("abcabcd", "ab", 2 / 3),
        ("a", "a", 1.0),
        ("abcd", "abcd", 1.0),
    ],
)
def test_majority_shares_a_tie(votes, right_answers, expected):
    for order in itertools.islice(itertools.permutations(votes), 100):
        answers = np.asarray([[[ord(vote), -1] for vote in order]])
        marks = np.asarray([[vote in right_answers for vote in order]])
        assert majority(answers, marks) == pytest.approx(expected)


def test_majority_is_a_mean_over_problems_of_whole_answers():
    answers = np.asarray([[[1, 2], [1, 3], [1, 3]], [[1, 2], [1, 2], [1, 3]]])
    assert majority(answers, np.asarray([[False, True, True], [False, False, True]])) == 0.5


def test_right_is_the_whole_reward_of_a_valid_answer():
    reward = jnp.asarray([[1.0, 0.999, 1.0, 0.0]])
    valid = jnp.asarray([[True, True, False, True]])
    grade = Grade(reward=reward, components=reward[..., None], valid=valid)
    assert right(grade).tolist() == [[True, False, False, False]]


class OnTheHost(DeviceTask):
    """Graded outside of the compiled program, from host arrays."""

    def grade(self, answer, acted, truth):
        assert all(isinstance(x, np.ndarray) for x in (answer, acted, *truth.values()))
        return self.grade_fn(*jax.tree.map(jnp.asarray, (answer, acted, truth)))


def on_the_host(task):
    fields = {field.name: getattr(task, field.name) for field in dataclasses.fields(task)}
    return OnTheHost(**fields | {"on_device": False})


@pytest.mark.parametrize("on_device", [True, False])
def test_the_best_constant_against_all_constants(on_device):
    exact = addition(digits=1)
    sums = [sum(map(int, exact.tokenizer.decode(row.tolist()).rstrip("=").split("+"))) for row in exact.heldout.prompt]
    share = {total: np.mean(np.asarray(sums) == total) for total in range(19)}
    task = exact if on_device else on_the_host(exact)
    accuracy, answer = best_constant(task, len(sums))
    assert accuracy == pytest.approx(max(share.values()))
    assert accuracy == pytest.approx(share[int(answer)])
    first = best_constant(task, 3)[0]
    assert first == pytest.approx(max(sums[:3].count(total) for total in sums[:3]) / 3)


def test_there_is_no_best_constant_without_solutions():
    tables = {name: getattr(TASK, name) for name in ("train", "heldout")}
    blank = {
        name: dataclasses.replace(table, solution_mask=jnp.zeros_like(table.solution_mask))
        for name, table in tables.items()
    }
    assert best_constant(dataclasses.replace(TASK, **blank), 5) is None


def test_the_figures_are_those_of_the_answers():
    it = evaluator()
    figures = it(PARAMS, 3)
    out, grade = it.decode(PARAMS, 3, 1, GREEDY)
    assert out.answer.shape == (10, 1, TASK.answer_length)
    assert figures["eval/accuracy"] == pytest.approx(right(grade).mean())
    assert figures["eval/mean_length"] == pytest.approx(out.acted.sum() / 10)
    assert figures["eval/clipped_ratio"] == pytest.approx(out.truncated.mean())
    out, grade = it.decode(PARAMS, 3, 6, PLAIN)
    marks = right(grade)
    assert 0 < marks.mean() < 1
    counts = marks.sum(axis=-1)
    for k in (1, 2, 4, 6):
        subsets = itertools.combinations(range(6), k)
        expected = np.mean([marks[:, list(subset)].any(axis=-1).mean() for subset in subsets])
        assert figures[f"eval/pass@{k}"] == pytest.approx(expected)
    assert figures["eval/pass@1"] == pytest.approx(counts.mean() / 6)
    assert 0 < figures["eval/majority"] < 1
    assert {name for name in figures if "pass@" in name} == {f"eval/pass@{k}" for k in (1, 2, 4, 6)}
    for name in figures:
        meaning(name)


def test_the_figures_are_the_same_every_time_and_others_at_another_step_or_seed():
    it = evaluator()
    assert it(PARAMS, 3) == it(PARAMS, 3) == evaluator()(PARAMS, 3)
    sampled = it.decode(PARAMS, 3, 6, PLAIN)[0].answer
    for other in (it.decode(PARAMS, 4, 6, PLAIN), evaluator(seed=6).decode(PARAMS, 3, 6, PLAIN)):
        assert np.mean(np.any(other[0].answer != sampled, axis=-1)) > 0.5


@pytest.mark.parametrize(("batch", "devices"), [(10, 1), (4, 1), (3, 1), (8, 8), (1, 4)])
def test_figures_do_not_depend_on_the_batch(batch, devices):
    """The last batch is filled up, and what fills it is thrown away."""
    whole, cut = evaluator(), evaluator(devices, batch=batch)
    assert cut.batch % devices == 0
    for rules, answers in ((GREEDY, 1), (PLAIN, 6)):
        (one, grade_1), (other, grade_2) = (it.decode(PARAMS, 3, answers, rules) for it in (whole, cut))
        assert len(other.answer) == len(grade_2.reward) == 10
        np.testing.assert_array_equal(one.answer, other.answer)
        np.testing.assert_array_equal(grade_1.reward, grade_2.reward)
    assert whole(PARAMS, 3) == pytest.approx(cut(PARAMS, 3), abs=1e-12)


def test_a_host_task_is_graded_as_one_on_the_device():
    mesh = make_mesh(MeshShape(), jax.devices()[:1])
    it = Evaluator(POLICY, on_the_host(TASK), mesh, seed=5, problems=10, samples=6, batch=4)
    assert it(PARAMS, 3) == evaluator()(PARAMS, 3)


def test_more_problems_than_there_are_are_all_of_them():
    assert evaluator(problems=10**6).problems == len(TASK.heldout.prompt)
    trained = evaluator(problems=7, split="train")
    np.testing.assert_array_equal(trained.table.prompt, TASK.train.prompt)
    assert len(trained.decode(PARAMS, 0, 1, GREEDY)[0].answer) == 7
