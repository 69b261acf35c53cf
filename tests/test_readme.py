"""What the README and CONTRIBUTING say is what the code does."""

import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# What makes the programs of the README end in seconds: same code, fewer steps, a smaller model.
SHORT = (
    "from jaxrl_llm.config import WarmUp\nfrom jaxrl_llm.policies.config import DecoderConfig\n"
    "QUICK = dict(steps=2, warmup=WarmUp(max_steps=2), eval_problems=16, model="
    "DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_size=8, mlp_width=16))\n"
)


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.S)


def load(path: pathlib.Path):
    found = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_generated_tables_are_up_to_date():
    assert load(ROOT / "docs" / "readme_tables.py").filled(README) == README, "run python docs/readme_tables.py"


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1], ids=["train", "own estimator"])
def test_programs_in_the_readme_run(number, tmp_path, monkeypatch):
    program = blocks(README)[number]
    if number == 0:
        assert len(program.strip().splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "program.py"
    path.write_text(SHORT + program.replace("steps=300", "**QUICK"))
    load(path)
    assert list(tmp_path.glob("runs/*/report.html"))


def test_the_exact_numbers_of_the_readme_are_what_its_program_prints(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(blocks(README)[2])
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = {line.split()[0]: [float(x) for x in re.findall(r"\d\.\d+", line)] for line in done.stdout.splitlines()}
    shown = {name: re.search(rf"^\| {name} \| (.*) \|$", README, re.M) for name in printed}
    assert list(printed) == ["none", "rloo", "mean", "grpo"]
    assert {name: [float(x) for x in row[1].split(" | ")] for name, row in shown.items()} == printed


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = re.findall(r"^    (python3 -m pip install -e '\.\[test\]' && pytest)$", README, re.M)
    assert command in (ROOT / ".ci" / "run").read_text().replace(" -q", "")


def test_the_estimator_in_contributing_keeps_the_laws(tmp_path, monkeypatch):
    (program,) = blocks((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(program.strip().splitlines()) <= 20
    path = tmp_path / "group_median.py"
    path.write_text(program)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "advantages"))
    sys.modules.pop("laws", None)
    import laws

    transform = load(path).group_median()
    for law in laws.LAWS.values():
        law(transform)
