"""Nothing but one file runs text as code, and nothing unpickles: model text and strangers' files reach everything."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / "jaxrl_llm"
BUILTINS = {"eval", "exec", "compile", "__import__", "breakpoint"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "code", "codeop", "joblib"}
ATTRIBUTES = {"parse_expr", "sympify", "system", "popen", "literal_eval", "unsafe_load"}
RUNS_PROGRAMS = {f"jaxrl_llm/rewards/run_program.py: {name}" for name in ("exec", "compile")}  # off unless asked for
KEYWORDS = {"shell", "allow_pickle", "trust_remote_code"}


def offences(path, source):
    """What of it runs text as code, as `path: name`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (f"{path}: import {name}" for name in names if name.split(".")[0] in MODULES)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
            yield f"{path}: {node.func.id}"
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield f"{path}: {node.attr}"
        if isinstance(node, ast.keyword) and node.arg in KEYWORDS and getattr(node.value, "value", None) is not False:
            yield f"{path}: {node.arg}"


def test_the_package_runs_no_text():
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 100
    found = [x for path in files for x in offences(path.relative_to(PACKAGE.parent), path.read_text(encoding="utf-8"))]
    assert set(found) == RUNS_PROGRAMS


@pytest.mark.parametrize(
    "source",
    [
        *("eval(x)", "exec(x)", "import pickle", "from pickle import loads", "os.system(x)", "__import__(x)"),
        *("sympy.parse_expr(x)", "np.load(x, allow_pickle=True)", "run(x, shell=flag)", "ast.literal_eval(x)"),
    ],
)
def test_each_way_is_found(source):
    assert list(offences("a.py", source))
