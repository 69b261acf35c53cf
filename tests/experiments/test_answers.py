"""What is written of an answer, and what is refused."""

import csv

import pytest

from experiments.answers import command_line, figure_of, publish


def write(out, **changes):
    rows = [{"arm": "a", "gain": 0.123456789}, {"arm": "b", "seeds": 3}]
    fields = {"question": "Why?", "claim": "So.", "verdict": "refuted", "reason": "No.", "command": "python x"}
    figure, _ = figure_of(1, 1, (2, 2))
    return publish("name", **(fields | {"rows": rows, "figure": figure, "out": out} | changes))


def test_an_answer_is_a_text_a_table_and_a_plot(tmp_path):
    out = write(tmp_path / "answer")
    text = (out / "answer.md").read_text(encoding="utf-8")
    assert text.startswith("# Why?\n\n**Claim.** So.\n\n**Verdict: refuted** at this scale. No.")
    assert "| arm | gain | seeds |\n| --- | --- | --- |\n| a | 0.1235 |  |\n| b |  | 3 |" in text
    assert "\n    python x\n" in text
    with (out / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{"arm": "a", "gain": "0.123456789", "seeds": ""}, {"arm": "b", "gain": "", "seeds": "3"}]
    assert (out / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("change", [{"verdict": "confirmed"}, {"rows": []}])
def test_what_is_no_answer_is_refused(tmp_path, change):
    with pytest.raises(ValueError, match=r"a verdict is one of|at least one row"):
        write(tmp_path / "answer", **change)
    assert not (tmp_path / "answer").exists()


def test_the_command_line_says_how_it_was_called(tmp_path):
    seen = []
    command_line("x", "Why?", lambda *call: seen.append(call) or "undecided", ["--smoke", "--out", str(tmp_path)])
    command_line("x", "Why?", lambda *call: seen.append(call) or "undecided", [])
    command_line("x", "Why?", lambda *call: seen.append(call) or "undecided", ["--smoke"])
    assert seen[0] == (True, "python -m experiments.x --smoke", tmp_path)
    assert seen[1] == (False, "python -m experiments.x", None)
    assert seen[2][2].name == "x-smoke"
