"""Scorers of text: golden numbers, traps of the released code, and text that means harm."""

import itertools
import json

import pytest

from jaxrl_llm.rewards.text import list_scoring, tool_calls
from jaxrl_llm.rewards.text._json import DEPTH, SIZE, UnreadableError, read, same
from jaxrl_llm.rewards.text.critique import critique_reward, verdict
from jaxrl_llm.rewards.text.list_scoring import consistency, format_score, pair_score, parse_judgement
from jaxrl_llm.rewards.text.tool_calls import (
    correctness,
    overlap,
    parse_calls,
    thought_length,
    tool_reward,
    tool_score,
    well_formed,
)


def call(tool, **parameters):
    return {"name": tool, "parameters": parameters}


def block(*calls):
    return "<tool_call>\n" + "\n".join(map(json.dumps, calls)) + "\n</tool_call>"


def answer(*calls, thought="hm"):
    return f"<think>{thought}</think>\n{block(*calls)}"


F12 = call("f", a=1, b=2)


# ToolRL. Golden numbers by hand from the formulas of the released code (qiancheng0/ToolRL 8cee13e).


def test_tool_golden():
    score, most = tool_score([F12], [call("f", a=1, c=3)])
    assert (score, most) == (pytest.approx(1 + 1 / 3 + 1), 4)
    assert correctness(answer(F12), answer(call("f", a=1, c=3))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([F12], 3.0),
        ([call("g", a=1, b=2)], -3.0),  # no name in common, so nothing is matched
        ([call("f")], 6 * 1 / 4 - 3),  # the name, no parameter
        ([F12, F12], 6 * (1 / 2 + 3) / 4 - 3),  # one call too many costs half of the names
        ([call("f", a=2, b=1)], 6 * (1 + 1) / 4 - 3),  # all names, no value
    ],
)
def test_tool_correctness_by_hand(given, expected):
    assert correctness(answer(F12), answer(*given)) == pytest.approx(expected)


def test_tool_scores_stay_within_their_range_and_equal_calls_have_the_most():
    pool = [F12, call("f", a=1, c=3), call("f"), call("g", a=1), call("g", x=[1, {"y": None}])]
    for reference in itertools.product(pool, repeat=2):
        for given in itertools.chain(itertools.product(pool, repeat=2), itertools.product(pool, repeat=1), [()]):
            for detail in ("fine", "intermediate", "coarse"):
                for exact in (False, True):
                    score, most = tool_score(list(reference), list(given), detail=detail, exact=exact)
                    assert 0 <= score <= most
                    if reference == given:
                        assert score == most


def test_tool_order_of_predictions_does_not_matter_when_names_are_unique():
    reference = [F12, call("g", x=1), call("h")]
    given = [call("h"), call("f", a=1), call("g", x=2)]
    assert len({tool_score(reference, list(order)) for order in itertools.permutations(given)}) == 1


def test_trap_14_tool_greedy_matching_depends_on_the_reference_order_when_names_repeat():
    loose, strict = call("f", a=1, b=2), call("f", a=1)
    given = [call("f", a=1), call("g")]
    one, two = tool_score([loose, strict], given), tool_score([strict, loose], given)
    assert one.most == two.most
    assert one.score != two.score
    assert one.score == pytest.approx(1 / 3 + 1.5)  # the first takes the call that the second needs
    assert two.score == pytest.approx(1 / 3 + 2)


def test_trap_14_tool_calls_that_nobody_asked_for_cost_no_correctness():
    reference = "<think>x</think>\n<response>hello</response>"
    quiet, busy = "<think>x</think>\n<response>hi</response>", answer(F12)
    assert correctness(reference, quiet) == correctness(reference, busy) == 0
    assert (tool_reward(reference, quiet), tool_reward(reference, busy)) == (1, 0)  # the format alone tells them apart


def test_tool_variants():
    near = [call("f", a=1, b=3)]
    assert tool_score([F12], near, detail="intermediate") == (1, 2)
    assert tool_score([F12], [F12], detail="intermediate") == (2, 2)
    assert tool_score([F12], near, detail="coarse") == (0, 1)
    assert tool_score([F12], [F12], detail="coarse") == (1, 1)
    assert correctness(answer(F12), answer(call("f", a=1, c=3)), -1.0, 1.0) == pytest.approx(0.5 / 3)
    assert tool_score([F12], [call("f", a=1, c=3)], exact=True) == (2, 4)
    assert overlap("aab", "abb") == pytest.approx(2 / 4)
    assert (overlap("", ""), overlap("", "a"), overlap("ab", "ba", exact=True), overlap("ab", "aab", exact=True)) == (
        1, 0, 1, 0
    )  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no call",
        "<tool_call>\n</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>[1, 2]</tool_call>",
        '<tool_call>{"name": "f"}</tool_call>',
        '<tool_call>{"name": ["f"], "parameters": {}}</tool_call>',
        '<tool_call>{"name": "f", "parameters": [1]}</tool_call>',
        '<tool_call>{"name": "f", "parameters": {"a": NaN}}</tool_call>',
        '<tool_call>{"name": "f", "parameters": {"a": 1e999}}</tool_call>',
        '<tool_call>{"name": "f", "parameters": {"a": ' + "9" * 5000 + "}}</tool_call>",
        '<tool_call>{"name": "f", "parameters": {"a": __import__("os").getpid()}}</tool_call>',
        "<tool_call>" + '{"a":' * 20000 + "</tool_call>",
        "<tool_call>" + "[" * 60000 + "</tool_call>",
        "<tool_call>" + block(F12).join(["x"] * 4000) + "</tool_call>",
        "<tool_call>\n" + (json.dumps(F12) + "\n") * (tool_calls.CALLS + 1) + "</tool_call>",
        '<tool_call>{"name": "f", "parameters": {"a": "\ud800\x00"}}',
    ],
)
def test_tool_answers_that_cannot_be_read_get_the_least(text):
    assert parse_calls(text) is None
    assert correctness(answer(F12), text) == -3
    assert not well_formed(answer(F12), text)


