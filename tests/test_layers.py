"""The shape of the package, read off its source: imports point down, keys and devices have one file, sizes hold."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1] / "jaxrl_llm"

# Layer of a module, by the longest prefix of its path. The package's own __init__ is imported with every module, so it
# is as low as the lowest.
LAYERS = {
    "__init__": 0,
    "types": 0,
    "masked": 0,
    "random": 0,
    "spec": 0,
    "json_files": 0,
    "writing": 0,
    "glossary": 0,
    "advantages": 1,
    "losses": 1,
    "variance": 1,
    "policies": 2,
    "rollouts": 2,
    "tokenizers": 2,
    "chat": 2,
    "published_pieces": 2,
    "published_tokenizer": 2,
    "published": 2,
    "prompting": 2,
    "tasks": 2,
    "rewards": 2,
    "sharding": 2,
    "distributed": 2,
    "grading": 2,
    "heartbeat": 2,
    "variance/empirical": 3,
    "variance/empirical_backends": 3,
    "variance/empirical_compare": 3,
    "variance/empirical_pool": 3,
    "variance/empirical_tables": 3,
    "variance/empirical_units": 3,
    "variance/plots": 4,
    "variance/policy_table": 3,
    "anchors": 3,
    "companions": 3,
    "measurements": 3,
    "finite": 3,
    "learner": 3,
    "checkpoint": 3,
    "manifest": 3,
    "metrics": 3,
    "evaluate": 3,
    "display": 3,
    "report": 3,
    "report_plots": 3,
    "recipes": 4,
    "recipe_table": 5,
    "schedules": 4,
    "estimators": 4,
    "config": 4,
    "config_checks": 4,
    "trained": 4,
    "determinism": 5,
    "programs": 5,
    "preflight": 5,
    "agreement": 5,
    "runs": 5,
    "warmup": 5,
    "journal": 5,
    "watch": 5,
    "train": 5,
    "inspect_run": 6,
    "export": 7,
    "gang": 7,
    "supervise": 7,
    "variance_run": 6,
    "cli": 8,
    "__main__": 8,
}
PURE = {"jax", "jaxtyping", "chex"}  # all that layers 0 and 1 may import beside the standard library
KEYS = {f"jax.random.{name}" for name in ("key", "PRNGKey", "fold_in", "split", "wrap_key_data", "clone")}
DEVICES = {
    *(f"jax.{name}" for name in ("devices", "local_devices", "device_put", "device_get", "device_count", "make_mesh")),
    *(f"jax.sharding.{name}" for name in ("Mesh", "NamedSharding", "PartitionSpec", "SingleDeviceSharding")),
    *("jax.local_device_count", "jax.set_mesh", "jax.shard_map"),
}
LINES, ESTIMATOR_LINES, BODY_LINES, ARGUMENTS, SPELLED_ARGUMENTS = 300, 30, 60, 8, 18


def prefix(path):
    """The longest row of the table that the path falls under; None: there is none."""
    parts = path.removesuffix(".py").split("/")
    rows = ("/".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((row for row in rows if row in LAYERS), None)


def imports(path, source):
    """Dotted names of what a module imports; of `from a import b` both a.b, and a where b is no module of ours."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ["jaxrl_llm", *path.split("/")[: -node.level]] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def local(name):
    """The row of the table that an imported name of the package belongs to; None for what is not ours."""
    parts = name.split(".")
    return (prefix("/".join(parts[1:])) or "__init__") if parts[0] == "jaxrl_llm" else None


def names_used(source):
    """(dotted name, line) of every attribute and name, through the aliases of the imports; not what is inside
    `jax.eval_shape(...)`, where nothing is drawn and no array is made."""
    tree = ast.parse(source)
    alias = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            alias |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0] for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            alias |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}

    def dotted(node):
        if isinstance(node, ast.Attribute):
            return f"{dotted(node.value)}.{node.attr}"
        return alias.get(node.id, node.id) if isinstance(node, ast.Name) else "?"

    def walk(node):
        if isinstance(node, ast.Call) and dotted(node.func) == "jax.eval_shape":
            return
        if isinstance(node, ast.Attribute | ast.Name):
            yield dotted(node), node.lineno
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(tree)


