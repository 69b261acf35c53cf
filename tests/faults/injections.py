"""Give graders and readers texts that try to become code: no file, connection or process comes of it.

    python tests/faults/injections.py --count 500 --seed 0

answers   every payload of `payloads.py` to every grader, those of some reasoning-gym data sets and of programs included
          (a payload is a program like any other there, and runs confined)
fields    payloads in each field of rows of .csv and .jsonl files, read as tasks, and as chat templates
hooked    the graders but that of programs, and the readers of rows and templates, in a process with an audit hook: no
          payload is compiled, unpickled, or runs

Watched are a folder that is the home, the working and the temporary folder, and where payloads make their files; a
port on which something listens; and the processes of the machine. With `--broken` one grader evaluates its answers, in
a process that nothing confines: that must be noticed. Then the milliseconds that each reader of answers takes at most
for a hostile text, of 1 MB and of the longest that is read.
"""

import argparse
import contextlib
import csv
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__)
if __name__ == "__main__":
    sys.path[:1] = [str(HERE.parents[2]), str(HERE.parent)]

from payloads import MARK, payloads

DATASETS = ("chain_sum", "spell_backward", "number_sorting", "word_ladder", "tower_of_hanoi", "leg_counting")
TRUTH = {"code": '[["", "7340251"]]'}
PLAIN = {"numeric": {}, "exact": {}, "math_verify": {}, "code": {"seconds": 1.0}}


class Watch:
    """A folder, a port and the processes of the machine, as they were."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.server = folder, socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.known: set[str] = set()
        self.port, self.file = self.server.getsockname()[1], str(folder / f"{MARK}-{{}}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.close()

    def begin(self) -> None:
        """Take what is there as what libraries have put there, such as a list of fonts."""
        self.known = {path.name for path in self.folder.iterdir()}

    def found(self) -> dict[str, int | list[str]]:
        """What payloads have left behind: files made, connections, processes."""
        files = sorted({path.name for path in self.folder.iterdir()} - self.known)
        return {"files": files, "connections": self._connections(), "processes": sleeping(end=True)}

    def _connections(self) -> int:
        count = 0
        while True:
            try:
                self.server.accept()[0].close()
            except BlockingIOError:
                return count
            count += 1


def sleeping(end: bool) -> int:
    """Processes that sleep for as long as payloads ask for."""
    found = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0].endswith(b"sleep") and MARK.encode() in words:
            found += 1
            if end:
                os.kill(int(path.parent.name), 9)
    return found


def answer(texts: list[str], broken: bool) -> dict[str, int]:
    """Payloads through every grader; how many had a grade above 0."""
    from jaxrl_llm.rewards import keeper, worker
    from jaxrl_llm.rewards.pool import GraderPool

    pools = {name: (name, options) for name, options in PLAIN.items()}
    for name in DATASETS:
        config = {"seed": 1, "size": 4}
        pools[name] = ("reasoning_gym", {"name": name, "config": config, "threshold": 1.0})
    if broken:
        keeper.SCRIPT, worker.GRADERS["evaluating"] = HERE.with_name("evaluating_worker.py"), None
        pools = {"evaluating": ("evaluating", {})}
    right = {}
    for name, (grader, options) in pools.items():
        item = {"truth": TRUTH.get(name, "3")}
        with GraderPool(grader, options, workers=2, seconds=1.0) as pool:
            if grader == "reasoning_gym":
                ((question, _),) = pool.ask([{"answer": "", "problems": [0, 1]}], seconds=60.0)[0]
                item = {"index": 0, "question": question}
            grades = pool.grade([{**item, "answer": text} for text in texts])
            right[name] = sum(bool(grade) for grade in grades)
            print(f"{name}: {dict(pool.counts)}", file=sys.stderr)
    return right


def fields(texts: list[str]) -> int:
    """Payloads in rows of files, in all fields, and as templates; how many files were read as tasks."""
    from jaxrl_llm.tasks.rows import rows

    read = 0
    with tempfile.TemporaryDirectory() as folder:
        for i in range(0, len(texts), 20):
            table = [{"prompt": f"{text} {n}", "answer": text, text: text} for n, text in enumerate(texts[i : i + 20])]
            lines, cells, template = (pathlib.Path(folder, name) for name in ("a.jsonl", "a.csv", "a.jinja"))
            lines.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
            with cells.open("w", encoding="utf-8", newline="") as file:
                rows_of_cells = [[row["prompt"], row["answer"]] for row in table]
                csv.writer(file).writerows([["prompt", "answer"], *rows_of_cells])
            template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}" + texts[i], encoding="utf-8")
            for path, layout in ((lines, "plain"), (cells, "qa"), (lines, str(template))):
                try:
                    rows(str(path), template=layout, answer_length=500, workers=1).close()
                    read += 1
                except ValueError:
                    pass  # refused, with its place
    return read


def hooked(texts: list[str], *flags: str) -> list[str]:
    """What an audit hook has against graders that read the payloads."""
    asked = json.dumps({"texts": texts, "datasets": DATASETS})
    command = [sys.executable, str(HERE.with_name("audited.py")), *flags]
    done = subprocess.run(command, input=asked, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def pattern_times(repeats: int = 3) -> dict[str, float]:
    """Milliseconds that each reader of answers takes at most for a hostile text of 1 MB, the best of some times."""
    from jaxrl_llm.rewards import finals, programs, worker

    units = ("1", "1,", "1,111", "-", "1e", ".", "1/", " ", "(", "{", "\\boxed{", "\\boxed{1", "$", "####", "#### ")
    units += ("```python\n", "```\n", "```python\n```", "0 ", "1.", "e+", "9" * 399 + ",", "1,11", "−", "x", "\n", "{}")
    readers = {"last_number": worker.last_number, "program_in": programs.program_in}
    readers |= {"after_hashes": finals.after_hashes, "last_boxed": finals.last_boxed}
    told = {}
    for name, reader in readers.items():
        worst = 0.0
        for unit in units:
            for length in (1_000_000, worker.ANSWER):
                text = "\\boxed{}" + unit * ((length - 20) // len(unit)) + "!"
                seconds = []
                for _ in range(repeats):
                    began = time.perf_counter()
                    reader(text)
                    seconds.append(time.perf_counter() - began)
                worst = max(worst, min(seconds))
        told[name] = round(worst * 1e3, 1)
    return told


def main() -> int:
    """Exit status 1 where anything was left behind or noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--broken", action="store_true")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        name, caches = (stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(2))
        watch = stack.enter_context(Watch(pathlib.Path(name)))
        texts = payloads(options.count, options.seed, watch.file, watch.port)
        os.environ.update({"HOME": name, "TMPDIR": name, "XDG_CACHE_HOME": caches, "XDG_CONFIG_HOME": caches})
        os.chdir(name)
        answer(["3"], broken=False)
        watch.begin()
        told = {"payloads": len(texts), "right": answer(texts, options.broken)}
        told |= {"files_read": 0 if options.broken else fields(texts)}
        told |= {"hooked": hooked(texts, *(["--broken"] if options.broken else []))} | watch.found()
        os.chdir("/")
    told |= {"milliseconds": pattern_times()}
    print(json.dumps(told))
    return int(any(told[name] for name in ("hooked", "files", "connections", "processes")))


if __name__ == "__main__":
    sys.exit(main())
