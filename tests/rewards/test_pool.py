"""The pool gives every answer a grade or an honest None, and leaves no process behind."""

import gc
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxrl_llm import chat, heartbeat
from jaxrl_llm.rewards import keeper, worker
from jaxrl_llm.rewards.pool import GraderPool

HOSTILE = pathlib.Path(__file__).with_name("hostile_worker.py")
NO_TROUBLE = {"timeouts": 0, "crashes": 0, "errors": 0, "oversized": 0}


@pytest.fixture
def hostile(monkeypatch):
    """Makes pools of the worker that does what the answer says, and closes them; this process has no other then."""
    chat.close()
    monkeypatch.setattr(keeper, "SCRIPT", HOSTILE)
    monkeypatch.setitem(worker.GRADERS, "hostile", None)
    made = []

    def make(seconds=1.0, workers=1, **options) -> GraderPool:
        made.append(GraderPool("hostile", options, workers=workers, seconds=seconds))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def acts(*names: str) -> list[dict]:
    return [{"answer": name} for name in names]


def children(of: int | str = "self") -> set[int]:
    """Processes of this one, zombies included."""
    tasks = pathlib.Path(f"/proc/{of}/task").iterdir()
    return {int(pid) for task in tasks for pid in (task / "children").read_text().split()}


def graders() -> set[int]:
    """Processes that the one keeper of this process has forked."""
    (one,) = children()
    return children(one)