# The checks: each gives the complaints about a package, a mapping from path to source.


def imports_point_down(package):
    for path, source in package.items():
        row = prefix(path)
        if row is None:
            yield f"{path} has no layer: give it a row in LAYERS"
            continue
        for name in imports(path, source):
            other = local(name)
            if other and LAYERS[other] > LAYERS[row]:
                yield f"{path} (layer {LAYERS[row]}) imports {name} (layer {LAYERS[other]})"


def no_circles(package):
    graph = {}
    for path, source in package.items():
        row = prefix(path) or path
        graph.setdefault(row, set()).update(
            o for name in imports(path, source) if (o := local(name)) not in (None, row)
        )
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield f"imports run in a circle: {' -> '.join(error.args[1])}"


def low_layers_are_pure(package):
    for path, source in package.items():
        if LAYERS.get(prefix(path), 9) <= 1:
            for name in imports(path, source):
                top = name.split(".")[0]
                if top not in PURE and top != "jaxrl_llm" and top not in sys.stdlib_module_names:
                    yield f"{path} (layer 0 or 1) imports {name}"


def one_file_derives_keys(package):
    for path, source in package.items():
        if path != "random.py":
            yield from (f"{path}:{line} calls {name}" for name, line in names_used(source) if name in KEYS)


def one_file_names_devices(package):
    for path, source in package.items():
        if path != "sharding.py":
            yield from (f"{path}:{line} names {name}" for name, line in names_used(source) if name in DEVICES)


def files_are_short(package):
    for path, source in package.items():
        estimator = path.startswith("advantages/") and path.count("/") == 2
        bound, lines = ESTIMATOR_LINES if estimator else LINES, len(source.splitlines())
        if lines > bound:
            yield f"{path} has {lines} lines, more than {bound}"


def functions_are_short(package):
    for path, node, _ in functions(package):
        has_docstring = ast.get_docstring(node) is not None and len(node.body) > 1
        lines = node.end_lineno - node.body[has_docstring].lineno + 1
        if lines > BODY_LINES and path != "train.py":
            yield f"{path}: the body of {node.name} has {lines} lines, more than {BODY_LINES}"


def functions_take_few_arguments(package):
    for path, node, top in functions(package):
        arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        bound = SPELLED_ARGUMENTS if top and is_spelled(path, node) else ARGUMENTS
        if len([a for a in arguments if a not in ("self", "cls")]) > bound:
            yield f"{path}: {node.name} takes {len(arguments)} arguments, more than {bound}"


def is_spelled(path, node):
    """What the command line spells as `name,key=value...`, so that each argument is a knob with a default: public
    functions at the top of schedules.py and the files of recipes/ and tasks/. One argument and 18 knobs at most."""
    needed = len(node.args.args) - len(node.args.defaults) + sum(d is None for d in node.args.kw_defaults)
    of_a_room = path == "schedules.py" or path.startswith(("recipes/", "tasks/"))
    return of_a_room and not path.rpartition("/")[2].startswith("_") and not node.name.startswith("_") and needed <= 1


def functions(package):
    for path, source in package.items():
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, node, node in tree.body


def long_function(name, lines, arguments=""):
    return f'def {name}({arguments}):\n    """Doc."""\n' + "    x = 1\n" * lines


def many(count):
    return ", ".join(f"a{i}=0" for i in range(count))


