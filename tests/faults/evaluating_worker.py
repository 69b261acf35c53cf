"""The real worker with a grader that evaluates its answers, and that nothing confines: what must never be."""

import contextlib
import importlib.util
import pathlib

PATH = pathlib.Path(__file__).parents[2] / "jaxrl_llm" / "rewards" / "worker.py"
specification = importlib.util.spec_from_file_location("worker", PATH)
worker = importlib.util.module_from_spec(specification)
specification.loader.exec_module(worker)


def evaluating(_):
    """A grader of the kind that this project refuses."""

    def grade(item):
        with contextlib.suppress(Exception):
            return float(eval(item["answer"]) == 3)
        return 0.0

    return grade


worker.GRADERS["evaluating"] = evaluating
worker.confine = worker.can_confine = lambda: False
worker.limit = lambda *_: None  # files too
if __name__ == "__main__":
    worker.main()