def is_gone(pid: int, within: float = 10.0) -> bool:
    """True once the process has ended, by itself, within the time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def grade(grader: str, *pairs: tuple[str, str], **options) -> list[float | None]:
    with GraderPool(grader, options, workers=1) as pool:
        return pool.grade([{"answer": answer, "truth": truth} for answer, truth in pairs])


def test_exact_ignores_white_space_around_and_nothing_else():
    assert grade("exact", (" 7\n", "7"), ("7", "7 "), ("7.0", "7"), ("a b", "a  b"), ("", "7")) == [1, 1, 0, 0, 0]


NUMBERS = [
    *(
        ("3", 1),
        ("3.0", 1),
        ("+3.", 1),
        ("it is 03", 1),
        ("1 + 2 = 3", 1),
        ("6/2", 1),
        ("0.3e1", 1),
        ("5-3", 1),
        ("$3.00!", 1),
    ),
    *(("#### 3", 1), ("30e-1", 1), ("x=3%", 1), ("(3)", 1), ("1,2,3", 1), ("−5 then 3", 1), ("$\\boxed{3}$", 1)),
    *(
        ("-3", 0),
        ("−3", 0),
        ("x=-3", 0),
        ("3 or 4", 0),
        ("three", 0),
        ("", 0),
        (".", 0),
        ("3.0001", 0),
        ("٣", 0),
        ("1/0", 0),
    ),
    *(
        ("3/0", 0),
        ("1e999999999", 0),
        ("3e-999999999", 0),
        ("9" * 99_999, 0),
        ("1," * 49_999, 0),
        ("nan", 0),
        ("inf", 0),
        ("3e", 1),
    ),
]


@pytest.mark.parametrize(("answer", "right"), NUMBERS)
def test_numeric_compares_the_last_number_exactly(answer, right):
    assert worker.numeric({})({"answer": answer, "truth": "so the answer is 3"}) == right


@pytest.mark.parametrize(
    ("answer", "truth"),
    [
        ("1000", "1,000"),
        ("12,345,678.50", "12345678.5"),
        ("-.5", "-1/2"),
        ("0.1", "1e-1"),
        ("2/6", "1/3"),
        ("-0", "0"),
        ("1,2345", "2345"),
    ],
)
def test_numbers_have_many_spellings(answer, truth):
    assert worker.last_number(answer) == worker.last_number(truth) is not None


def test_digits_are_not_rounded():
    number = "0." + "1" * 300
    assert worker.last_number(number) != worker.last_number(number + "1")


def test_a_truth_without_a_number_is_no_zero():
    assert grade("numeric", ("7", "none"), ("7", "7")) == [None, 1]


MATHS = [
    *(("$\\frac{1}{2}$", "0.5", 1), ("\\boxed{x+1}", "1+x", 1), ("x+1", "1+x", 1), ("so it is 1000.", "1,000", 1)),
    *(
        ("1", "1+x", 0),
        ("2", "3", 0),
        ("", "3", 0),
        ("7 or 8", "7", 0),
        ("$x = 5$", "5", 1),
        ("$x+1$", "We get $1+x$.", 1),
        ("4", "", None),
    ),
]


def test_math_verify_knows_algebra_and_is_killed_where_it_hangs():
    items = [{"answer": answer, "truth": truth} for answer, truth, _ in MATHS]
    with GraderPool("math_verify", {}, workers=1, seconds=3.0) as pool:
        assert pool.grade(items) == [right for _, _, right in MATHS]
        assert "cannot read the truth" in pool.last_error
        assert pool.grade([{"answer": "9^9^9^9^9", "truth": "3"}, items[0]]) == [None, 1]
        assert pool.counts["timeouts"] == 1


def test_math_verify_does_not_time_itself():
    """Its own time-out calls a hang wrong, and works in a main thread only."""
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: worker.math_verify({})({"answer": "x+1", "truth": "1+x"})).result() == 1


def test_order_is_kept(hostile):
    naps = [0.05 * ((7 * k) % 5) for k in range(20)]
    pool = hostile(workers=3)
    assert pool.grade([{"answer": "slow", "sleep": nap} for nap in naps]) == naps
    assert pool.counts == NO_TROUBLE


def test_workers_work_at_the_same_time(hostile):
    pool = hostile(workers=4)
    pool.grade(acts("right") * 4)
    start = time.monotonic()
    pool.grade([{"answer": "slow", "sleep": 0.5}] * 4)
    assert time.monotonic() - start < 1.2


@pytest.mark.parametrize("act", ["loop", "sleep", "power", "lock", "pipe"])
def test_a_hang_is_killed_in_time_and_is_no_grade(hostile, act):
    pool = hostile(seconds=0.5)
    assert pool.grade(acts("right")) == [1]
    (before,) = graders()
    start = time.monotonic()
    assert pool.grade(acts(act)) == [None]
    assert time.monotonic() - start < 2.0
    assert pool.grade(acts("right")) == [1]
    (after,) = graders()
    assert before != after
    assert pool.counts["timeouts"] + pool.counts["crashes"] == 1


@pytest.mark.parametrize("act", ["exit", "quit", "killed", "endless"])
def test_a_dead_grader_is_replaced(hostile, act):
    pool = hostile()
    assert pool.grade(acts("right", act, "right", act, "right")) == [1, None, 1, None, 1]
    assert pool.counts == {**NO_TROUBLE, "crashes": 2}
    assert pool.grade(acts("right")) == [1]
    assert len(graders()) == 1


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("raise", "ZeroDivisionError"),
        ("recurse", "RecursionError"),
        ("memory", "MemoryError"),
        ("nan", "JSON"),
        ("object", "JSON"),
    ],
)
def test_a_grader_that_raises_lives_on(hostile, act, reason):
    pool = hostile()
    pids = pool.grade(acts("pid", act, "pid"))
    assert pids[1] is None
    assert pids[0] == pids[2]
    assert pool.counts == {**NO_TROUBLE, "errors": 1}
    assert reason in pool.last_error


def test_trouble_of_one_answer_costs_no_other(hostile):
    pool = hostile(seconds=0.5, workers=3)
    names = ["right", "loop", "exit", "raise", "right", "nan"] * 3
    assert pool.grade(acts(*names)) == [1 if name == "right" else None for name in names]
    assert pool.counts == {"timeouts": 3, "crashes": 3, "errors": 6, "oversized": 0}
    assert pool.grade([{"answer": "slow", "sleep": 0.2}] * 3) == [0.2] * 3
    assert len(graders()) == 3


def test_a_batch_of_answers_that_hang_is_seen_to_live(hostile, monkeypatch, tmp_path):
    """From the first to the last, and the stage that grades neither ends nor looks longer or shorter for it."""
    pool, heart, gaps = hostile(seconds=1.0), heartbeat.Heart(tmp_path / "sign"), []
    pool.grade(acts("right"))
    heart.beat("step", 7)
    write, last = heart._write, [time.monotonic()]

    def written(now):
        gaps.append(now - last[0])
        last[0] = now
        write(now)

    monkeypatch.setattr(heart, "_write", written)
    monkeypatch.setattr(heartbeat, "_hearts", [heart])
    start = time.monotonic()
    pool.grade([{"answer": act, "n": n} for act in ("sleep", "loop") for n in range(2)])
    assert 4.0 < time.monotonic() - start < 8.0
    assert max([*gaps, time.monotonic() - last[0]]) < 0.7
    sign = heartbeat.read(heart.path)
    assert (sign["stage"], sign["step"], sign["usual"]) == ("step", 7, None)
    assert sign["count"] == 1 + sign["midway"] == 1 + len(gaps)


def strike_keeper() -> int:
    """SIGKILL to the one keeper of this process."""
    (one,) = children()
    os.kill(one, signal.SIGKILL)
    return one


def test_a_keeper_lost_between_calls_costs_no_answer(hostile):
    pool = hostile(workers=2)
    assert pool.grade([{"answer": "slow", "sleep": 0.1}] * 4) == [0.1] * 4
    for lost in (1, 2, 3, 4, 5):
        old = graders()
        assert is_gone(strike_keeper())
        assert all(is_gone(pid) for pid in old)
        assert pool.grade([{"answer": "slow", "sleep": 0.1}] * 4) == [0.1] * 4
        assert pool.counts == {**NO_TROUBLE, "crashes": lost}
        assert len(graders()) == 2  # and of the keepers one, zombies included


def test_a_keeper_lost_during_a_call_costs_the_answers_in_flight(hostile):
    pool = hostile(workers=2, seconds=5.0)
    pool.ask([{"answer": "slow", "sleep": 0.1}] * 2)
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(pool.ask, [{"answer": "slow", "sleep": 0.5}] * 6)
        time.sleep(0.25)
        strike_keeper()
        assert asked.result() == [None, None, 0.5, 0.5, 0.5, 0.5]
    assert pool.counts == {**NO_TROUBLE, "crashes": 3}
    assert len(graders()) == 2


def test_a_keeper_that_is_lost_and_does_not_start_again_ends_in_an_error(hostile, monkeypatch, tmp_path):
    pool, made = hostile(), []
    pool.grade(acts("right"))
    start = keeper.Keeper.__init__
    monkeypatch.setattr(keeper.Keeper, "__init__", lambda self, order: made.append(start(self, order)))
    monkeypatch.setattr(keeper, "SCRIPT", tmp_path / "absent.py")
    assert is_gone(strike_keeper())
    for again in (keeper.IN_A_ROW, 0):
        with pytest.raises(RuntimeError, match=r"'hostile' does not start: .* in a row"):
            pool.grade(acts("right"))
        assert len(made) == again
        made.clear()
    pool.close()
    assert not children()


def test_a_pool_that_is_closed_while_a_keeper_is_replaced_leaves_no_process(hostile):
    for wait in (0.0, 0.02, 0.05, 0.1):
        pool = hostile(workers=2, seconds=10.0)
        pool.grade(acts("right", "right"))
        strike_keeper()
        with ThreadPoolExecutor(1) as thread:
            asked = thread.submit(pool.ask, acts("sleep", "sleep", "sleep"))
            time.sleep(wait)
            start = time.monotonic()
            pool.close()
            assert time.monotonic() - start < 5.0, "nobody waits for a grader that nobody needs"
            assert asked.exception() or asked.result() == [None] * 3
        assert not children()


def test_one_question_may_have_more_time_than_the_others(hostile):
    pool = hostile(seconds=0.3)
    assert pool.ask([{"answer": "slow", "sleep": 0.6}], seconds=5.0) == [0.6]
    assert pool.ask([{"answer": "slow", "sleep": 0.6}]) == [None]


def test_what_a_library_prints_is_no_grade(hostile):
    assert hostile().grade(acts("noise", "right", "noise")) == [1, 1, 1]


def test_what_the_grader_started_dies_with_it(hostile):
    pool = hostile(seconds=1.0, free=True)
    reader, writer = os.pipe()
    with pytest.warns(RuntimeWarning, match="not confined"):
        assert pool.grade([{"answer": "child", "pipe": f"/proc/{os.getpid()}/fd/{writer}"}]) == [None]
    pids = [int(pid) for pid in os.read(reader, 1000).split()]
    os.close(reader)
    os.close(writer)
    assert pool.counts["timeouts"] == 1
    assert pids
    assert all(is_gone(pid) for pid in pids)


def test_a_worker_sees_no_secrets_and_writes_no_files(hostile, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    pool = hostile()
    environment, modules, written = pool.ask(
        [*acts("environment", "modules"), {"answer": "write", "file": str(tmp_path / "x")}]
    )
    assert set(environment) <= {*keeper.INHERITED, *keeper.SETTINGS, "LC_CTYPE"}
    assert not {"jax", "numpy", "jaxrl_llm"} & set(modules)
    assert written is None
    assert pool.counts["errors"] == 1


def test_a_long_answer_is_wrong_and_a_long_item_arrives(hostile):
    pool = hostile(seconds=5.0)
    long, longest = {"answer": "x" * 100_001}, {"answer": "length", "text": "é" * 1_000_000}
    assert pool.grade([long, longest, *acts("right")]) == [0, 1_000_000, 1]
    assert pool.counts == {**NO_TROUBLE, "oversized": 1}


def test_no_items_are_no_grades(hostile):
    assert hostile().grade([]) == []


def test_closing_leaves_no_process(hostile):
    with hostile(workers=3) as pool:
        pool.grade([{"answer": "slow", "sleep": 0.2}] * 3)
        assert len(graders()) == 3
    assert not children()
    pool.close()
    with pytest.raises(ValueError, match="closed"):
        pool.grade(acts("right"))


def test_closing_does_not_wait_for_a_hang(hostile):
    pool = hostile(seconds=60.0, workers=2)
    pool.grade(acts("right"))
    pool._threads.submit(pool._ask, {"answer": "sleep"}, 60.0)
    time.sleep(0.2)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 2.0
    assert not children()


def test_a_forgotten_pool_is_collected(hostile, monkeypatch):
    monkeypatch.setitem(worker.GRADERS, "hostile", None)
    pool = GraderPool("hostile", {}, workers=2)
    pool.grade(acts("right"))
    del pool
    gc.collect()
    assert not children()


SCRIPT = """
import sys, time
from jaxrl_llm.rewards import keeper, pool, worker
if __name__ == "__main__":
    keeper.SCRIPT, worker.GRADERS["hostile"] = sys.argv[1], None
    graders = pool.GraderPool("hostile", {}, workers=1)
    print(int(graders.grade([{"answer": "pid"}])[0]), flush=True)
    if sys.argv[2] != "end":
        graders.grade([{"answer": sys.argv[2]}])