# check -> sources that break it; below, sources that must pass.
BROKEN = {
    imports_point_down: [
        {"masked.py": "from jaxrl_llm.advantages import chain"},
        {"masked.py": "from jaxrl_llm import advantages"},
        {"losses/objective.py": "import jaxrl_llm.policies.logp as logp"},
        {"learner.py": "def f():\n    from jaxrl_llm import config"},
        {"variance/exact.py": "from jaxrl_llm.variance.empirical import score"},
        {"variance/exact.py": "from . import empirical"},
        {"variance/exact.py": "from ..policies import Policy"},
        {"novelty.py": ""},
        {"novelty/part.py": ""},
        {"__init__.py": "from jaxrl_llm.train import train"},
    ],
    no_circles: [
        {"tasks/a.py": "from jaxrl_llm import rewards", "rewards/b.py": "from jaxrl_llm.tasks import a"},
        {
            "metrics.py": "import jaxrl_llm.report",
            "report.py": "import jaxrl_llm.display",
            "display.py": "from . import metrics",
        },
    ],
    low_layers_are_pure: [
        {"masked.py": "import flax.linen as nn"},
        {"advantages/scales/new.py": "from optax import chain"},
        {"losses/new.py": "def f():\n    import orbax.checkpoint"},
        {"types.py": "import numpy as np"},
    ],
    one_file_derives_keys: [
        {"policies/a.py": "import jax\nk = jax.random.key(0)"},
        {"train.py": "import jax.random as jr\na, b = jr.split(k)"},
        {"train.py": "from jax.random import fold_in as f\nf(k, 1)"},
        {"tasks/a.py": "from jax import random\nnext = random.PRNGKey"},
        {"train.py": "import jax\njax.random.normal(jax.random.key(0))"},
    ],
    one_file_names_devices: [
        {"train.py": "import jax\nn = len(jax.devices())"},
        {"learner.py": "from jax.sharding import Mesh\nm = Mesh"},
        {"learner.py": "import jax\njax.device_put(x)"},
        {"evaluate.py": "import jax.sharding as s\ndef f(x: s.NamedSharding): ..."},
    ],
    files_are_short: [{"train.py": "x = 1\n" * 301}, {"advantages/scales/new.py": "x = 1\n" * 31}],
    functions_are_short: [
        {"learner.py": long_function("f", 61)},
        {"learner.py": "class A:\n" + "".join(f"    {line}\n" for line in long_function("f", 61).splitlines())},
    ],
    functions_take_few_arguments: [
        {"learner.py": long_function("f", 1, many(9))},
        {"learner.py": long_function("f", 1, "*, " + many(9))},
        {"recipes/new.py": long_function("_f", 1, many(9))},
        {"recipes/new.py": long_function("f", 1, many(19))},
        {"tasks/a.py": long_function("f", 1, "a, b, " + many(8))},
        {"tasks/_a.py": long_function("f", 1, many(9))},
    ],
}
SOUND = {
    "masked.py": "import jax\nimport functools\n\n\ndef key(x): return jax.random.normal(x)",
    "random.py": "import jax\nkey = jax.random.fold_in(jax.random.key(0), 1)",
    "sharding.py": "import jax\ndevices = jax.devices()",
    "variance/empirical.py": "from jaxrl_llm.policies import Policy\nfrom jaxrl_llm.variance import exact",
    "policies/a.py": "import jax\nshapes = jax.eval_shape(f, jax.random.key(0))",
    "learner.py": "from jaxrl_llm.random import split\nfrom jaxrl_llm.sharding import devices\nsplit(devices)\n"
    + long_function("f", 60, "self, " + many(8)),
    "train.py": "x = 1\n" * 200 + long_function("train", 80),
    "tasks/a.py": long_function("f", 1, "file, " + many(12)),
    "recipes/new.py": long_function("f", 1, many(12)),
}
PACKAGE = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in sorted(ROOT.rglob("*.py"))}
CHECKS = {check.__name__: check for check in BROKEN}


@pytest.mark.parametrize("check", CHECKS)
def test_of_the_package(check):
    complaints = list(CHECKS[check](PACKAGE))
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_package_passes(check):
    assert list(CHECKS[check](SOUND)) == []


@pytest.mark.parametrize(
    ("check", "package"), [(check.__name__, package) for check, rows in BROKEN.items() for package in rows]
)
def test_a_broken_package_is_caught(check, package):
    assert list(CHECKS[check](package))


def test_the_package_was_found():
    assert {"types.py", "advantages/_base.py", "losses/objective.py"} <= set(PACKAGE)


def test_the_exact_laboratory_does_without_flax():
    """`compare` needs it, and is there all the same."""
    code = (
        "import sys; from jaxrl_llm import variance; assert 'flax' not in sys.modules; "
        "assert variance.moments.RlooMoments is variance.RlooMoments; variance.exact.moments; variance.compare; "
        "assert 'flax' in sys.modules; assert all(hasattr(variance, name) for name in variance.__all__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
