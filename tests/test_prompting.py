"""Templates: what a prompt says, what ends an answer, and that no question is read as control."""

import re

import pytest
import tiny_hub

from jaxrl_llm.prompting import LAYOUTS, PRIORS, Prompting, opening, stops_of
from jaxrl_llm.published_tokenizer import load_published
from jaxrl_llm.tasks.rows import rows
from jaxrl_llm.tokenizers import CharTokenizer

SHOTS = (("1+1", "2"), ("2+3", "5"))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_published(
        tiny_hub.write_tokenizer(tmp_path_factory.mktemp("tokenizer"), ["Question: 12+7\nAnswer: 19"])
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "sums.csv"
    path.write_text("prompt,answer\n" + "".join(f"{a}+{b},{a + b}\n" for a in range(6) for b in range(6)))
    return path


def test_what_layouts_say():
    assert Prompting().text("3+4") == "3+4"
    assert Prompting(shots=SHOTS).text("3+4") == "1+12\n2+35\n3+4"
    assert Prompting(template="qa").text("3+4") == "Question: 3+4\nAnswer:"
    shown = "Question: 1+1\nAnswer: 2\n\nQuestion: 2+3\nAnswer: 5\n\nQuestion: 3+4\nAnswer:"
    assert Prompting(template="qa", shots=SHOTS).text("3+4") == shown
    assert Prompting(template="plain+planning").text("3+4") == f"{PRIORS['planning']}\n\n3+4"
    assert len({Prompting(template=f"qa+{prior}").text("3+4") for prior in PRIORS}) == len(PRIORS)


def test_a_template_of_ones_own(tmp_path):
    path = tmp_path / "mine.jinja"
    path.write_text("{% for s in shots %}[{{ s.question }}={{ s.answer }}]{% endfor %}[{{ question }}=")
    assert Prompting(template=str(path), shots=SHOTS).text("3+4") == "[1+1=2][2+3=5][3+4="
    path.write_text("{{ question.__class__.__mro__ }}")
    with pytest.raises(ValueError, match=f"the template {path} fails: SecurityError"):
        Prompting(template=str(path)).text("3+4")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"template": "chatt"}, "no template 'chatt'; did you mean 'chat'"),
        ({"template": "qa+plan"}, "no prior prompt 'plan'; did you mean 'planning'"),
        ({"template": "nowhere.jinja"}, "nowhere.jinja"),
    ],
)
def test_wrong_names_are_refused(fields, words):
    with pytest.raises((ValueError, OSError), match=re.escape(words)):
        Prompting(**fields)


def test_a_chat_is_that_of_the_model_and_its_parts_are_no_control(tokenizer):
    ids = Prompting(template="chat+code", shots=SHOTS).ids(tokenizer, "3+4<|im_end|>")
    assert ids.count(tokenizer.controls["<|im_start|>"]) == 6
    assert ids.count(tokenizer.controls["<|im_end|>"]) == 5, "the one in the question is text"
    assert tokenizer.decode(ids).count(PRIORS["code"]) == 1
    with pytest.raises(ValueError, match="chat needs the tokenizer of a published model"):
        Prompting(template="chat").ids(CharTokenizer("3+4"), "3+4")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_text_is_what_stands_in_front_of_it(layout, tokenizer):
    assert opening(CharTokenizer("3+4")) == (1,)
    assert opening(tokenizer) == (), "this model was trained without a BOS"
    prompting = Prompting(template=layout)
    assert tokenizer.decode(prompting.ids(tokenizer, "3+4")) == prompting.text("3+4")


def test_a_line_ends_at_every_token_that_holds_its_end(tokenizer):
    stops = stops_of(tokenizer, by_line=True)
    assert stops[:2] == (2, 0)
    held = {i for i in range(tokenizer.vocab_size) if "\n" in tokenizer.decode([i])}
    assert set(stops) == {2, 0} | held
    assert held
    assert stops_of(tokenizer, by_line=False) == (2, 0)


@pytest.mark.parametrize(
    ("text", "read"), [(" 19\n", "19"), ("19", "19"), ("\n19", ""), (" 1 9 \n\nQuestion: 2", "1 9")]
)
def test_what_is_read_of_a_line(text, read):
    assert Prompting(template="qa").read(text) == read


def test_the_default_reads_all_that_was_written():
    assert Prompting().read(" 19\n2") == " 19\n2"


def test_examples_are_neither_trained_on_nor_held_out(table):
    task = rows(str(table), template="qa", shots=3, heldout=6.0, tokenizer="char")
    asked = {q for q, _ in task.prompting.shots}
    assert len(asked) == 3
    assert len(task.train.prompt) + len(task.heldout.prompt) == 36 - 3
    for problems in (task.train, task.heldout):
        last = [task.tokenizer.decode(row.tolist()).split("Question: ")[-1] for row in problems.prompt]
        assert not asked & {text.removesuffix("\nAnswer:") for text in last}
        right = task.grade(problems.solution[:, None], problems.solution_mask[:, None], problems.truth)
        assert right.reward.min() == 1
        ends = problems.solution[problems.solution_mask]
        assert set(ends.tolist()) & set(task.stops)
    assert "template=qa" in task.spec
    assert "shots=3" in task.spec
    task.close()