"""


@pytest.mark.parametrize("act", ["end", "loop", "sleep", "lock", "power"])
def test_no_worker_outlives_its_parent(act):
    """Whether the parent ends, or is killed while a worker hangs, with or without the interpreter's lock."""
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, str(HOSTILE), act], stdout=subprocess.PIPE)
    pid = int(parent.stdout.readline())
    if act != "end":
        time.sleep(0.3)
        parent.send_signal(signal.SIGKILL)
    parent.stdout.close()
    parent.wait()
    assert is_gone(pid)


@pytest.mark.parametrize("act", ["loop", "sleep"])
def test_a_grader_ends_when_its_line_does(hostile, act):
    one = keeper.Keeper({"grader": "hostile", "options": {}})
    pid, line = one.fork()
    line.send(json.dumps({"answer": act}).encode() + b"\n")
    time.sleep(0.2)
    assert not is_gone(pid, 0.1)
    line.close()
    assert is_gone(pid)
    one.end(pid)
    assert not children(one.process.pid)
    one.kill()


def test_answers_that_hang_are_thrown_out_after_all_others_are_graded(hostile, monkeypatch):
    """Rounds of ten times the time: with one worker the last right answer has its grade before any hang is given up."""
    pool, done = hostile(seconds=0.6), []
    ask = pool._ask
    monkeypatch.setattr(
        pool, "_ask", lambda item, seconds: (done.append((item["answer"], seconds)), ask(item, seconds))[1]
    )
    names = ["loop", "right"] * 8
    assert pool.grade(acts(*names)) == [1 if name == "right" else None for name in names]
    assert pool.counts == {**NO_TROUBLE, "timeouts": 8}
    rounds = sorted({seconds for _, seconds in done})
    assert rounds[-1] == 0.6
    assert len(rounds) >= 2
    last_right = max(i for i, (name, _) in enumerate(done) if name == "right")
    assert all(seconds < 0.6 for _, seconds in done[: last_right + 1])