def test_tool_reference_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="reference"):
        correctness("<tool_call>{</tool_call>", answer(F12))


def test_tool_values_are_compared_as_json():
    assert tool_score([call("f", a=1)], [call("f", a=1.0)]).score == 3
    assert tool_score([call("f", a=1)], [call("f", a=True)]).score == 2
    assert tool_score([call("f", a=[0, {"b": 1}])], [call("f", a=[False, {"b": 1}])]).score == 2
    assert tool_score([call("f", a="1")], [call("f", a=1)]).score == 2


@pytest.mark.parametrize(
    ("text", "good"),
    [
        (answer(F12), True),
        (answer(F12) + "\n", True),
        (answer(F12) + "\n\n", False),
        (" " + answer(F12), False),
        (answer(F12).replace("</think>\n", "</think>"), False),
        (answer(F12) + answer(F12), False),
        (answer(F12, thought="<tool_call>"), False),
        ("<think></think>\n<tool_call>\n\n</tool_call>", True),
        ("<think></think>\n<tool_call>\n</tool_call>", False),
        (answer(F12) + "\n<response>ok</response>", False),
        ("<think>\n<tool_call>\n\n</tool_call>", False),
    ],
)
def test_tool_format_of_a_call(text, good):
    assert well_formed(answer(F12), text) is good


def test_tool_format_of_the_other_kinds():
    both = answer(F12) + "\n<response>ok</response>"
    assert well_formed(both, both)
    assert not well_formed(both, answer(F12))
    assert not well_formed(both, "<think>x</think>\n<response>ok</response>\n" + block(F12))
    only = "<think>x</think>\n<response>ok</response>"
    assert well_formed(only, only)
    assert not well_formed(only, both)
    assert well_formed("<think>a</think>", "<think>b</think>")
    assert not well_formed("<think>a</think>", only)
    assert not well_formed(only, "<think>" + "x" * SIZE + "</think>\n<response>ok</response>")


def test_tool_thought_length():
    assert thought_length("<think>" + "w " * 256 + "</think>") == 0.5
    assert thought_length("<think>" + "w " * 600 + "</think>") == 1
    assert thought_length("<think>" + "w " * 100 + "</think>", target=384) == 0.26
    assert thought_length("w " * 600) == thought_length("<think>w") == 0
    assert tool_reward(answer(F12), answer(F12)) == 4


# RewardAnything. Golden numbers by hand from the formulas of the released code (zhuohaoyu/RewardAnything 552877f).

TRUTH = {"a": 5, "b": 3, "c": 1}


@pytest.mark.parametrize(
    ("predicted", "score"),
    [
        ({"a": 5, "b": 3, "c": 1}, 1.0),
        ({"a": 9.5, "b": 0.1, "c": -2}, 1.0),
        ({"a": 1, "b": 3, "c": 5}, 0.0),
        ({"a": 2, "b": 2, "c": 2}, 0.5),
        ({"a": 3, "b": 5, "c": 1}, 1 - 3 / 11),  # weights 3, 3, 5
        ({"a": 1, "b": 3, "c": 3}, 1 - (3 + 5 + 1.5) / 11),
        ({"a": 5, "b": 3}, 1.0),
        ({"a": "5", "b": None, "c": [1]}, 0.0),
        ({"a": float("nan"), "b": float("inf"), "c": 10**400}, 0.0),
        ({"a": True, "b": False, "c": True}, 0.0),
        ({"a": 1, "b": 3, "c": "x"}, 0.0),  # the one pair that is left is reversed
    ],
)
def test_pair_score_by_hand(predicted, score):
    assert pair_score(TRUTH, predicted).score == pytest.approx(score, abs=1e-12)


def test_pair_score_true_ties_cost_nothing_whatever_is_predicted():
    for a, b in itertools.product(range(3), repeat=2):
        assert pair_score({"a": 2, "b": 2}, {"a": a, "b": b}).score == 1


