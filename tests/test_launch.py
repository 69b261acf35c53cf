"""The launch recipes are sound: they parse, name flags that exist, and build the commands they should."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from jaxrl_llm.cli import main

ROOT = pathlib.Path(__file__).parents[1]
BASH = shutil.which("bash")
SCRIPTS = sorted([*ROOT.glob("launch/*.sh"), *ROOT.glob("launch/*.sbatch")])
TOOLS = pathlib.Path(sys.executable).parent  # of the extra [test]
FILES = [*SCRIPTS, ROOT / "launch" / "gke_jobset.yaml"]


def flags_of(command: str, capsys) -> set[str]:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out))


def ours(text: str) -> dict[str, set[str]]:
    """Flags that a recipe gives to `supervise` and to `train`."""
    text = re.sub(r"\\\n", " ", text)
    found = {"supervise": set(), "train": set()}
    for words in re.findall(r"jaxrl-llm supervise (.*)", text):
        care, train = words.split(" -- ", 1)
        found["supervise"] |= set(re.findall(r"--[a-z][\w.-]*", care))
        found["train"] |= set(re.findall(r"--[a-z][\w.-]*", train))
    return found


def run(script: str, tools: pathlib.Path, *arguments: str, **environment: str) -> list[str]:
    """The words that reach the tool which the script starts: a stand-in prints them."""
    for tool in ("jaxrl-llm", "gcloud", "srun"):
        stand_in = tools / tool
        stand_in.write_text('#!/bin/sh\nprintf \'%s\\n\' "$(basename "$0")" "$@"\n')
        stand_in.chmod(0o755)
    done = subprocess.run(
        [BASH, str(ROOT / "launch" / script), *arguments],
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.splitlines() if done.returncode == 0 else [str(done.returncode), done.stderr]


def test_all_recipes_are_there():
    assert [path.name for path in FILES] == ["local.sh", "slurm.sbatch", "tpu_pod.sh", "gke_jobset.yaml"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_stop_at_the_first_error(path):
    done = subprocess.run([BASH, "-n", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "set -euo pipefail" in path.read_text()
    done = subprocess.run([TOOLS / "shellcheck", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_jobset_is_clean_yaml():
    rules = "{extends: default, rules: {line-length: {max: 120}, document-start: disable}}"
    command = [TOOLS / "yamllint", "--strict", "-d", rules, FILES[-1]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_flags_of_the_recipes_exist(capsys):
    known = {command: flags_of(command, capsys) for command in ("supervise", "train")}
    assert "--no-such-flag" not in known["train"]
    for path in FILES:
        for command, flags in ours(path.read_text()).items():
            assert flags <= known[command], (path.name, command, flags - known[command])
    used = [ours(path.read_text()) for path in FILES]
    assert all(found["supervise"] for found in used)
    assert sum("--cluster" in found["train"] for found in used) == 3


def test_local_processes(tmp_path):
    words = run("local.sh", tmp_path, "2", "--out", "runs/a b")
    assert words == [
        "jaxrl-llm",
        *["supervise", "--procs", "2", "--devices-per-proc", "0", "--max-restarts", "3", "--", "train", "--out"],
        "runs/a b",
    ]
    assert "1" in run("local.sh", tmp_path)[0], "without a number it says how it is used"


def test_slurm_needs_a_folder_and_resumes_what_is_there(tmp_path):
    out = tmp_path / "run"
    words = run("slurm.sbatch", tmp_path, "--steps", "5", "--out", str(out))
    assert words[-6:] == ["--cluster", "on", "--steps", "5", "--out", str(out)]
    assert words[0] == "srun"
    out.mkdir()
    (out / "config.json").write_text("{}")
    assert run("slurm.sbatch", tmp_path, "--out", str(out))[-1] == "--resume"
    assert "give --out FOLDER" in run("slurm.sbatch", tmp_path, "--steps", "5")[1]
    text = (ROOT / "launch" / "slurm.sbatch").read_text()
    given = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(.*))?$", text, re.M))
    assert given["ntasks-per-node"] == given["gpus-per-node"], "JAX gives each process of Slurm one device"
    assert {"nodes", "requeue", "signal", "time"} <= given.keys()


def test_every_host_of_a_pod_gets_the_same_command(tmp_path):
    words = run("tpu_pod.sh", tmp_path, "pod", "us-west4-a", "--task", "addition,digits=2", "--out", "/mnt/a b")
    assert words[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert {"--zone=us-west4-a", "--worker=all"} <= set(words)
    (command,) = [word for word in words if word.startswith("--command=")]
    assert "train --cluster on --task addition\\,digits=2" in command
    assert "/mnt/a\\ b" in command
    assert command.startswith("--command=jaxrl-llm supervise ")


def test_a_pod_runs_another_program_in_the_place_of_train(tmp_path):
    words = run("tpu_pod.sh", tmp_path, "pod", "us-west4-a", "--model", "a b", PROGRAM="python it.py")
    assert words[-1] == "--command=python it.py --cluster on --model a\\ b"


def test_the_jobset_restarts_as_a_whole():
    job = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert job["spec"]["failurePolicy"]["maxRestarts"] > 0
    (group,) = job["spec"]["replicatedJobs"]
    spec = group["template"]["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["parallelism"] == spec["completions"] == 4
    assert spec["backoffLimit"] == 0, "one pod that failed ends the job, and the set starts all of them again"
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    (container,) = pod["containers"]
    columns, lines = map(int, pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert columns * lines == spec["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert pod["terminationGracePeriodSeconds"] > 30, "longer than supervise lets a run take to save"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    script = subprocess.run(
        [BASH, "--posix", "-n"], input=container["args"][0], capture_output=True, text=True, check=False
    )
    assert script.returncode == 0, script.stderr


JOB = """#!/bin/sh
printf '%s\\n' "$@" > "$RUNS/words"
trap 'echo asked >> "$RUNS/words"; sleep 0.3; exit 0' TERM
echo ready > "$RUNS/ready"
for i in 1 2 3 4 5 6 7 8 9 10; do [ -e "$RUNS/end" ] && exit "$(cat "$RUNS/end")"; sleep 0.5; done
exit 9
"""


@pytest.mark.parametrize(
    ("stopped", "finished", "code", "status"),
    [(True, False, None, 1), (False, True, "0", 0), (False, False, "0", 1), (False, False, "3", 3)],
    ids=["stopped", "finished", "ended", "died"],
)
def test_a_pod_succeeds_only_where_the_run_is_finished(tmp_path, stopped, finished, code, status):
    """A stop ends the run with 0, and its pod must not count as one that has succeeded, or nobody starts it again."""
    job = yaml.safe_load((ROOT / "launch" / "gke_jobset.yaml").read_text())
    (container,) = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    runs, tool = tmp_path / "runs", tmp_path / "jaxrl-llm"
    (runs / "first").mkdir(parents=True)
    (runs / "first" / "config.json").write_text("{}")
    (runs / "first" / "summary.json").write_text('{"before": {}' + (', "after": {}' if finished else "") + "}")
    tool.write_text(JOB)
    tool.chmod(0o755)
    script = container["args"][0].replace("/runs/", f"{runs}/")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "RUNS": str(runs)}
    shell = subprocess.Popen([*container["command"], script], env=environment)
    deadline = time.monotonic() + 30
    while not (runs / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    if stopped:
        shell.send_signal(signal.SIGTERM)
    else:
        (runs / "end").write_text(code)
    assert shell.wait(30) == status
    words = (runs / "words").read_text().split()
    assert ("--resume" in words, "asked" in words) == (True, stopped)