def test_refusals_are_raised(hostile):
    with pytest.raises(ValueError, match="did you mean 'numeric'"):
        GraderPool("numerik", {})
    with pytest.raises(ValueError, match="above 0"):
        GraderPool("exact", {}, workers=0)
    with pytest.raises(ValueError, match="above 0"):
        GraderPool("exact", {}, seconds=0.0)
    with pytest.raises(ValueError, match="hostile: ValueError: no such thing"):
        hostile(refuse=True).grade(acts("right"))
    with pytest.raises(RuntimeError, match="does not start"):
        hostile(die=True).grade(acts("right"))
    with pytest.raises(TypeError, match="JSON"):
        hostile().grade([{"answer": "right", "no": object()}])


PRODUCTS = {"name": "products", "config": {"seed": 3, "size": 10, "max_digits": 1}, "threshold": 1.0}


def test_reasoning_gym_scores_the_problems_that_it_made():
    with GraderPool("reasoning_gym", PRODUCTS, workers=1) as pool:
        (problems,) = pool.ask([{"problems": [2, 5]}], seconds=60.0)
        items = [{"index": 2 + k, "question": q, "answer": a} for k, (q, a) in enumerate(problems)]
        assert pool.grade(items) == [1, 1, 1]
        assert pool.grade([{**items[0], "answer": "banana"}, {**items[0], "question": "What?"}]) == [0, None]
        assert "changed its question" in pool.last_error


