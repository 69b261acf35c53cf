"""Grade texts, and read them as rows and as templates, under an audit hook.

The standard input holds {"texts": [...], "datasets": [...]}, and JSON of the offences comes out.

An offence is a text with the mark of payloads that is compiled (into a syntax tree of a sum it may be: see
`plain_sums`), or a code object made of one that is run; anything unpickled; any process, connection or file made.
`--broken` grades with a grader that evaluates its answers, `--sympy` reads sums as math-verify does by itself, `--open`
fills templates in without their sandbox and evaluates rows.
"""

import csv
import io
import json
import pathlib
import signal
import sys
import tempfile
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
TEMPLATE = "<template>"  # Jinja makes code of a template; what that code may do is for its sandbox


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
            if event != "compile":  # whether it would also run is seen when it does
                raise PermissionError(event)  # a payload that sleeps would hold everything up

    def offends(self, event, arguments) -> bool:
        """Whether it must not come of a text."""
        if event == "compile":
            source, file = arguments
            return marked(source) and file not in (SUM, TEMPLATE)
        if event == "exec":
            return arguments[0].co_filename != TEMPLATE and marked(arguments[0])
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


def readers(texts, folder: pathlib.Path, is_open: bool):
    """Functions of a text that read it as a row of a file, and as a template."""
    sys.path.append(str(HERE.parents[2]))
    import jinja2

    from jaxrl_llm.prompting import Prompting
    from jaxrl_llm.rewards import templates
    from jaxrl_llm.tasks import _tables

    if is_open:
        templates.ImmutableSandboxedEnvironment = jinja2.Environment
        _tables._parse = lambda text, where: eval(json.loads(text)["prompt"])  # noqa: S307 (what must be noticed)
    rows, cells = {}, {}
    for i, text in enumerate(dict.fromkeys(texts)):
        rows[text], cells[text] = folder / f"{i}.jsonl", folder / f"{i}.csv"
        rows[text].write_text(json.dumps({"prompt": text, "answer": text}), encoding="utf-8")
        with cells[text].open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([["prompt", "answer", text], [text, text, text]])
    for files in (rows, cells):
        yield lambda text, files=files: list(_tables.read_table(str(files[text]), "train", None, ("prompt", "answer")))
    yield lambda text: templates.fill(text, {"question": text, "shots": [], "messages": [{"content": text}]})
    prompting = Prompting(template="qa", shots=(("1", "2"),))
    prompting.text("1")  # compiled
    yield prompting.text


def late(*_):
    raise TimeoutError


def main():
    asked = json.load(sys.stdin)
    if "--sympy" in sys.argv:
        beside = worker.beside
        worker.beside = lambda name: (
            type("Nothing", (), {"install": staticmethod(int)}) if name == "plain_sums" else beside(name)
        )
    with tempfile.TemporaryDirectory() as folder:
        broken = "--broken" in sys.argv
        functions = list(graders(broken, asked["datasets"]))
        functions += [] if broken else readers(asked["texts"], pathlib.Path(folder), "--open" in sys.argv)
        print(json.dumps(offences(functions, asked["texts"])))


def offences(functions, texts) -> list[str]:
    """What the hook has against functions of the texts."""
    hook, told = Hook(), io.StringIO()
    signal.signal(signal.SIGALRM, late)
    for function in functions:
        for text in texts:
            out, sys.stdout = sys.stdout, told
            signal.setitimer(signal.ITIMER_REAL, 2.0)
            hook.on = True
            try:
                function(text)
            except Exception as error:
                told.write(str(error))
            finally:
                hook.on = False
                signal.setitimer(signal.ITIMER_REAL, 0)
                sys.stdout = out
    return hook.offences


if __name__ == "__main__":
    main()
