"""The shell parts of docs/several_machines.md, run with fake programs around them."""

import os
import re
import signal
import subprocess
import time

import pytest
from conftest import ROOT

import train_main
from mapseg.training.rendezvous import Cluster, read_cluster

PAGE = (ROOT / "docs/several_machines.md").read_text(encoding="utf-8")
LOCAL, MANIFEST, BATCH = (
    block for _, block in re.findall(r"```(bash|yaml)\n(.*?)```", PAGE, re.DOTALL)
)
CONTAINER = re.search(r"args:\n +- \|\n((?: {14}.*\n)+)", MANIFEST)[1]
OF_SLURM = {"signal", "kill-on-bad-exit", "cpus-per-task", "requeue"}
FINISH = "mkdir -p runs/first/checkpoints/step-00100000"

PYTHON = """#!/bin/bash
printf '%s|%s|%s\\n' "$CUDA_VISIBLE_DEVICES" "$TF_CONFIG" "$*" >> calls.txt
eval "$THEN"
"""
SCONTROL = """#!/bin/bash
if [[ $1 == show ]]; then
  [[ $3 == 'node[7-8]' ]] && printf 'node7\\nnode8\\n'
else
  echo "$*" >> requeued.txt
fi
"""
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
for SLURM_NODEID in 0 1; do
  for ((SLURM_LOCALID = 0; SLURM_LOCALID < SLURM_NTASKS_PER_NODE; SLURM_LOCALID++)); do
    export SLURM_NODEID SLURM_LOCALID
    "$@" || exit
  done
done
"""


@pytest.fixture
def start(tmp_path):
    """Starts a script in a folder where python, scontrol and srun are fakes."""
    programs = {"python": PYTHON, "scontrol": SCONTROL, "srun": SRUN}
    (tmp_path / "bin").mkdir()
    for name, text in programs.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text("activated=yes\n")
    (tmp_path / "records").mkdir()

    def run(script, **env):
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        env = {"THEN": "", "PATH": path, **env}
        command = ["bash", "-c", script]
        return subprocess.Popen(command, env=env, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    return run


def finish(process):
    _, errors = process.communicate(timeout=1200)
    assert not errors
    return process.returncode


def calls(folder, monkeypatch):
    """Returns python's calls, (GPU, cluster, arguments), by the worker's index."""
    parsed = []
    for line in (folder / "calls.txt").read_text().splitlines():
        gpu, config, arguments = line.split("|")
        monkeypatch.setenv("TF_CONFIG", config)
        parsed.append((gpu, read_cluster(), arguments))
    return sorted(parsed, key=lambda call: call[1].index)


def test_a_process_for_each_gpu_of_a_machine(start, tmp_path, monkeypatch):
    assert finish(start(LOCAL)) == 0
    workers = tuple(f"127.0.0.1:{2222 + i}" for i in range(4))
    arguments = "train_main.py --records_dir=records --run_dir=runs/first"
    assert calls(tmp_path, monkeypatch) == [
        (str(i), Cluster(workers, i), arguments) for i in range(4)
    ]


def container(start, tmp_path, index="0", **env):
    values = dict(re.findall(r'\{name: ([A-Z]+), value: "?([^"}]+)', MANIFEST))
    assert values.keys() == {"WORKERS", "STEPS", "DATA"}
    return start(CONTAINER, JOB_COMPLETION_INDEX=index, **{**values, "DATA": ".", **env})


def test_the_pods_of_the_job(start, tmp_path, monkeypatch):
    count = re.search(r"completions: (\d+)\n  parallelism: \1\n", MANIFEST)[1]
    assert f'{{name: WORKERS, value: "{count}"}}' in MANIFEST
    assert "$$" not in CONTAINER  # Kubernetes turns $$ into $
    assert not re.search(r"\$\(\w+\)", CONTAINER)  # and expands these
    for index in range(int(count)):
        assert finish(container(start, tmp_path, str(index), THEN=FINISH)) == 0
    python_calls = calls(tmp_path, monkeypatch)
    workers = tuple(f"mapseg-{i}.mapseg:2222" for i in range(int(count)))
    assert [cluster for _, cluster, _ in python_calls] == [
        Cluster(workers, i) for i in range(int(count))
    ]
    assert "--run_dir=./runs/first --steps=100000 --peer_timeout_secs=1800" in python_calls[0][2]


@pytest.mark.parametrize("then", ["true", "exit 1", "kill -9 $$"])
def test_a_pod_that_did_not_finish_starts_again(start, tmp_path, then):
    assert container(start, tmp_path, THEN=then).wait(timeout=1200) == 1


@pytest.mark.parametrize(("last", "code"), [("true", 1), (FINISH, 0)])
def test_a_pod_passes_the_signal_on_and_waits(start, tmp_path, last, code):
    trap = f"trap 'kill $!; sleep 0.3; {last}; touch saved; exit 0' TERM"
    then = f"sleep 1200 & {trap}; touch ready; wait"
    process = container(start, tmp_path, THEN=then)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=1200) == code
    assert (tmp_path / "saved").exists()


def batch(start, **env):
    options = dict(re.findall(r"#SBATCH --([a-z-]+)=(\S+)", BATCH))
    assert options["nodes"] == "2"  # as the fake srun has
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    return start(
        BATCH,
        SLURM_JOB_ID="1234567",
        SLURM_JOB_NODELIST="node[7-8]",
        SLURM_NTASKS_PER_NODE=options["ntasks-per-node"],
        SLURM_CPUS_PER_TASK=options["cpus-per-task"],
        CUDA_VISIBLE_DEVICES="4,5,6,7",
        **env,
    )


def test_the_tasks_of_the_batch_script(start, tmp_path, monkeypatch):
    assert finish(batch(start, THEN=FINISH)) == 0
    workers = tuple(f"node{node}:{25670 + i}" for node in (7, 8) for i in range(4))
    arguments = "train_main.py --records_dir=records --run_dir=runs/first --steps=100000"
    assert calls(tmp_path, monkeypatch) == [
        (str(4 + i % 4), Cluster(workers, i), arguments) for i in range(8)
    ]
    assert not (tmp_path / "requeued.txt").exists()


def test_a_batch_script_that_was_stopped_goes_back_into_the_queue(start, tmp_path):
    assert finish(batch(start)) == 0
    assert (tmp_path / "requeued.txt").read_text() == "requeue 1234567\n"


def test_a_batch_script_that_failed_does_not(start, tmp_path):
    assert finish(batch(start, THEN="exit 3")) == 3
    assert not (tmp_path / "requeued.txt").exists()


def test_every_flag_of_the_page_exists():
    text = re.sub(r"(?m)^#SBATCH.*$", "", PAGE)
    named = set(re.findall(r"--([a-z][a-z_-]*)", text)) - OF_SLURM
    assert {"accumulate_steps", "peer_timeout_secs", "sync_batch_norm"} <= named
    values = train_main.define_flags()
    assert not [name for name in sorted(named) if name not in values]
