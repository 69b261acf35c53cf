"""Programs as answers: right ones count, wrong ones do not, those without an end have no grade."""

import json
import platform
import sys

import pytest

from jaxrl_llm.rewards import confine, programs
from jaxrl_llm.rewards.pool import GraderPool

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in confine.MACHINES, reason="programs cannot be confined here"
)
DOUBLE = json.dumps([["3\n", "6\n"], ["-1", "-2"]])


@pytest.fixture(scope="module")
def pool():
    with GraderPool("code", {"seconds": 2.0}, workers=2, seconds=2.0) as made:
        yield made


def test_right_programs(pool):
    answers = [
        "print(2 * int(input()))",
        "Let me see.\n```python\nprint(0)\n```\nNo:\n```python\nn = int(input())\nprint(n + n)\n```\nDone.",
        "import math, sys\nprint(math.prod([2, int(sys.stdin.read())]), end='  \\n\\n')",
        "from dataclasses import dataclass\n\n@dataclass\nclass A:\n    n: int\n\nprint(A(int(input())).n * 2)",
        "def main():\n    print(int(input()) * 2)\n\nif __name__ == '__main__':\n    main()",
        "for line in open(0):\n    print(2 * int(line))",
    ]
    assert pool.grade([{"answer": answer, "truth": DOUBLE} for answer in answers]) == [1] * 6


def test_wrong_programs(pool):
    answers = [
        *("print(6)", "print(2 * int(input()) + 1)", "", "six", "print(", "1 / 0", "\x00", "é", "def f(): f()\nf()"),
        *("print(2 * int(input()))\nraise SystemExit(3)", "import os\nos.close(1)", "import os\nos._exit(0)"),
        *(
            "while True: print('x' * 1000)",
            "import sys\nsys.stdin.read()\nprint(6)",
            "import numpy",
            "bytearray(1 << 34)",
        ),
    ]
    assert pool.grade([{"answer": answer, "truth": DOUBLE} for answer in answers]) == [0] * len(answers)


def test_a_program_that_does_not_end_has_no_grade(pool):
    before = pool.counts["timeouts"]
    answers = ["while True: pass", "import os, time\nos.close(1)\ntime.sleep(99)", "print(2 * int(input()))"]
    assert pool.grade([{"answer": answer, "truth": DOUBLE} for answer in answers]) == [None, None, 1]
    assert pool.counts["timeouts"] == before + 2


def test_time_of_the_processor_is_no_grade():
    """Four threads, or a clock that runs slowly for the pool: what the kernel kills is no zero either."""
    with GraderPool("code", {"seconds": 1.0}, workers=1, seconds=30.0) as pool:
        assert pool.grade([{"answer": "while True: pass", "truth": DOUBLE}]) == [None]
        assert "used up its time" in pool.last_error


def test_long_inputs_and_outputs_pass(pool):
    words = "\n".join(str(i) for i in range(60_000))
    truth = json.dumps([[words, words]])
    assert pool.grade([{"answer": "import sys\nprint(sys.stdin.read())", "truth": truth}]) == [1]
    unread = [{"answer": "print(1)", "truth": json.dumps([[words, "1"]])}]
    assert pool.grade(unread) == [1]


@pytest.mark.parametrize(
    ("truth", "words"),
    [
        ("6", "must be JSON"),
        ("[]", "one pair at least"),
        ("[[1", "no JSON"),
        ('[["1", "2"], ["3"]]', "pair 1"),
        ('[["1", 2]]', "pair 0"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_truth_that_is_no_test_is_refused(truth, words):
    with pytest.raises(ValueError, match=words):
        programs.read_truth(truth)


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("print(1)", "print(1)"),
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\n```\nb\n```", "b\n"),
        ("```js\na\n```", "```js\na\n```"),
        ("x = '```python'", "x = '```python'"),
    ],
)
def test_the_last_fence_is_the_program(answer, program):
    assert programs.program_in(answer) == program


def test_without_confinement_nothing_is_run(monkeypatch):
    monkeypatch.setattr(programs, "_run", lambda *_: (programs.UNCONFINED, b""))
    with pytest.raises(ValueError, match="cannot be confined"):
        programs.code({"seconds": 1.0})