def test_pair_score_does_not_depend_on_the_order_or_the_scale():
    predicted = {"a": 1, "b": 3, "c": 3}
    turned = dict(reversed(predicted.items()))
    assert pair_score(TRUTH, predicted) == pair_score(TRUTH, turned)
    assert pair_score(TRUTH, {k: 10 * v - 7 for k, v in predicted.items()}) == pair_score(TRUTH, predicted)


@pytest.mark.parametrize("predicted", [{}, {"a": 1}, {"a": "x"}, {"z": 3, "y": 4}])
def test_trap_15_fewer_than_two_common_ids_scores_one_and_coverage_tells(predicted):
    released = pair_score(TRUTH, predicted)
    assert released.score == 1
    assert released.coverage <= 1 / 3
    assert pair_score(TRUTH, predicted, too_few=0.0).score == 0
    assert pair_score(TRUTH, TRUTH, too_few=0.0) == (1, 1)


def test_pair_score_a_value_that_is_no_number_counts_against_coverage():
    assert pair_score(TRUTH, {"a": 5, "b": float("nan"), "c": 1}) == (1, pytest.approx(2 / 3))


GOOD = json.dumps({"scores": TRUTH, "best-to-worst": ["a", "b", "c"]})
LONG = f"<think>{'w' * 51}</think>"


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (LONG + GOOD, 1.0),
        ("<think>short</think>" + GOOD, 0.95),
        (f"<think>{'w' * 50}</think>" + GOOD, 0.95),
        ("<think>" + GOOD, 0.05 + 0.75),  # one tag: what is not JSON goes before the brackets
        (GOOD, 0.8),
        ("```json\n" + GOOD + "\n```", 0.8),
        ("so: " + GOOD + " done", 0.75),
        (GOOD.replace("best-to-worst", "best-to-worse"), 0.8),
        (json.dumps({"scores": {"a": 5, "b": 3}, "best-to-worst": ["b", "a"]}), 0.2 + 0.2 + 0.2 * 2 / 3),
        (json.dumps({"scores": TRUTH}), 0.2 + 0.1 + 0.2),
        (json.dumps({"best-to-worst": ["a", "b", "c"]}), 0.2 + 0.1),
        (json.dumps({"scores": 5, "best-to-worst": 5}), 0.4),
        ("{}", 0.0),
        ("[1]", 0.0),
        ("", 0.0),
        ("</think>", 0.05),
        ("[" * 50000, 0.0),
        ("{" * 30000 + "}" * 30000, 0.0),
        ('{"scores": {"a": NaN}}', 0.0),
        ("{" + "x" * SIZE + "}", 0.0),
    ],
)
def test_format_ladder(text, score):
    assert format_score(TRUTH, text) == pytest.approx(score)


def test_judgement_and_consistency():
    assert parse_judgement("x " + GOOD) == (json.loads(GOOD), True)
    assert parse_judgement(LONG + GOOD) == (json.loads(GOOD), False)
    assert consistency(TRUTH, ["a", "c", "b"]) == pytest.approx(2 / 3)
    assert consistency(TRUTH, ["c", "b", "a"]) == 0
    assert consistency({"a": 1, "b": 1}, ["b", "a"]) == 1
    for nonsense in (None, "abc", {"a": 1}, [], ["a"], ["a", "a"], ["z", "y"], [["a"], {}], [1, None]):
        assert consistency(TRUTH, nonsense) == 0
    many = {str(i): i for i in range(5000)}
    assert consistency(many, list(many)) == 0
    assert pair_score(many, many).coverage == list_scoring.IDS / 5000


def test_json_is_bounded():
    assert read("[" * DEPTH + "]" * DEPTH) is not None
    for text in (
        "[" * (DEPTH + 1) + "]" * (DEPTH + 1),
        " " * (SIZE + 1),
        "nan",
        "Infinity",
        "1 2",
        "{'a': 1}",
        "1" * 5000,
    ):
        with pytest.raises(UnreadableError):
            read(text)
    brackets = json.dumps('["' + "[" * 100)
    assert read(brackets) == '["' + "[" * 100
    assert same({"a": [1, 2.5, None]}, {"a": [1.0, 2.5, None]})
    assert not same({"a": 1}, {"a": 1, "b": 1})
    assert not same([1], [1, 2])
    assert not same(None, False)


# Critique-Coder.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Conclusion: T", True),
        ("Conclusion: **False**.", False),
        ("Conclusion: T ... wait. Conclusion: F", False),
        ("Conclusion: F Conclusion: perhaps", False),
        ("Conclusion:", None),
        ("Conclusion:\n\n (true)", True),
        ("T", None),
        ("", None),
        ("Conclusion: TF", None),
        ("Conclusion:" * 5000, None),
    ],
)
def test_critique_takes_the_last_conclusion_that_can_be_read(text, found):
    assert verdict(text, "Conclusion:") is found
    assert critique_reward(True, text) == (found is True)
    assert critique_reward(False, text) == (found is False)


def test_critique_a_constant_answer_earns_the_share_of_its_label():
    labels = [True, True, True, False]
    assert sum(critique_reward(label, "Conclusion: T") for label in labels) / 4 == 0.75
