"""Grade texts under an audit hook: {"texts": [...], "datasets": [...]} on the standard input, offences as JSON out.

An offence is a text with the mark of payloads that is compiled (into a syntax tree of a sum it may be: see
`plain_sums`), or a code object made of one that is run; anything unpickled; any process, connection or file made.
`--broken` grades with a grader that evaluates its answers, `--sympy` reads sums as math-verify does by itself.
"""

import io
import json
import pathlib
import signal
import sys
import types

HERE = pathlib.Path(__file__)
sys.path[:1] = [str(HERE.parents[2] / "jaxrl_llm" / "rewards"), str(HERE.parent)]

import worker
from payloads import MARK

MAKING = ("pickle.find_class", "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen")
MAKING += (
    "socket.__new__",
    "socket.connect",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.rename",
    "os.remove",
    "os.chmod",
)
SUM = "<sum>"


def marked(value) -> bool:
    """Whether the mark stands in a value, or in the constants and names of code."""
    if isinstance(value, types.CodeType):
        return any(marked(x) for x in (*value.co_consts, *value.co_names, value.co_filename == SUM and MARK))
    if isinstance(value, bytes | bytearray):
        value = value.decode(errors="replace")
    return MARK in value if isinstance(value, str) else isinstance(value, int) and MARK in repr(value)[:4000]


class Hook:
    """Notes offences while it is on."""

    def __init__(self):
        self.on, self.offences = False, []
        sys.addaudithook(self.heard)

    def heard(self, event, arguments):
        if not self.on:
            return
        self.on = False
        try:
            offence = self.offends(event, arguments)
        finally:
            self.on = True
        if offence:
            self.offences.append(f"{event}: {arguments!r}"[:200])
            raise PermissionError(event)  # a payload that sleeps would hold everything up

    def offends(self, event, arguments) -> bool:
        """Whether it must not come of a text."""
        if event == "compile":
            source, file = arguments
            return marked(source) and file != SUM
        if event == "exec":
            return marked(arguments[0])
        if event == "open":
            return isinstance(arguments[1], str) and any(letter in arguments[1] for letter in "wax+")
        return event in MAKING


def graders(broken: bool, datasets):
    """Functions of a text."""
    if broken:
        from evaluating_worker import evaluating

        yield lambda text: evaluating({})({"answer": text, "truth": "3"})
        return
    for name in ("numeric", "exact", "math_verify"):
        grade = worker.GRADERS[name]({})
        for truth in ("3", "1+2"):
            yield lambda text, grade=grade, truth=truth: grade({"answer": text, "truth": truth})
    for name in datasets:
        grade = worker.GRADERS["reasoning_gym"]({"name": name, "config": {"seed": 1, "size": 4}, "threshold": 1.0})
        ((question, _),) = grade({"problems": [0, 1]})
        yield lambda text, grade=grade, question=question: grade({"answer": text, "index": 0, "question": question})


def late(*_):
    raise TimeoutError


def main():
    asked = json.load(sys.stdin)
    if "--sympy" in sys.argv:
        beside = worker.beside
        worker.beside = lambda name: (
            type("Nothing", (), {"install": staticmethod(int)}) if name == "plain_sums" else beside(name)
        )
    hook, told = Hook(), io.StringIO()
    signal.signal(signal.SIGALRM, late)
    for grade in list(graders("--broken" in sys.argv, asked["datasets"])):
        for text in asked["texts"]:
            out, sys.stdout = sys.stdout, told
            signal.setitimer(signal.ITIMER_REAL, 2.0)
            hook.on = True
            try:
                grade(text)
            except Exception as error:
                told.write(str(error))
            finally:
                hook.on = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                sys.stdout = out
    print(json.dumps(hook.offences))


if __name__ == "__main__":
    main()