def test_the_threshold_decides_what_a_partial_score_is_worth():
    values = {}
    for threshold in (0.0, 1.0):
        options = {"name": "spell_backward", "config": {"seed": 3, "size": 10}, "threshold": threshold}
        with GraderPool("reasoning_gym", options, workers=1) as pool:
            ((question, answer),) = pool.ask([{"problems": [0, 1]}], seconds=60.0)[0]
            item = {"index": 0, "question": question}
            partial = answer[:-1] + ("a" if answer[-1] != "a" else "b")
            values[threshold] = pool.grade([{**item, "answer": answer}, {**item, "answer": partial}])
    assert values[1.0] == [1, 0]
    assert values[0.0][0] == 1
    assert 0 < values[0.0][1] < 1


def test_problems_do_not_depend_on_the_hash_seed():
    """A dataset that draws from sets of strings: under a random hash seed each process makes another."""
    options = {"name": "isomorphic_strings", "config": {"seed": 3, "size": 10}, "threshold": 1.0}
    made = []
    for _ in range(2):
        with GraderPool("reasoning_gym", options, workers=1) as pool:
            made += pool.ask([{"problems": [0, 8]}], seconds=60.0)
    assert made[0] == made[1] is not None


def test_a_scorer_that_raises_and_a_dataset_that_refuses():
    options = {"name": "prime_factorization", "config": {"seed": 3, "size": 10}, "threshold": 1.0}
    with GraderPool("reasoning_gym", options, workers=1) as pool:
        (((question, _),),) = pool.ask([{"problems": [0, 1]}], seconds=60.0)
        assert pool.grade([{"index": 0, "question": question, "answer": "banana"}]) == [None]
        assert pool.counts == {**NO_TROUBLE, "errors": 1}
    bad = {**PRODUCTS, "config": {"min_terms": 5, "max_terms": 2}}
    with (
        GraderPool("reasoning_gym", bad, workers=1) as pool,
        pytest.raises(ValueError, match="AssertionError: max_terms"),
    ):
        pool.ask([{"problems": [0, 1]}])
